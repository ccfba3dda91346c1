/**
 * The tools that this client provides, and the server's calls of them (protocol section 7).
 *
 * A call runs once, however often it arrives: what runs goes on over a cut, what is answered is answered again from
 * memory until its deadline. One that must not run twice and may have run before this page was loaded is refused.
 * Frames come from `client` and go out through it.
 */
import { RpcError } from './errors';
import type { ClientTool, Clock, ToolResult } from './options';
import type { ErrorBody, Id, RequestFrame } from './wire';

/** For a call that names no deadline. */
const DEADLINE_MS = 60_000;

export interface Outlet {
  readonly isOpen: boolean;
  readonly limits: { frame: number };
  sendText(text: string): void;
  frameBytes(text: string): number;
}

interface Answer { id: Id; result?: unknown; error?: ErrorBody }

interface OpenCall {
  abort: AbortController;
  timer: unknown;
  /** After this the server has ended the call itself. */
  until: number;
  /** The encoded answer; null while the tool runs. */
  answer: string | null;
}

function failure(code: number, kind: string, message: string): ErrorBody {
  return { code, message, data: { kind, retry: false } };
}

function contentOf(result: ToolResult): object {
  if (result === undefined || result === null) return { content: [] };
  if (typeof result === 'object' && Array.isArray((result as { content?: unknown }).content)) return result;
  const text = typeof result === 'string' ? result : JSON.stringify(result);
  return { content: [{ kind: 'text', text }] };
}

export class Toolbox {
  readonly #tools: Map<string, ClientTool>;
  readonly #calls = new Map<Id, OpenCall>();

  #isTold: boolean;

  constructor(tools: ClientTool[] | undefined, private readonly outlet: Outlet, private readonly clock: Clock) {
    this.#tools = new Map((tools ?? []).map((tool) => [tool.name, tool]));
    this.#isTold = tools !== undefined;
  }

  add(tool: ClientTool): void {
    this.#tools.set(tool.name, tool);
    this.#isTold = true;
  }

  drop(name: string): void {
    this.#tools.delete(name);
    this.#isTold = true;
  }

  /** The tools as `hello` offers them; undefined where the application never had any. */
  offer(): object[] | undefined {
    if (!this.#isTold) return undefined;
    return [...this.#tools.values()].map(({ run: _, ...declaration }) => declaration);
  }

  /** Takes a `tool.call`. */
  call(frame: RequestFrame): void {
    this.#forgetExpired();
    const known = this.#calls.get(frame.id);
    if (known) {
      if (known.answer !== null) this.#send(known.answer);
      return;
    }
    const params = frame.params ?? {};
    const deadline_ms = typeof params.deadline_ms === 'number' ? params.deadline_ms : DEADLINE_MS;
    const call: OpenCall = { abort: new AbortController(), timer: null, until: this.clock.now() + deadline_ms, answer: null };
    this.#calls.set(frame.id, call);
    const tool = this.#tools.get(params.name);
    if (!tool) {
      this.#answer(call, { id: frame.id, error: failure(404, 'tool.unknown', `no tool ${params.name}`) });
      return;
    }
    if (params.redelivered === true && !tool.idempotent) {
      const error = failure(409, 'tool.lost', `${tool.name}: whether it was done before is not known`);
      this.#answer(call, { id: frame.id, error });
      return;
    }
    call.timer = this.clock.setTimeout(
      () => this.#stop(frame.id, failure(408, 'tool.timeout', `${tool.name}: its time is over`)), deadline_ms);
    void this.#run(frame.id, call, tool, params);
  }

  /** Takes an `rpc.cancel` of the server: the call is answered 499 at once and its tool told to stop. */
  cancel(id: Id): void {
    this.#stop(id, failure(499, 'cancelled', 'cancelled'));
  }

  /** The session goes on: answers whose arrival is not certain are given again, which is allowed for any open call. */
  resume(): void {
    this.#forgetExpired();
    for (const call of this.#calls.values()) if (call.answer !== null) this.#send(call.answer);
  }

  /** The session is lost, and its calls with it; their ids may come again with another meaning. */
  reset(): void {
    for (const call of this.#calls.values()) {
      this.clock.clearTimeout(call.timer);
      if (call.answer === null) call.abort.abort(new DOMException('the session is lost', 'AbortError'));
    }
    this.#calls.clear();
  }

  async #run(id: Id, call: OpenCall, tool: ClientTool, params: any): Promise<void> {
    const context = {
      signal: call.abort.signal,
      call: String(params.call),
      run: String(params.run),
      redelivered: params.redelivered === true,
      progress: (done: number, total?: number, text?: string) => this.#progress(id, call, { id, done, total, text }),
    };
    try {
      this.#answer(call, { id, result: contentOf(await tool.run(params.args ?? {}, context)) });
    } catch (error) {
      // What it threw, or that its result is no JSON.
      this.#answer(call, { id, error: this.#errorBody(tool, error) });
    }
  }

  #errorBody(tool: ClientTool, error: unknown): ErrorBody {
    if (error instanceof RpcError) {
      return { code: error.code, message: error.message, data: { ...error.data, kind: error.kind, retry: error.retry } };
    }
    return failure(-32603, 'tool.failed', `${tool.name}: ${error instanceof Error ? error.message : String(error)}`);
  }

  #progress(id: Id, call: OpenCall, params: object): void {
    if (this.#calls.get(id) !== call || call.answer !== null) return;
    this.#send(JSON.stringify({ method: 'rpc.progress', params }));
  }

  #stop(id: Id, error: ErrorBody): void {
    const call = this.#calls.get(id);
    if (!call || call.answer !== null) return;
    this.#answer(call, { id, error });
    call.abort.abort(new DOMException(error.message, 'AbortError'));
  }

  /** Answers a call, unless it was answered: by cancel or deadline, or because it belongs to a session that is lost. */
  #answer(call: OpenCall, answer: Answer): void {
    if (call.answer !== null || this.#calls.get(answer.id) !== call) return;
    let text = JSON.stringify(answer);
    const limit = this.outlet.limits.frame;
    if (this.outlet.frameBytes(text) > limit) {
      const error = failure(413, 'client.frame', `the result is larger than ${limit} bytes`);
      text = JSON.stringify({ id: answer.id, error });
    }
    this.clock.clearTimeout(call.timer);
    call.answer = text;
    this.#send(text);
  }

  #send(text: string): void {
    if (this.outlet.isOpen) this.outlet.sendText(text);
  }

  #forgetExpired(): void {
    const now = this.clock.now();
    for (const [id, call] of this.#calls) if (call.answer !== null && call.until <= now) this.#calls.delete(id);
  }
}
