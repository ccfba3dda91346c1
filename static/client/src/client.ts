/**
 * The socket client: one connection after the other, presented as one that never ends (protocol sections 1, 2 and 8).
 *
 * It owns the socket, the hello, the heartbeat, and the decision whether and when to come back. Topics, requests and
 * tools live in the modules below it (`topics`, `calls`, `toolbox`), which survive a connection; it hands them frames in
 * the order received. Applications stand above and see nothing else.
 */
import { comesBack, jitter } from './backoff';
import { Calls, frameBytes } from './calls';
import { clientError, RpcError } from './errors';
import { systemClock, type ClientTool, type Clock, type Options, type RequestOptions, type Status } from './options';
import type { Operations } from './protocol.gen';
import { pageStorage, SessionStore } from './session';
import type { ConfigDoc } from './shapes';
import { Toolbox } from './toolbox';
import type { Change, TopicHandle } from './topic';
import { Topics } from './topics';
import {
  sortFrame, type Bye, type HelloAnswer, type Limits, type NotificationFrame, type PingFrame, type PingTimes,
  type RequestFrame, type ResponseFrame, type ServerInfo, type SessionInfo, type UserInfo,
} from './wire';

const SUBPROTOCOL = 'sag.1.json';
/** Until a hello tells others: the numbers of protocol section 2. */
const PING: PingTimes = { every_ms: 25_000, timeout_ms: 10_000 };
const LIMITS: Limits = { frame: 1_048_576, inflight: 64, topics: 128 };
/** A connection that lived this long was a good one: the next attempt begins with the shortest wait again. */
const STABLE_MS = 5_000;
/** After `wake`: how long the server may take for any sign of life. */
const PROBE_MS = 5_000;
/** After an error for an answer to hello: how long the server may take to close, before we do. */
const REFUSED_MS = 2_000;

export interface StartRun {
  conv?: string;
  kind?: string;
  key?: string;
  when?: 'queue' | 'steer' | 'interrupt' | 'reject';
  input: { kind: string; [member: string]: unknown }[];
  config?: ConfigDoc;
  subscribe?: boolean;
  [member: string]: unknown;
}

/** The answer to `run.start` and `run.resume`; `msg` is absent where a run was resumed. */
export type RunAnswer = Operations['run.start']['result'];
export type PatchAnswer = Operations['config.patch']['result'];
export type ConfigAnswer = Operations['config.get']['result'];

/** What `on` tells, by the event's name. */
export interface Events {
  status: Status;
  bye: Bye;
  session: SessionInfo & { tools_refused: string[] };
  /** Faults that belong to no request: a refused hello, a frame or an event that makes no sense, a listener that threw. */
  error: Error;
  heartbeat: PingFrame;
}

/** What `request` takes after the method; params that need no member may be left out. */
type Given<P> = {} extends P ? [params?: P, options?: RequestOptions] : [params: P, options?: RequestOptions];

/** Answers that carry a subscription to the conversation's topic. */
const SUBSCRIBING = new Set(['run.start', 'run.resume']);

export class Client {
  readonly #options: Options;
  readonly #clock: Clock;
  readonly #url: string;
  readonly #store: SessionStore;
  readonly #calls: Calls;
  readonly #topics: Topics;
  readonly #toolbox: Toolbox;
  readonly #listeners = new Map<keyof Events, Set<(value: any) => void>>();

  #status: Status = 'idle';
  #retryAt: number | null = null;
  #user: UserInfo | null = null;
  #limits: Limits | null = null;
  #server: ServerInfo | null = null;
  #session: SessionInfo | null = null;
  #lastBye: Bye | null = null;
  #toolsRefused: string[] = [];

  #socket: WebSocket | null = null;
  /** Grows with each attempt, so that what an older one still does is told apart. */
  #attempt = 0;
  /** Connections in a row that failed or did not last. */
  #failures = 0;
  #helloId: number | null = null;
  #refusal: RpcError | null = null;
  /** The `bye` of this connection. */
  #bye: Bye | null = null;
  #ping: PingTimes = PING;
  #startedAt = 0;
  #openedAt = 0;
  #heardAt = 0;
  #retryTimer: unknown = null;
  #silenceTimer: unknown = null;
  #probeTimer: unknown = null;
  #refusalTimer: unknown = null;

