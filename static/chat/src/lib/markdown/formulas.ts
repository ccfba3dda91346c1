/**
 * Where formulas stand in a text: `$…$`, `$$…$$`, `\(…\)` and `\[…\]`, closed ones only. Pure; what is found is drawn by
 * `math.svelte.ts`.
 *
 * A dollar is money more often than mathematics: `$…$` is a formula only where nothing but the formula touches its
 * dollars, no digit or letter follows it, and it does not read like `$5 or US$`.
 */
import type { TokenizerAndRendererExtension, Tokens } from 'marked';

export interface FormulaToken extends Tokens.Generic {
  tex: string;
  display: boolean;
}

interface Found {
  raw: string;
  tex: string;
  display: boolean;
}

const DISPLAY = /^(?:\$\$((?:\\[\s\S]|[^\\$])+?)\$\$|\\\[((?:(?!\\\])[\s\S])+?)\\\])/;
const INLINE = /^(?:\$((?:\\[^\n]|[^\\$\n`]|\n(?![ \t]*\n))+?)\$|\\\(((?:(?!\\\)|\n[ \t]*\n)[\s\S])+?)\\\))/;

function displayAt(text: string): Found | null {
  const match = DISPLAY.exec(text);
  const tex = (match?.[1] ?? match?.[2] ?? '').trim();
  return match && tex !== '' && !/\n[ \t]*\n/.test(tex) ? { raw: match[0], tex, display: true } : null;
}

function inlineAt(text: string): Found | null {
  const match = INLINE.exec(text);
  if (!match) return null;
  const [raw, dollars, parens] = match;
  if (parens !== undefined) return parens.trim() === '' ? null : { raw, tex: parens.trim(), display: false };
  if (/^\s|\s$/.test(dollars!) || /[\p{L}\p{N}$]/u.test(text.charAt(raw.length)) || isMoney(dollars!)) return null;
  return { raw, tex: dollars!, display: false };
}

/** `5 or US`: a number, then words rather than symbols. */
function isMoney(tex: string): boolean {
  return !tex.includes('\\') && /^[+-]?[\d.,]+\s/.test(tex) && /\p{L}{2,}/u.test(tex);
}

/** The formula that begins at the start of a text; `before` is the character in front of it. */
export function formulaAt(text: string, before = ''): Found | null {
  if (text.startsWith('$') && /[\p{L}\p{N}$\\]/u.test(before)) return null;
  return displayAt(text) ?? (text.startsWith('$$') ? null : inlineAt(text));
}

/** Where the next formula could begin. */
function nextStart(text: string): number | undefined {
  return /\$|\\[([]/.exec(text)?.index;
}

/** Whether a block's source could hold a formula; cheap, and right when it says no. */
export function mayHoldFormula(raw: string): boolean {
  return /\$|\\[([]/.test(raw);
}

/** A display formula that is begun at the start of a block and not closed yet. */
export function isOpenDisplay(raw: string): boolean {
  return /^\s*(?:\$\$|\\\[)/.test(raw) && displayAt(raw.trimStart()) === null;
}

/** The text without its closed formulas, for whoever counts the marks of emphasis. */
export function withoutFormulas(text: string): string {
  let out = '';
  for (let i = 0; i < text.length; ) {
    const found = text[i] === '$' || text[i] === '\\' ? formulaAt(text.slice(i), text[i - 1]) : null;
    if (!found) out += text[i];
    i += found?.raw.length ?? 1;
  }
  return out;
}

export const formulaExtensions: (TokenizerAndRendererExtension & { renderer: (token: Tokens.Generic) => string })[] = [
  {
    name: 'formulaBlock',
    level: 'block',
    start: (src) => /\n {0,3}(?:\$\$|\\\[)/.exec(src)?.index,
    tokenizer(src) {
      const lead = /^ {0,3}/.exec(src)![0];
      const found = displayAt(src.slice(lead.length));
      const end = found && /^[ \t]*(?:\n+|$)/.exec(src.slice(lead.length + found.raw.length));
      if (!found || !end) return undefined;
      return { type: 'formulaBlock', raw: lead + found.raw + end[0], tex: found.tex, display: true };
    },
    renderer: (token) => html(token as FormulaToken),
  },
  {
    name: 'formula',
    level: 'inline',
    start: nextStart,
    tokenizer(src, tokens) {
      const found = formulaAt(src, tokens.at(-1)?.raw.at(-1));
      return found ? { type: 'formula', ...found } : undefined;
    },
    renderer: (token) => html(token as FormulaToken),
  },
];

/** Its source, for `math.svelte.ts` to draw over. */
function html({ tex, display }: FormulaToken): string {
  const text = tex.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
  return display ? `<div class="formula">${text}</div>` : `<span class="formula">${text}</span>`;
}
