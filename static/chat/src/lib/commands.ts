/**
 * What is typed to the page rather than to the model: `/` commands and prompts at the start, `@` models and resources at
 * the start of a word. Pure.
 *
 * A text that is no known command is a message like any other, and so is one with a space before its slash.
 */

export type CommandName = 'new' | 'stop' | 'model' | 'temperature' | 'system' | 'preset' | 'connectors' | 'settings' | 'theme' | 'help';

export interface CommandInfo {
  name: CommandName;
  /** What follows it, as a placeholder. */
  takes?: string;
  about: string;
}

export const COMMANDS: CommandInfo[] = [
  { name: 'new', about: 'New chat' },
  { name: 'stop', about: 'Stop the reply' },
  { name: 'model', takes: 'name', about: 'Change the model of the replies' },
  { name: 'temperature', takes: '0 to 2', about: 'Change the temperature' },
  { name: 'system', takes: 'text', about: 'Change the system prompt' },
  { name: 'preset', takes: 'name', about: 'Set what a preset sets' },
  { name: 'connectors', about: 'Connectors and tools' },
  { name: 'settings', about: 'Live settings' },
  { name: 'theme', takes: 'light, dark or system', about: 'Change the theme' },
  { name: 'help', about: 'Commands and keyboard shortcuts' },
];

/** A theme to set; without a name `/theme` goes from light to dark and back. */
export const THEMES = ['system', 'light', 'dark'] as const;

export type Command =
  | { name: 'new' | 'stop' | 'connectors' | 'settings' | 'help' }
  | { name: 'preset'; preset: string }
  | { name: 'model'; model: string | null }
  | { name: 'temperature'; temperature: number | null }
  | { name: 'system'; system: string | null }
  | { name: 'theme'; theme: (typeof THEMES)[number] | null };

export interface NamedPreset {
  name: string;
  title: string;
}

export interface NamedModel {
  id: string;
  label?: string;
  author?: string;
}

/** The command that a text is, what is wrong with it, or null where it is a message. */
export function parseCommand(text: string, models: NamedModel[], presets: NamedPreset[] = []): { command: Command } | { fault: string } | null {
  const match = /^\/([a-z]+)(?:\s+([\s\S]*))?$/i.exec(text);
  const info = match && COMMANDS.find((c) => c.name === match[1]!.toLowerCase());
  if (!info) return null;
  const rest = (match[2] ?? '').trim();
  const reset = rest === '' || /^(?:default|reset|none)$/i.test(rest);
  switch (info.name) {
    case 'model': {
      if (rest === '') return { fault: 'Say which model: /model name. /model default goes back.' };
      if (reset) return { command: { name: 'model', model: null } };
      const model = findModel(rest, models);
      return model ? { command: { name: 'model', model } } : { fault: `There is no model called ${rest}, or more than one.` };
    }
    case 'temperature': {
      if (reset) return { command: { name: 'temperature', temperature: null } };
      const temperature = Number(rest.replace(',', '.'));
      if (!(temperature >= 0 && temperature <= 2)) return { fault: 'A temperature is a number from 0 to 2.' };
      return { command: { name: 'temperature', temperature } };
    }
    case 'system':
      return { command: { name: 'system', system: reset ? null : rest } };
    case 'preset': {
      const found = filterPresets(presets, rest);
      const preset = presets.find((p) => [p.name, p.title].some((name) => name.toLowerCase() === rest.toLowerCase())) ?? (found.length === 1 ? found[0] : undefined);
      if (rest !== '' && preset) return { command: { name: 'preset', preset: preset.name } };
      return { fault: presets.length === 0 ? 'There are no presets.' : `Say which preset: ${presets.map((p) => p.name).join(', ')}.` };
    }
    case 'theme': {
      const theme = THEMES.find((t) => t === rest.toLowerCase()) ?? null;
      return theme === null && rest !== '' ? { fault: 'A theme is light, dark or system.' } : { command: { name: 'theme', theme } };
    }
    default:
      return rest === '' ? { command: { name: info.name } } : { fault: `/${info.name} stands alone. To send this as text, put a space before it.` };
  }
}

/** A model by its id, its label, the id without the provider, or a part that fits one alone. */
export function findModel(wanted: string, models: NamedModel[]): string | null {
  const name = wanted.trim().toLowerCase();
  const short = (m: NamedModel) => m.id.slice(m.id.indexOf('/') + 1).toLowerCase();
  const exact = models.find((m) => m.id.toLowerCase() === name) ?? models.find((m) => m.label?.toLowerCase() === name || short(m) === name);
  if (exact) return exact.id;
  const part = filterModels(models, name);
  if (part.length === 1) return part[0]!.id;
  // A provider may serve more models than it lists; the hub decides about a full name.
  return /^[\w-]+\/\S+$/.test(wanted.trim()) ? wanted.trim() : null;
}

export function filterPresets<P extends NamedPreset>(presets: P[], query: string): P[] {
  const wanted = query.toLowerCase();
  return presets.filter((preset) => `${preset.name}\n${preset.title}`.toLowerCase().includes(wanted));
}

export function filterModels<M extends NamedModel>(models: M[], query: string): M[] {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  return models.filter((m) => {
    const names = `${m.id}\n${m.label ?? ''}\n${m.author ?? ''}`.toLowerCase();
    return words.every((word) => names.includes(word));
  });
}

/** What is being typed that a list can complete, and which part of the text it stands for. */
export type Completing =
  | { kind: 'command'; query: string; from: number; to: number }
  | { kind: 'model-of-command'; query: string; from: number; to: number }
  | { kind: 'theme-of-command'; query: string; from: number; to: number }
  | { kind: 'preset-of-command'; query: string; from: number; to: number }
  | { kind: 'mention'; query: string; from: number; to: number };

/** `caret` is -1 where there is none: the field is left, or some of its text is selected. */
export function completingAt(text: string, caret: number): Completing | null {
  if (caret < 0) return null;
  const before = text.slice(0, caret);
  // Names of prompts hold more than letters.
  const command = /^\/([\w.:-]*)$/.exec(before);
  if (command && !/^\S/.test(text.slice(caret))) return { kind: 'command', query: command[1]!.toLowerCase(), from: 0, to: caret };
  const argument = /^\/(model|theme|preset)[ \t]+([^\n]*)$/i.exec(before);
  if (argument && caret === text.trimEnd().length + (before.length - before.trimEnd().length)) {
    const kind = `${argument[1]!.toLowerCase() as 'model' | 'theme' | 'preset'}-of-command` as const;
    return { kind, query: argument[2]!, from: caret - argument[2]!.length, to: caret };
  }
  const mention = /(?:^|[\s([{"'])@([\w./:+-]*)$/.exec(before);
  if (!mention) return null;
  return { kind: 'mention', query: mention[1]!, from: caret - mention[1]!.length - 1, to: caret };
}

export function filterCommands(query: string): CommandInfo[] {
  return COMMANDS.filter((c) => c.name.startsWith(query));
}

/** The text without what a mention took up, and without the gap that it leaves. */
export function cut(text: string, from: number, to: number): string {
  const before = text.slice(0, from);
  const after = text.slice(to);
  return before + (/\s$|^$/.test(before) ? after.replace(/^[ \t]/, '') : after);
}
