/** What is different between two texts, or two definitions of a tool. Pure. */
import { isObject } from './forms';

export interface Piece {
  change: 'same' | 'gone' | 'new';
  text: string;
}

/** Larger comparisons than this are not made piece by piece. */
const MOST_STEPS = 2_000_000;
/** So many lines are shown around a change. */
const AROUND = 2;

/** How one list of tokens becomes another, by their longest common subsequence; equal neighbours are joined. */
export function diff(before: string[], after: string[]): Piece[] {
  let head = 0;
  while (head < before.length && head < after.length && before[head] === after[head]) head += 1;
  let foot = 0;
  while (foot < before.length - head && foot < after.length - head && before.at(-1 - foot) === after.at(-1 - foot)) foot += 1;
  const pieces: Piece[] = [];
  const add = (change: Piece['change'], text: string) => {
    const last = pieces.at(-1);
    if (last?.change === change) last.text += text;
    else pieces.push({ change, text });
  };
  for (const token of before.slice(0, head)) add('same', token);
  for (const [change, token] of middle(before.slice(head, before.length - foot), after.slice(head, after.length - foot))) add(change, token);
  for (const token of before.slice(before.length - foot)) add('same', token);
  return pieces;
}

function middle(a: string[], b: string[]): [Piece['change'], string][] {
  const gone = (tokens: string[]) => tokens.map((token): [Piece['change'], string] => ['gone', token]);
  const added = (tokens: string[]) => tokens.map((token): [Piece['change'], string] => ['new', token]);
  if (a.length * b.length > MOST_STEPS) return [...gone(a), ...added(b)];
  const width = b.length + 1;
  const common = new Uint32Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      const at = i * width + j;
      common[at] = a[i] === b[j] ? common[at + width + 1]! + 1 : Math.max(common[at + width]!, common[at + 1]!);
    }
  }
  const out: [Piece['change'], string][] = [];
  let [i, j] = [0, 0];
  while (i < a.length && j < b.length) {
    if (a[i] === b[j]) {
      out.push(['same', a[i]!]);
      i += 1;
      j += 1;
    } else if (common[(i + 1) * width + j]! >= common[i * width + j + 1]!) out.push(['gone', a[i++]!]);
    else out.push(['new', b[j++]!]);
  }
  return [...out, ...gone(a.slice(i)), ...added(b.slice(j))];
}

export function diffWords(before: string, after: string): Piece[] {
  const split = (text: string) => text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) ?? [];
  return diff(split(before), split(after));
}

export interface Line {
  change: Piece['change'] | 'skipped';
  text: string;
}

/** Line by line; what is the same far from any change is left out. */
export function diffLines(before: string, after: string): Line[] {
  const split = (text: string) => text.split('\n').map((line) => `${line}\n`);
  const lines = diff(split(before), split(after)).flatMap(({ change, text }) => text.slice(0, -1).split('\n').map((line): Line => ({ change, text: line })));
  const isNear = lines.map((_, at) => lines.slice(Math.max(0, at - AROUND), at + AROUND + 1).some((line) => line.change !== 'same'));
  return lines.flatMap((line, at): Line[] => {
    if (isNear[at]) return [line];
    return at > 0 && !isNear[at - 1] ? [] : [{ change: 'skipped', text: '…' }];
  });
}

/** What has changed in a tool's definition: its description, its arguments, its risk. */
export interface DefinitionChange {
  description: Piece[] | null;
  input: Line[] | null;
  risk: { before: string; after: string } | null;
}

export function diffDefinitions(before: unknown, after: unknown): DefinitionChange {
  const [a, b] = [isObject(before) ? before : {}, isObject(after) ? after : {}];
  const [inputA, inputB] = [ordered(a.input), ordered(b.input)];
  const [textA, textB] = [String(a.description ?? ''), String(b.description ?? '')];
  return {
    description: textA === textB ? null : diffWords(textA, textB),
    input: inputA === inputB ? null : diffLines(inputA, inputB),
    risk: a.risk === b.risk ? null : { before: String(a.risk ?? ''), after: String(b.risk ?? '') },
  };
}

/** JSON in which the order of members makes no difference. */
function ordered(value: unknown): string {
  const sort = (_: string, member: unknown) => (isObject(member) ? Object.fromEntries(Object.entries(member).sort(([x], [y]) => (x < y ? -1 : 1))) : member);
  return JSON.stringify(value ?? {}, sort, 2);
}