  /** @throws Error where there is neither an `url` nor a page to take it from. */
  constructor(options: Options) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#url = options.url ?? pageUrl();
    const storage = options.storage === undefined ? pageStorage() : options.storage;
    this.#store = new SessionStore(storage, this.#url, options.client.id);
    const line = this.#line();
    this.#calls = new Calls(line, this.#clock);
    this.#topics = new Topics(line, this.#clock, options.reducers ?? {});
    this.#toolbox = new Toolbox(options.tools, line, this.#clock);
  }

  get status(): Status { return this.#status; }
  /** When the next attempt is due (Unix ms), while `status` is `waiting`. */
  get retryAt(): number | null { return this.#retryAt; }
  get user(): UserInfo | null { return this.#user; }
  get limits(): Limits | null { return this.#limits; }
  get server(): ServerInfo | null { return this.#server; }
  get session(): SessionInfo | null { return this.#session; }
  get lastBye(): Bye | null { return this.#lastBye; }
  /** Names of this client's tools that the server does not offer to runs. */
  get toolsRefused(): string[] { return this.#toolsRefused; }

  // ------------------------------------------------------------- life cycle

  /** Connects, and stays connected until `close` or until the server sends this client away for good. */
  connect(): void {
    if (this.#status === 'connecting' || this.#status === 'open') return;
    this.#failures = 0;
    void this.#open();
  }

  /** Closes for good; what waits for an answer is rejected. `connect` may be called again. */
  close(): void {
    if (this.#status === 'closed') return;
    this.#cut(1000);
    this.#end(clientError(503, 'closed', 'the client was closed'));
  }

  /** Call when the page became visible or the network came back: reconnects now, or probes whether the line is alive. */
  wake(): void {
    if (this.#status === 'waiting') {
      void this.#open();
    } else if (this.#status === 'connecting') {
      if (this.#clock.now() - this.#startedAt >= PROBE_MS) this.#lose(1006);
    } else if (this.#status === 'open' && this.#probeTimer === null) {
      // Any answer will do, an error too; the smallest read of the contract, since it gives clients no ping of their own.
      this.#calls.ask('config.get', { scope: `client:${this.#options.client.id}` }, () => undefined);
      this.#probeTimer = this.#clock.setTimeout(() => this.#lose(1006), PROBE_MS);
    }
  }

  on<E extends keyof Events>(event: E, fn: (value: Events[E]) => void): () => void {
    const listener = (value: Events[E]) => fn(value);
    const listeners = this.#listeners.get(event) ?? new Set();
    this.#listeners.set(event, listeners.add(listener));
    return () => listeners.delete(listener);
  }

  // ------------------------------------------------------------- operations

  /**
   * Sends a request and gives its result.
   *
   * While there is no connection it waits for one. What changes something gets an idempotency `key` unless it has one;
   * changes and reads are sent again after a cut until they are answered. Of the hub's own operations the types of
   * params and result are known; for those of plugins give the result's type.
   *
   * @throws RpcError The server's error, or one of the client's own kinds (see `RpcError`).
   */
  request<M extends keyof Operations>(method: M, ...given: Given<Operations[M]['params']>): Promise<Operations[M]['result']>;
  request<R = unknown>(method: string, params?: object, options?: RequestOptions): Promise<R>;
  request(method: string, params: object = {}, options: RequestOptions = {}): Promise<any> {
    if (this.#status === 'closed') return Promise.reject(clientError(503, 'closed', 'the client is closed'));
    if (!SUBSCRIBING.has(method)) return this.#calls.request(method, params, options);
    return this.#calls.request(method, params, options, (result) => this.#adopt(result));
  }

  /** Holds a topic: subscribes where nobody did yet. Release the handle when it is not needed any more. */
  topic<S = any>(name: string, listener?: (state: S, change: Change) => void): TopicHandle<S> {
    return this.#topics.hold<S>(name, listener);
  }

  startRun(params: StartRun, options?: RequestOptions): Promise<RunAnswer> {
    return this.request('run.start', params, options);
  }

  cancelRun(run: string, mode: 'now' | 'after_step' = 'now'): Promise<unknown> {
    return this.request('run.cancel', { run, mode });
  }

  /** Continues an interrupted run. */
  resumeRun(run: string): Promise<RunAnswer> {
    return this.request('run.resume', { run });
  }

  answerAsk(ask: string, choice: string, data?: unknown): Promise<unknown> {
    return this.request('ask.answer', { ask, choice, ...(data === undefined ? {} : { data }) });
  }

  /** Patches config; with `rev` only if nobody else patched since (409 `config.conflict`). */
  patchConfig(
    scope: string, patch: ConfigDoc, options: { rev?: number; apply?: 'next_step' | 'now' } = {},
  ): Promise<PatchAnswer> {
    return this.request('config.patch', { scope, patch, ...options });
  }

  getConfig(scope: string): Promise<ConfigAnswer> {
    return this.request('config.get', { scope });
  }

  // ------------------------------------------------------- tools of its own

  /** Offers a tool to the runs that this client starts, from the next hello on; one of the same name is replaced. */
  addTool(tool: ClientTool): void {
    this.#toolbox.add(tool);
  }

  /** Offers a tool no longer, from the next hello on. */
  dropTool(name: string): void {
    this.#toolbox.drop(name);
  }

  /**
   * Tells the server now of tools that were added or dropped, and gives the names that it refuses.
   *
   * Tools are told in hello alone, so this says hello on a new connection, which goes on where the old one was.
   *
   * @throws RpcError The client is closed, or is sent away.
   */
  offerTools(): Promise<string[]> {
    if (this.#status === 'closed') return Promise.reject(clientError(503, 'closed', 'the client is closed'));
    return new Promise((resolve, reject) => {
      const stop = [
        this.on('session', ({ tools_refused }) => settle(() => resolve(tools_refused))),
        this.on('status', (status) => {
          if (status === 'closed') settle(() => reject(this.#refusal ?? clientError(503, 'closed', 'the client was closed')));
        }),
      ];
      const settle = (how: () => void) => {
        for (const each of stop) each();
        how();
      };
      if (this.#status === 'idle') return;
      this.#cut(1000);
      void this.#open();
    });
  }

  // ------------------------------------------------------------- connecting

  async #open(): Promise<void> {
    const attempt = ++this.#attempt;
    this.#stopTimers();
    this.#retryAt = null;
    this.#refusal = null;
    this.#bye = null;
    this.#ping = PING;
    this.#startedAt = this.#clock.now();
    this.#hear();
    this.#watch();
    this.#setStatus('connecting');
    let token: string | undefined;
    try {
      token = await this.#token();
    } catch (error) {
      if (attempt !== this.#attempt) return;
      this.#fault(error);
      this.#lose(1006);
      return;
    }
    if (attempt === this.#attempt) this.#dial(token);
  }

  async #token(): Promise<string | undefined> {
    const { token } = this.#options;
    return typeof token === 'function' ? await token() : token;
  }

  #dial(token: string | undefined): void {
    let socket: WebSocket;
    try {
      socket = new (this.#options.webSocket ?? WebSocket)(this.#url, [SUBPROTOCOL]);
    } catch (error) {
      this.#fault(error);
      this.#lose(1006);
      return;
    }
    this.#socket = socket;
    socket.onopen = () => {
      if (socket === this.#socket) this.#sendHello(token);
    };
    socket.onmessage = (message) => {
      if (socket === this.#socket) this.#receive(message.data);
    };
    socket.onclose = (event) => {
      if (socket === this.#socket) this.#lose(event.code);
    };
  }

  #sendHello(token: string | undefined): void {
    const { client, caps } = this.#options;
    const tools = this.#toolbox.offer();
    const ticket = this.#store.read();
    this.#helloId = this.#calls.nextId();
    this.#sendText(JSON.stringify({
      id: this.#helloId,
      method: 'hello',
      params: {
        v: 1,
        client,
        ...(token === undefined ? {} : { auth: { scheme: 'bearer', token } }),
        ...(caps ? { caps } : {}),
        topics: this.#topics.greet(),
        ...(tools ? { tools } : {}),
        ...(ticket ? { resume: ticket } : {}),
      },
    }));
  }

  #welcome(answer: HelloAnswer): void {
    const { id, secret, resumed, keep_ms } = answer.session;
    this.#helloId = null;
    this.#store.write({ session: id, secret });
    this.#session = { id, resumed, keep_ms };
    this.#toolsRefused = answer.tools_refused ?? [];
    this.#server = answer.server ?? null;
    this.#user = answer.user ?? null;
    this.#limits = { ...LIMITS, ...answer.limits };
    this.#ping = { ...PING, ...answer.ping };
    this.#openedAt = this.#clock.now();
    this.#watch();
    if (!resumed) this.#toolbox.reset();
    const socket = this.#socket;
    this.#topics.welcome(answer.topics ?? {});
    // A listener may have closed the client meanwhile.
    if (socket !== this.#socket) return;
    this.#setStatus('open');
    if (socket !== this.#socket) return;
    if (resumed) this.#toolbox.resume();
    this.#topics.settleAll();
    this.#calls.pump();
    this.#emit('session', { ...this.#session, tools_refused: this.#toolsRefused });
  }

  /** An error for an answer to hello. The server closes and its code decides; where it does not, we do. */
  #refused(error: RpcError): void {
    this.#helloId = null;
    this.#refusal = error;
    this.#fault(error);
    const mayComeBack = error.retry || error.afterMs !== undefined || error.code >= 500 || error.code === 429;
    this.#refusalTimer = this.#clock.setTimeout(() => this.#lose(mayComeBack ? 4000 : 4500), REFUSED_MS);
  }

  // ----------------------------------------------------------------- losing

  /** The connection is gone or given up: comes back later, or ends for good. */
  #lose(code: number): void {
    if (this.#status === 'closed') return;
    const wasStable = this.#status === 'open' && this.#clock.now() - this.#openedAt >= STABLE_MS;
    if (code === 1009) this.#calls.dropLargest();
    this.#cut(1000);
    if (!comesBack(code, this.#bye)) {
      this.#end(this.#refusal ?? clientError(503, 'closed', `the server closed for good: ${this.#bye?.reason ?? code}`));
      return;
    }
    this.#failures = wasStable ? 0 : this.#failures;
    const after_ms = this.#bye?.after_ms ?? this.#refusal?.afterMs ?? 0;
    const wait_ms = after_ms + jitter(this.#failures, this.#clock.random());
    this.#failures++;
    this.#retryAt = this.#clock.now() + wait_ms;
    this.#retryTimer = this.#clock.setTimeout(() => void this.#open(), wait_ms);
    this.#setStatus('waiting');
  }

  /** Lets go of the socket, which may take long to close by itself, and tells everything below. */
  #cut(code: number): void {
    const socket = this.#socket;
    this.#socket = null;
    this.#attempt++;
    this.#helloId = null;
    this.#stopTimers();
    this.#topics.cut();
    this.#calls.cut();
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    try {
      socket.close(code);
    } catch (error) {
      this.#fault(error);
    }
  }

  #end(error: RpcError): void {
    this.#retryAt = null;
    this.#toolbox.reset();
    this.#calls.rejectAll(error);
    this.#setStatus('closed');
  }

  // ----------------------------------------------------------------- frames

  #receive(data: unknown): void {
    this.#hear();
    if (typeof data !== 'string') return;
    let frames: unknown;
    try {
      frames = JSON.parse(data);
    } catch (error) {
      this.#fault(error);
      return;
    }
    const socket = this.#socket;
    for (const frame of Array.isArray(frames) ? frames : [frames]) {
      try {
        this.#dispatch(frame);
      } catch (error) {
        // One frame that makes no sense must not take the rest of its batch with it.
        this.#fault(error);
      }
      if (socket !== this.#socket) return;
    }
  }

  #dispatch(frame: unknown): void {
    const sorted = sortFrame(frame);
    switch (sorted.is) {
      case 'event': return this.#topics.event(sorted.frame);
      case 'request': return this.#serve(sorted.frame);
      case 'notification': return this.#notice(sorted.frame);
      case 'response': return this.#answer(sorted.frame);
      case 'ping': return this.#pong(sorted.frame);
      case 'unknown': return undefined;
    }
  }

  #answer(frame: ResponseFrame): void {
    const error = frame.error ? new RpcError(frame.error) : undefined;
    if (this.#helloId === null || frame.id !== this.#helloId) this.#calls.answer(frame.id, frame.result, error);
    else if (error) this.#refused(error);
    else if (typeof frame.result?.session?.secret === 'string') this.#welcome(frame.result);
    else this.#refused(clientError(502, 'hello', 'an answer to hello without a session'));
  }

  #serve(frame: RequestFrame): void {
    if (this.#status !== 'open') return;
    if (frame.method === 'tool.call') {
      this.#toolbox.call(frame);
      return;
    }
    const error = { code: -32601, message: `no method ${frame.method}`, data: { kind: 'method.unknown', retry: false } };
    this.#sendText(JSON.stringify({ id: frame.id, error }));
  }

  #notice({ method, params = {} }: NotificationFrame): void {
    switch (method) {
      case 'bye':
        this.#bye = this.#lastBye = params;
        this.#emit('bye', params);
        break;
      case 'topic.closed':
        this.#topics.closed(params.t, params.reason);
        break;
      case 'rpc.cancel':
        this.#toolbox.cancel(params.id);
        break;
      case 'auth.expiring':
        void this.#refreshAuth();
        break;
    }
  }

  #pong(frame: PingFrame): void {
    if (this.#status !== 'open') return;
    this.#sendText(JSON.stringify({ pong: frame.ping }));
    if (frame.heads) this.#topics.heads(frame.heads);
    this.#emit('heartbeat', frame);
  }

  /** The token runs out soon: a fresh one keeps the connection; without one it ends with 4004 and comes back. */
  async #refreshAuth(): Promise<void> {
    if (typeof this.#options.token !== 'function') return;
    const attempt = this.#attempt;
    try {
      const token = await this.#token();
      if (token === undefined || attempt !== this.#attempt) return;
      this.#calls.ask('auth.refresh', { token }, (_, error) => {
        if (error) this.#fault(error);
      });
    } catch (error) {
      this.#fault(error);
    }
  }

  /** The subscription in a `run.start` answer, before the first event under it. */
  #adopt(result: any): void {
    if (typeof result?.conv !== 'string' || !result.topic) return;
    this.#topics.adopt(`conv:${result.conv}`, result.topic);
    delete result.topic;
  }

  // ---------------------------------------------------------------- silence

  #hear(): void {
    this.#heardAt = this.#clock.now();
    this.#clock.clearTimeout(this.#probeTimer);
    this.#probeTimer = null;
  }

  /** Reconnects when nothing was heard for as long as the server promised to be heard from. */
  #watch(): void {
    this.#clock.clearTimeout(this.#silenceTimer);
    const deadline = this.#heardAt + this.#ping.every_ms + this.#ping.timeout_ms;
    const rest_ms = deadline - this.#clock.now();
    if (rest_ms <= 0) this.#lose(1006);
    else this.#silenceTimer = this.#clock.setTimeout(() => this.#watch(), rest_ms);
  }

  #stopTimers(): void {
    for (const timer of [this.#retryTimer, this.#silenceTimer, this.#probeTimer, this.#refusalTimer]) {
      if (timer !== null) this.#clock.clearTimeout(timer);
    }
    this.#retryTimer = this.#silenceTimer = this.#probeTimer = this.#refusalTimer = null;
  }

  // ------------------------------------------------------------ small things

  /** What the modules below need of the connection. */
  #line() {
    const client = this;
    return {
      get isOpen() { return client.#status === 'open'; },
      get isLeaving() { return client.#bye !== null; },
      get limits() { return client.#limits ?? LIMITS; },
      get topicsLimit() { return client.#limits?.topics; },
      sendText: (text: string) => client.#sendText(text),
      frameBytes: (text: string) => frameBytes(text, (client.#limits ?? LIMITS).frame),
      ask: (method: string, params: object, answered: (result: any, error?: RpcError) => void) =>
        client.#calls.ask(method, params, answered),
      fault: (error: unknown) => client.#fault(error),
    };
  }

  #sendText(text: string): void {
    try {
      this.#socket?.send(text);
    } catch (error) {
      // A socket that is closing already: its close event follows, and what was not answered is sent again.
      this.#fault(error);
    }
  }

  #setStatus(status: Status): void {
    if (status === this.#status) return;
    this.#status = status;
    this.#emit('status', status);
  }

  #fault(error: unknown): void {
    this.#emit('error', error instanceof Error ? error : new Error(String(error)));
  }

  #emit<E extends keyof Events>(event: E, value: Events[E]): void {
    for (const listener of [...(this.#listeners.get(event) ?? [])]) {
      try {
        listener(value);
      } catch (error) {
        // A listener of `error` that throws has nobody left to tell.
        if (event !== 'error') this.#fault(error);
      }
    }
  }
}

/** The socket of the host that the page came from. */
function pageUrl(): string {
  if (typeof location === 'undefined') throw new Error('options.url is needed outside of a page');
  return `${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/ws`;
}
