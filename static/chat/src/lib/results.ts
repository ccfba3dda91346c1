/** What a tool gave, as pieces to be seen: text, tables, images, files, links, data. Pure. */
import type { Part } from '@sag/client';
import { isObject } from './forms';

export interface Table {
  title: string;
  columns: string[];
  rows: unknown[][];
}

export interface Link {
  uri: string;
  name: string;
  about: string;
  /** Where a click may lead; null where a browser has no business. */
  href: string | null;
  host: string;
}

export type Block =
  | { kind: 'text'; text: string }
  | { kind: 'data'; value: unknown }
  | { kind: 'table'; table: Table }
  | { kind: 'media'; part: Part }
  | { kind: 'link'; link: Link };

type Json = Record<string, any>;
const COLUMNS = 24;
const LISTED = 8;

/** The pieces of a result, in its order. */
export function blocksOf(result: unknown): Block[] {
  if (result === undefined || result === null) return [];
  const content = isObject(result) && Array.isArray(result.content) ? result.content.filter(isObject) : null;
  if (!content) return typeof result === 'string' ? ofText(result) : ofValue(result);
  const data: unknown = (result as Json).data;
  const blocks = content.flatMap((item) => (isTextOf(item, data) ? [] : ofItem(item)));
  return data === undefined || data === null ? blocks : [...blocks, ...ofValue(data)];
}

function ofItem(item: Json): Block[] {
  switch (item.kind) {
    case 'text': return typeof item.text === 'string' ? ofText(item.text) : [];
    case 'image':
    case 'file': return typeof item.ref === 'string' ? [{ kind: 'media', part: { ...item, kind: item.kind, open: false } as Part }] : [{ kind: 'data', value: item }];
    case 'link': return [{ kind: 'link', link: linkOf(item) }];
    case 'table': {
      if (!Array.isArray(item.columns) || !Array.isArray(item.rows)) break;
      const rows = item.rows.map((row: unknown) => (Array.isArray(row) ? row : [row]));
      return [{ kind: 'table', table: { title: words(item.title), columns: item.columns.map(words), rows } }];
    }
  }
  return typeof item.text === 'string' ? ofText(item.text) : [{ kind: 'data', value: item }];
}

/** Many servers say their data as text too, for those that know no other. */
function isTextOf(item: Json, data: unknown): boolean {
  return data !== undefined && data !== null && item.kind === 'text' && typeof item.text === 'string' && canonical(parse(item.text)) === canonical(data);
}

function ofText(text: string): Block[] {
  if (text.trim() === '') return [];
  const value = parse(text);
  return value === undefined ? [{ kind: 'text', text }] : ofValue(value);
}

/** Data as tables where it is a list of flat objects, or little more than such lists. */
function ofValue(value: unknown): Block[] {
  const table = tableOf(value, '');
  if (table) return [{ kind: 'table', table }];
  if (!isObject(value)) return typeof value === 'string' ? [{ kind: 'text', text: value }] : [{ kind: 'data', value }];
  const members = Object.entries(value);
  const tables = members.flatMap(([name, member]) => tableOf(member, name) ?? []);
  const others = members.filter(([name, member]) => !tableOf(member, name));
  if (tables.length === 0 || !others.every(([, member]) => isScalar(member))) return [{ kind: 'data', value }];
  const facts: Block[] = others.length > 0 ? [{ kind: 'data', value: Object.fromEntries(others) }] : [];
  return [...facts, ...tables.map((one): Block => ({ kind: 'table', table: one }))];
}

/** A list of flat objects as a table, its columns in the order in which they are met. */
export function tableOf(value: unknown, title: string): Table | null {
  if (!Array.isArray(value) || value.length === 0 || !value.every(isFlat)) return null;
  const columns = [...new Set(value.flatMap((row) => Object.keys(row)))];
  if (columns.length === 0 || columns.length > COLUMNS) return null;
  return { title, columns, rows: value.map((row) => columns.map((column) => row[column])) };
}

function isFlat(row: unknown): row is Json {
  return isObject(row) && Object.values(row).every((cell) => isScalar(cell) || (Array.isArray(cell) && cell.length <= LISTED && cell.every(isScalar)));
}

function isScalar(value: unknown): boolean {
  return value === null || value === undefined || typeof value !== 'object';
}

function linkOf(item: Json): Link {
  const uri = words(item.uri);
  const url = URL.canParse(uri) ? new URL(uri) : null;
  const isWeb = url !== null && /^https?:$/.test(url.protocol);
  const name = words(item.title) || words(item.name) || uri;
  return { uri, name, about: words(item.description), href: isWeb ? url.href : null, host: isWeb ? url.host : '' };
}

/** A cell as words. */
export function cellText(cell: unknown): string {
  if (cell === null || cell === undefined) return '';
  if (Array.isArray(cell)) return cell.map(cellText).join(', ');
  return typeof cell === 'object' ? JSON.stringify(cell) : String(cell);
}

/** A table as spreadsheets take it from the clipboard. */
export function tableText({ columns, rows }: Table): string {
  const line = (cells: unknown[]) => cells.map((cell) => cellText(cell).replace(/[\t\n\r]+/g, ' ')).join('\t');
  return [line(columns), ...rows.map(line)].join('\n');
}

/** Columns that hold numbers alone stand at the right. */
export function isNumeric({ rows }: Table, column: number): boolean {
  const cells = rows.map((row) => row[column]).filter((cell) => cell !== null && cell !== undefined && cell !== '');
  return cells.length > 0 && cells.every((cell) => typeof cell === 'number');
}

/** The images of a result: what is seen of it without opening it. */
export function imagesOf(result: unknown): Part[] {
  if (!isObject(result) || !Array.isArray(result.content)) return [];
  return blocksOf({ content: result.content.filter((item) => item?.kind === 'image') }).flatMap((block) => (block.kind === 'media' ? [block.part] : []));
}

/** The end of a long text, from the beginning of a line. */
export function tail(text: string, chars: number): { text: string; isCut: boolean } {
  if (text.length <= chars) return { text, isCut: false };
  const end = text.slice(-chars);
  return { text: end.slice(end.indexOf('\n') + 1), isCut: true };
}

/** A file's name for what is kept of a result. */
export function resultName(tool: string, mime: string): string {
  const end = mime.startsWith('application/json') ? 'json' : 'txt';
  return `${tool.replace(/[^\w.-]+/g, '_') || 'result'}.${end}`;
}

function words(value: unknown): string {
  return value === undefined || value === null ? '' : typeof value === 'string' ? value : JSON.stringify(value);
}

/** JSON that is more than a word or a number, which as text are better left as they are; undefined where it is none. */
function parse(text: string): unknown {
  if (!/^\s*[[{]/.test(text)) return undefined;
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function canonical(value: unknown): string | undefined {
  return JSON.stringify(value, (_, member) =>
    isObject(member) ? Object.fromEntries(Object.entries(member).sort(([a], [b]) => (a < b ? -1 : 1))) : member,
  );
}
