/**
 * Cuts a growing markdown text into top-level blocks.
 *
 * A block that can no longer change is *closed*: it keeps its object for good, so whoever renders it does so once.
 * Only the tail is lexed again when text arrives. Knows nothing of HTML or of the DOM; `render.ts` stands above it.
 */
import { Lexer, Marked, type Token, type TokensList } from 'marked';
import { formulaExtensions, withoutFormulas } from './formulas';

export interface Block {
  /** Its place in the text; stable while the text only grows. */
  readonly index: number;
  readonly raw: string;
  readonly token: Token;
  /** The definitions of link references that hold for it. */
  readonly links: TokensList['links'];
  /** Whether more text may still change it. */
  readonly open: boolean;
}

/** How this page reads markdown; lexing and parsing take it alike. */
export const MARKED_OPTIONS = new Marked({ gfm: true, breaks: false, extensions: formulaExtensions }).defaults;

/**
 * How many of the newest blocks stay open. The last one grows; the one before it can still be changed by a line that
 * is not complete yet (`2` becoming the list item `2.`, `-` becoming an underline of the paragraph above).
 */
const OPEN_BLOCKS = 2;

export class BlockSplitter {
  #closedText = '';
  #closed: Block[] = [];
  #open: Block[] = [];
  #text = '';
  #final = false;

  /** Take the text as it is now and answer all of its blocks, the closed ones with the objects they had before. */
  update(text: string, growing: boolean): Block[] {
    if (text === this.#text && growing !== this.#final) return [...this.#closed, ...this.#open];
    if (!growing) return this.#finish(text);
    if (this.#final || !text.startsWith(this.#closedText)) this.#reset();
    this.#text = text;
    this.#lexTail(text.slice(this.#closedText.length));
    return [...this.#closed, ...this.#open];
  }

  #reset() {
    this.#closedText = '';
    this.#closed = [];
    this.#open = [];
    this.#final = false;
  }

  #lexTail(tail: string) {
    const tokens = Lexer.lex(tail, MARKED_OPTIONS);
    const solid = tokens.filter((token) => token.type !== 'space').length;
    let toClose = Math.max(0, solid - OPEN_BLOCKS);
    const open: Block[] = [];
    for (const token of tokens) {
      const closing = toClose > 0;
      if (closing) this.#closedText += token.raw;
      if (token.type === 'space') continue;
      if (closing) {
        this.#closed.push(this.#make(this.#closed.length, token, tokens.links, false));
        toClose -= 1;
      } else {
        open.push(this.#make(this.#closed.length + open.length, token, tokens.links, true));
      }
    }
    this.#open = open;
  }

  /** The whole text at once: late link definitions take hold, unchanged blocks keep their objects. */
  #finish(text: string): Block[] {
    const before = [...this.#closed, ...this.#open];
    const tokens = Lexer.lex(text, MARKED_OPTIONS);
    const hasLinks = Object.keys(tokens.links).length > 0;
    this.#closed = tokens
      .filter((token) => token.type !== 'space')
      .map((token, index) => {
        const old = before[index];
        return !hasLinks && old && !old.open && old.raw === token.raw ? old : this.#make(index, token, tokens.links, false);
      });
    this.#open = [];
    this.#closedText = text;
    this.#text = text;
    this.#final = true;
    return [...this.#closed];
  }

  #make(index: number, token: Token, links: TokensList['links'], open: boolean): Block {
    return { index, raw: token.raw, token, links, open };
  }
}

/**
 * The part of an open block's source that can be shown without taking it back a moment later: half a table header, a
 * bare list marker or a fence that is still being typed is withheld, emphasis and code that are open are closed.
 */
export function settle(raw: string): string {
  const fence = /^ {0,3}(`{3,}|~{3,})/.exec(raw);
  if (fence) return settleFence(raw, fence[1]!);
  let text = withholdLastLine(raw);
  if (isHalfTable(text)) return '';
  text = text.replace(/!?\[[^\]\n]*$|!?\[[^\]\n]*\]\([^)\n]*$/, (link) => link.replace(/^!?\[/, '').replace(/\](\([^)]*)?$/, ''));
  return closeInline(text);
}

/** A fence's language is unknown until its line ends, and its end is not text of the code. */
function settleFence(raw: string, mark: string): string {
  if (!raw.includes('\n')) return mark + '\n';
  const lastLine = raw.slice(raw.lastIndexOf('\n') + 1);
  const half = lastLine.trim();
  if (half && half.length < mark.length && mark.startsWith(half)) return raw.slice(0, raw.lastIndexOf('\n'));
  return raw;
}

const UNDECIDED_LINE = /^\s{0,3}(?:[-*+=_>#|]|\d{1,9}[.)]?|[-=_*]{2,}|#{1,6}|`{1,3}|~{1,3})\s*$/;

function withholdLastLine(raw: string): string {
  const cut = raw.lastIndexOf('\n');
  const last = raw.slice(cut + 1);
  return UNDECIDED_LINE.test(last) ? raw.slice(0, Math.max(cut, 0)) : raw;
}

/** A header row is a table only once its delimiter row is complete. */
function isHalfTable(text: string): boolean {
  const lines = text.trimEnd().split('\n');
  if (!lines[0]?.trimStart().startsWith('|')) return false;
  const delimiter = lines[1];
  if (delimiter === undefined) return true;
  if (!/^[\s|:-]*$/.test(delimiter)) return false;
  return lines.length === 2 && countCells(delimiter) < countCells(lines[0]);
}

function countCells(row: string): number {
  return row.trim().replace(/^\||\|$/g, '').split('|').filter((cell) => cell.trim()).length;
}

/** Close what is open in the last paragraph of the text: code spans, bold, italics, strike. */
function closeInline(text: string): string {
  const start = text.lastIndexOf('\n\n') + 1;
  const last = text.slice(start);
  const outsideCode = withoutFormulas(last).replace(/\\[\s\S]/g, '').replace(/(`+)[\s\S]*?\1(?!`)/g, '');
  const tick = /(`+)[^`]*$/.exec(outsideCode);
  if (tick) {
    const body = outsideCode.slice(tick.index + tick[1]!.length);
    return body.trim() ? text + tick[1] : text.slice(0, text.length - tick[0].length);
  }
  const trailing = /(\*{1,3}|_{1,3}|~~?)$/.exec(text);
  let closed = text;
  let marks = outsideCode;
  if (trailing && opens(marks, trailing[1]!)) {
    closed = text.slice(0, -trailing[1]!.length);
    marks = marks.slice(0, -trailing[1]!.length);
  }
  const inner = marks.replace(/^\s*[*+-]\s/gm, '');
  let tail = '';
  const bold = count(inner, /\*\*/g) % 2 === 1;
  const rest = inner.replace(/\*\*/g, '');
  if (count(rest, /(?<![\s*])\*|\*(?![\s*])/g) % 2 === 1) tail += '*';
  if (bold) tail += '**';
  if (count(inner, /~~/g) % 2 === 1) tail += '~~';
  if (!tail) return closed;
  return closed.replace(/\s+$/, '') + tail;
}

/** Whether the mark at the end of the text opens an emphasis, rather than closing one. */
function opens(text: string, mark: string): boolean {
  const before = text.slice(0, -mark.length);
  if (mark[0] === '_') return /(^|\s)$/.test(before);
  const escaped = mark.replace(/[*~]/g, '\\$&');
  return count(before, new RegExp(escaped, 'g')) % 2 === 0 && /(^|[\s([{"'—–-])$/.test(before);
}

function count(text: string, pattern: RegExp): number {
  return text.match(pattern)?.length ?? 0;
}
