/**
 * Turns one markdown block into safe DOM: `marked` writes HTML, DOMPurify lets through what is on the list below.
 *
 * Nothing here fetches anything: an image from another host becomes a link to it. Code is highlighted where the
 * highlighter (`highlight.ts`) is there already; it comes later by itself and bumps `highlighter.version`. So it is with
 * formulas (`math.svelte.ts`). A closed diagram gets a place here, and is drawn by `diagrams.svelte.ts`.
 */
import DOMPurify, { type Config } from 'dompurify';
import { Parser, Renderer, Lexer, type Tokens } from 'marked';
import { MARKED_OPTIONS, settle, type Block } from './blocks';
import { isDiagram } from './diagrams.svelte';
import { isOpenDisplay } from './formulas';
import { highlight } from './highlight.svelte';
import { drawFormulas } from './math.svelte';

const ALLOWED: Config = {
  ALLOWED_TAGS: [
    'a', 'b', 'blockquote', 'br', 'button', 'code', 'dd', 'del', 'details', 'div', 'dl', 'dt', 'em', 'figure', 'h1', 'h2',
    'h3', 'h4', 'h5', 'h6', 'hr', 'i', 'img', 'input', 'kbd', 'li', 'mark', 'ol', 'p', 'pre', 's', 'span', 'strong',
    'sub', 'summary', 'sup', 'table', 'tbody', 'td', 'th', 'thead', 'tr', 'u', 'ul',
  ],
  ALLOWED_ATTR: [
    'align', 'alt', 'checked', 'class', 'data-act', 'disabled', 'href', 'open', 'rel', 'src', 'start', 'target', 'title',
    'type', 'aria-label', 'tabindex', 'role',
  ],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:|tel:|#|\/(?!\/)|data:image\/(?:png|jpe?g|gif|webp|avif);)/i,
  // DOMPurify holds every attribute that is not named here against the expression above.
  ADD_URI_SAFE_ATTR: ['align', 'class', 'data-act', 'rel', 'role', 'start', 'tabindex', 'target', 'type'],
  RETURN_DOM_FRAGMENT: true,
};

/** Longer than this, code that still grows stays plain until it is closed. */
const HIGHLIGHT_OPEN_CHARS = 12_000;

const OWN_IMAGE = /^(?:\/(?!\/)|data:image\/(?:png|jpe?g|gif|webp|avif);)/i;
const SAFE_LINK = /^(?:https?:|mailto:|tel:|#|\/(?!\/))/i;

export function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
}

function codeBlock(code: string, lang: string, live: boolean, closed: boolean): string {
  const name = (/^[\w+#.-]+/.exec(lang)?.[0] ?? '').toLowerCase();
  const draws = closed && isDiagram(name, code);
  const body = live && code.length > HIGHLIGHT_OPEN_CHARS ? escapeHtml(code) : highlight(code, name) ?? escapeHtml(code);
  return (
    `<figure class="code${draws ? ' diagram' : ''}"><div class="code-bar"><span class="code-lang">${escapeHtml(name || 'text')}</span>` +
    (draws ? '<button type="button" class="code-act" data-act="source">Source</button>' : '') +
    '<button type="button" class="code-act" data-act="wrap">Wrap</button>' +
    '<button type="button" class="code-act" data-act="copy">Copy</button></div>' +
    (draws ? '<div class="diagram-view" role="img" aria-label="Diagram"></div>' : '') +
    `<pre tabindex="0"><code class="hljs">${body}</code></pre></figure>`
  );
}

function isFenceClosed(raw: string): boolean {
  const mark = /^ {0,3}(`{3,}|~{3,})/.exec(raw)?.[1];
  return mark !== undefined && new RegExp(`\\n {0,3}${mark}+[ \\t]*\\n`).test(raw);
}

class ChatRenderer extends Renderer {
  constructor(private readonly live: boolean) {
    super();
  }

  override code({ text, lang, raw }: Tokens.Code): string {
    return codeBlock(text, lang ?? '', this.live, !this.live || isFenceClosed(raw));
  }

  override table(token: Tokens.Table): string {
    return `<div class="table" tabindex="0" role="region" aria-label="Table">${super.table(token)}</div>`;
  }

  override link({ href, title, tokens }: Tokens.Link): string {
    const text = this.parser.parseInline(tokens);
    return SAFE_LINK.test(href) ? anchor(href, text, title) : text;
  }

  override image({ href, title, text }: Tokens.Image): string {
    if (OWN_IMAGE.test(href)) return `<img src="${escapeHtml(href)}" alt="${escapeHtml(text)}">`;
    const label = `Image: ${text || title || href}`;
    return /^https?:/i.test(href) ? anchor(href, escapeHtml(label), title ?? href) : escapeHtml(label);
  }

  override html({ text }: Tokens.HTML | Tokens.Tag): string {
    return /^<\/?(?:b|br|dd|details|dl|dt|i|kbd|mark|s|sub|summary|sup|u)(?:\s+open)?\s*\/?>\s*$/i.test(text)
      ? text
      : escapeHtml(text);
  }
}

function anchor(href: string, html: string, title?: string | null): string {
  const away = href.startsWith('#') ? '' : ' target="_blank" rel="noopener noreferrer nofollow"';
  return `<a href="${escapeHtml(href)}"${title ? ` title="${escapeHtml(title)}"` : ''}${away}>${html}</a>`;
}

const renderers = { live: new ChatRenderer(true), still: new ChatRenderer(false) };

/** The HTML of a block before it is cleaned. An open block shows what will stand. */
export function blockHtml(block: Block): string {
  if (!block.open) return Parser.parse([block.token], { ...MARKED_OPTIONS, renderer: renderers.still });
  if (isOpenDisplay(block.raw)) return `<p class="formula-source">${escapeHtml(block.raw)}</p>`;
  const tokens = Lexer.lex(settle(block.raw), MARKED_OPTIONS);
  return Parser.parse(tokens, { ...MARKED_OPTIONS, renderer: renderers.live });
}

export function cleanHtml(html: string): DocumentFragment {
  return DOMPurify.sanitize(html, ALLOWED) as unknown as DocumentFragment;
}

export function renderBlock(block: Block): DocumentFragment {
  const fragment = cleanHtml(blockHtml(block));
  drawFormulas(fragment);
  return fragment;
}
