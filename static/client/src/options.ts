/**
 * What an application hands to `Client`, and the shapes of the tools that it provides.
 *
 * Types and defaults only.
 */

/** Time and chance, so that tests can hold both. Times are Unix milliseconds. */
export interface Clock {
  now(): number;
  setTimeout(fn: () => void, ms: number): unknown;
  clearTimeout(timer: any): void;
  /** Uniform in [0, 1). */
  random(): number;
}

export const systemClock: Clock = {
  now: () => Date.now(),
  setTimeout: (fn, ms) => globalThis.setTimeout(fn, ms),
  clearTimeout: (timer) => globalThis.clearTimeout(timer),
  random: () => Math.random(),
};

export type Status = 'idle' | 'connecting' | 'open' | 'waiting' | 'closed';

export type ToolContent = { kind: string; [member: string]: unknown };
/** What a tool's run gives: content as it is, a text, or any JSON value, which is sent as text. */
export type ToolResult = { content: ToolContent[]; [member: string]: unknown } | string | undefined | void | unknown;

export interface ToolContext {
  /** Aborted when the server cancels, at the deadline, and when the session is lost. */
  readonly signal: AbortSignal;
  readonly call: string;
  readonly run: string;
  /** True where the server sent the call a second time after a cut. */
  readonly redelivered: boolean;
  progress(done: number, total?: number, text?: string): void;
}

/** A tool that this client offers to the runs that it starts (protocol section 7). */
export interface ClientTool {
  name: string;
  description: string;
  /** JSON Schema of the arguments. */
  input: object;
  /** The server may send a call again after a cut. */
  idempotent?: boolean;
  timeout_ms?: number;
  /** A person is asked before what is dangerous; `read` by default. */
  risk?: 'read' | 'write' | 'danger';
  run(args: any, ctx: ToolContext): ToolResult | Promise<ToolResult>;
}

export interface Options {
  /** `ws(s)://host/ws`; the page's own host by default. */
  url?: string;
  client: { id: string; kind?: string; name?: string; version?: string };
  /** A bearer token, or what gives one; asked anew for each connection. */
  token?: string | (() => string | undefined | Promise<string | undefined>);
  caps?: { ask?: string[] };
  tools?: ClientTool[];
  /** Where the session survives a reload: `sessionStorage` in a browser by default, nowhere elsewhere. */
  storage?: Storage | null;
  webSocket?: typeof WebSocket;
  clock?: Clock;
  /** Folds for plugins' own topics, by the part of the topic's name before the colon. */
  reducers?: Record<string, (state: any, e: string, d: any) => void>;
}

export interface RequestOptions {
  signal?: AbortSignal;
  timeout_ms?: number;
}
