/**
 * The requests of this client, from the moment they are made until they are answered (protocol sections 1, 4 and 8).
 *
 * A request outlives the connection: what was not answered is sent again on the next one, under the same id and, where
 * it changes something, the same idempotency key. It decides what may be sent and when; the frames go out through
 * `client`, which stands above it.
 */
import { clientError, type RpcError } from './errors';
import type { Clock, RequestOptions } from './options';
import type { Id } from './wire';

/**
 * What a method does, since that says what a cut means for it: a `read` is sent again as it is, a `change` is sent
 * again under its key, and what is `bound` to the connection dies with it.
 */
export type Nature = 'read' | 'change' | 'bound';

const READ_VERBS = new Set(['get', 'list', 'export', 'search', 'read', 'status', 'facets', 'check', 'generation']);
const BOUND_AREAS = new Set(['topic', 'auth', 'audio', 'stream']);

/** Tells a method's nature by its name, `area.verb`; what is unknown is taken for a change, which is the safe side. */
export function natureOf(method: string): Nature {
  const area = method.slice(0, method.indexOf('.'));
  const verb = method.slice(method.lastIndexOf('.') + 1);
  if (method === 'hello' || BOUND_AREAS.has(area)) return 'bound';
  return READ_VERBS.has(verb) ? 'read' : 'change';
}

/** A new idempotency key: 128 random bits, also where the page is not a secure context. */
export function newKey(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** The length of a text in UTF-8; exact only where it comes near the limit. */
export function frameBytes(text: string, limit: number): number {
  return text.length * 3 <= limit ? text.length : new TextEncoder().encode(text).length;
}

/** What calls need of the connection. */
export interface Wire {
  readonly isOpen: boolean;
  /** The server said `bye`: it takes no more changes on this connection. */
  readonly isLeaving: boolean;
  readonly limits: { frame: number; inflight: number };
  sendText(text: string): void;
}

interface Call {
  id: number;
  method: string;
  params: object;
  nature: Nature;
  /** Length of the frame on this connection; 0 while it was not sent. */
  sentBytes: number;
  /** The caller has its outcome; only the server's answer is still to come. */
  settled: boolean;
  settle(result: any, error?: RpcError): void;
  /** Sees the answer before the caller does, and before the next frame. */
  answered: ((result: any, error?: RpcError) => void) | undefined;
}

export class Calls {
  /** In the order of their making, which is the order of sending. */
  readonly #calls = new Map<number, Call>();
  #lastId = 0;

  constructor(private readonly wire: Wire, private readonly clock: Clock) {}

  nextId(): number {
    return ++this.#lastId;
  }

  /** A request of the application. */
  request(method: string, params: object, options: RequestOptions, answered?: Call['answered']): Promise<any> {
    const nature = natureOf(method);
    const hasKey = (params as { key?: unknown }).key !== undefined;
    const keyed = nature === 'change' && !hasKey ? { ...params, key: newKey() } : params;
    return new Promise((resolve, reject) => {
      const { signal, timeout_ms } = options;
      if (signal?.aborted) {
        reject(clientError(499, 'cancelled', `${method}: cancelled`));
        return;
      }
      const onAbort = () => this.#giveUp(call, clientError(499, 'cancelled', `${method}: cancelled`));
      signal?.addEventListener('abort', onAbort);
      const timer = timeout_ms === undefined ? null : this.clock.setTimeout(
        () => this.#giveUp(call, clientError(408, 'timeout', `${method}: no answer in ${timeout_ms} ms`, true)), timeout_ms);
      const settle = (result: any, error?: RpcError) => {
        if (timer !== null) this.clock.clearTimeout(timer);
        signal?.removeEventListener('abort', onAbort);
        if (error) reject(error);
        else resolve(result);
      };
      const call = this.#add(method, keyed, nature, settle, answered);
      this.pump();
    });
  }

  /** A request of the client itself, about this connection; forgotten when it is cut. */
  ask(method: string, params: object, answered: (result: any, error?: RpcError) => void): void {
    this.#add(method, params, 'bound', () => undefined, answered);
    this.pump();
  }

  /** Sends what waits, in order, as far as the server's limits allow. */
  pump(): void {
    if (!this.wire.isOpen) return;
    let inflight = 0;
    for (const call of this.#calls.values()) if (call.sentBytes > 0) inflight++;
    for (const call of [...this.#calls.values()]) {
      if (inflight >= this.wire.limits.inflight) return;
      if (call.sentBytes > 0 || (call.nature === 'change' && this.wire.isLeaving)) continue;
      if (this.#send(call)) inflight++;
    }
  }

  answer(id: Id, result: any, error: RpcError | undefined): void {
    const call = typeof id === 'number' ? this.#calls.get(id) : undefined;
    if (!call || call.sentBytes === 0) return;
    this.#finish(call, result, error);
    this.pump();
  }

  /** The connection is gone: what may be sent again waits for the next one, the rest fails. */
  cut(): void {
    for (const call of [...this.#calls.values()]) {
      const wasSent = call.sentBytes > 0;
      call.sentBytes = 0;
      if (call.settled) {
        this.#calls.delete(call.id);
      } else if (call.nature === 'bound' && (wasSent || call.answered)) {
        this.#calls.delete(call.id);
        call.settled = true;
        call.settle(undefined, clientError(503, 'cut', `${call.method}: the connection broke`, true));
      }
    }
  }

  /** The server found a frame too large (1009): gives up the largest on its way, which would come back for ever. */
  dropLargest(): void {
    let largest: Call | undefined;
    for (const call of this.#calls.values()) {
      if (call.sentBytes > (largest?.sentBytes ?? 0)) largest = call;
    }
    if (largest) this.#finish(largest, undefined, clientError(413, 'frame', `${largest.method}: the frame is too large`));
  }

  rejectAll(error: RpcError): void {
    for (const call of [...this.#calls.values()]) {
      this.#calls.delete(call.id);
      if (!call.settled) call.settle(undefined, error);
    }
  }

  #add(method: string, params: object, nature: Nature, settle: Call['settle'], answered: Call['answered']): Call {
    const call: Call = { id: this.nextId(), method, params, nature, sentBytes: 0, settled: false, settle, answered };
    this.#calls.set(call.id, call);
    return call;
  }

  #send(call: Call): boolean {
    const text = JSON.stringify({ id: call.id, method: call.method, params: call.params });
    const limit = this.wire.limits.frame;
    const bytes = frameBytes(text, limit);
    if (bytes > limit) {
      this.#finish(call, undefined, clientError(413, 'frame', `${call.method}: ${bytes} bytes are more than the server's ${limit}`));
      return false;
    }
    call.sentBytes = bytes;
    this.wire.sendText(text);
    return true;
  }

  #finish(call: Call, result: any, error: RpcError | undefined): void {
    this.#calls.delete(call.id);
    call.answered?.(result, error);
    if (call.settled) return;
    call.settled = true;
    call.settle(result, error);
  }

  /** The caller waits no longer. The server is told, and its answer, which comes all the same, is still looked at. */
  #giveUp(call: Call, error: RpcError): void {
    if (call.settled) return;
    call.settled = true;
    if (call.sentBytes > 0) this.wire.sendText(JSON.stringify({ method: 'rpc.cancel', params: { id: call.id } }));
    else this.#calls.delete(call.id);
    call.settle(undefined, error);
  }
}
