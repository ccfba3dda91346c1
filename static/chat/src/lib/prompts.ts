/** Prompts and resources of connectors: what they become in the composer, and resources whose address has gaps. Pure. */
import type { PromptInfo } from './connectors';
import { isObject } from './forms';

export interface OfferedPrompt extends PromptInfo {
  connector: string;
  /** What people call the connector. */
  from: string;
}

/** A resource, or a template of some (`template`), of a connector. */
export interface Resource {
  connector: string;
  uri: string;
  name: string;
  title?: string;
  description?: string;
  mime?: string;
  size?: number;
  template?: boolean;
}

/** Something to attach: text, bytes in base64, or a file that the hub has. */
export type Attachment =
  | { kind: 'text'; text: string; name: string; mime: string }
  | { kind: 'bytes'; base64: string; name: string; mime: string }
  | { kind: 'kept'; ref: string; name: string; mime: string; size?: number };

/** A prompt that was filled in, as a draft: its texts, who says them told where that is not the user alone. */
export function draftOf(messages: unknown[]): { text: string; attachments: Attachment[] } {
  const said = messages.filter(isObject);
  const isPlain = said.every((message) => message.role === 'user');
  const texts: string[] = [];
  const attachments: Attachment[] = [];
  for (const message of said) {
    const items: Record<string, any>[] = Array.isArray(message.content) ? message.content.filter(isObject) : [];
    const text = items.flatMap((item) => (item.kind === 'text' ? [String(item.text)] : item.kind === 'link' ? [String(item.uri)] : [])).join('\n').trim();
    if (text !== '') texts.push(isPlain ? text : `${message.role === 'user' ? 'User' : 'Assistant'}: ${text}`);
    attachments.push(...items.flatMap((item, i) => attachmentOf(item, `attachment-${i + 1}`)).filter((one) => one.kind !== 'text'));
  }
  return { text: texts.join('\n\n'), attachments };
}

/** What a resource holds, as attachments in its name. */
export function attachmentsOf(content: unknown[], resource: Pick<Resource, 'name' | 'uri' | 'mime'>): Attachment[] {
  const items = content.filter(isObject);
  return items.flatMap((item, i) => {
    const name = fileName(resource, items.length > 1 ? i + 1 : 0);
    return attachmentOf(item, name, resource.mime);
  });
}

function attachmentOf(item: Record<string, any>, name: string, mime = ''): Attachment[] {
  if (item.kind === 'text') {
    // A resource may be called something else than the text that it is given as.
    const kind = /^(?:text\/|application\/(?:json|xml|yaml|toml|sql))/i.test(mime) ? mime : 'text/plain';
    return [{ kind: 'text', text: String(item.text), name: withEnding(name, kind), mime: kind }];
  }
  const own = { name: item.name || withEnding(name, item.mime ?? ''), mime: String(item.mime ?? '') };
  if (typeof item.ref === 'string') return [{ kind: 'kept', ref: item.ref, ...own, ...(typeof item.size === 'number' ? { size: item.size } : {}) }];
  if (typeof item.data === 'string') return [{ kind: 'bytes', base64: item.data, ...own }];
  return [];
}

const ENDINGS: Record<string, string> = {
  'text/plain': 'txt', 'text/markdown': 'md', 'text/html': 'html', 'text/csv': 'csv', 'application/json': 'json',
  'image/png': 'png', 'image/jpeg': 'jpg', 'image/gif': 'gif', 'image/webp': 'webp', 'application/pdf': 'pdf',
};

function fileName({ name, uri }: Pick<Resource, 'name' | 'uri'>, number: number): string {
  const last = uri.split(/[?#]/)[0]!.split('/').filter(Boolean).at(-1) ?? '';
  const from = /\.\w{1,8}$/.test(last) ? decode(last) : name || last || 'resource';
  const plain = from.replace(/[\\/:*?"<>|\p{Cc}\s]+/gu, ' ').trim() || 'resource';
  return number === 0 ? plain : plain.replace(/(\.\w{1,8})?$/, ` ${number}$1`);
}

function withEnding(name: string, mime: string): string {
  const ending = ENDINGS[mime.split(';')[0]!.trim().toLowerCase()];
  return ending === undefined || /\.\w{1,8}$/.test(name) ? name : `${name}.${ending}`;
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

// ---------------------------------------------------------------- templates

const EXPRESSION = /\{([+#./;?&]?)([^{}]+)\}/g;

/** The variables of a template (RFC 6570), in its order; those of a query may be left out. */
export function variablesOf(template: string): { name: string; required: boolean }[] {
  const variables = new Map<string, boolean>();
  for (const [, operator = '', list = ''] of template.matchAll(EXPRESSION)) {
    for (const name of list.split(',').map(nameOf)) variables.set(name, (variables.get(name) ?? false) || !/[;?&]/.test(operator));
  }
  return [...variables].map(([name, required]) => ({ name, required }));
}

/** A template with its variables filled in; one that is empty is left out, as the RFC says of an undefined one. */
export function expandTemplate(template: string, values: Record<string, string>): string {
  return template.replace(EXPRESSION, (_, operator: string, list: string) => {
    const isReserved = operator === '+' || operator === '#';
    const isNamed = operator === ';' || operator === '?' || operator === '&';
    const parts = list.split(',').flatMap((given) => {
      const name = nameOf(given);
      const most = Number(/:(\d+)$/.exec(given)?.[1] ?? Infinity);
      const value = (values[name] ?? '').slice(0, most);
      if (value === '') return [];
      const text = isReserved ? encodeURI(value) : encodeURIComponent(value).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
      return [isNamed ? `${name}=${text}` : text];
    });
    if (parts.length === 0) return '';
    const first = operator === '+' ? '' : operator;
    return first + parts.join(operator === '' || isReserved ? ',' : operator === '?' ? '&' : operator);
  });
}

function nameOf(variable: string): string {
  return variable.replace(/\*$|:\d+$/, '').trim();
}

// ------------------------------------------------------------------- search

export function filterPrompts(prompts: OfferedPrompt[], query: string): OfferedPrompt[] {
  const wanted = query.toLowerCase();
  const rank = ({ name, title = '' }: OfferedPrompt) =>
    name.toLowerCase().startsWith(wanted) ? 0 : `${name}\n${title}`.toLowerCase().includes(wanted) ? 1 : 2;
  return prompts.filter((prompt) => rank(prompt) < 2).sort((a, b) => rank(a) - rank(b));
}

export function filterResources(resources: Resource[], query: string): Resource[] {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  return resources.filter(({ name, title = '', uri, connector }) => {
    const text = `${name}\n${title}\n${uri}\n${connector}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
}
