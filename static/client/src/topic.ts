/**
 * One topic as this client holds it: state, position, and those who listen.
 *
 * It follows the cursor rule and folds events; it never sends anything. `topics` decides when to subscribe and hands it
 * answers and frames; `TopicHandle` is the view that an application gets of it.
 */
import { judge } from './cursor';
import type { RpcError } from './errors';
import type { Reducer } from './reduce';
import type { Lost, SubscribeAnswer, TopicEvent } from './wire';

export interface Change {
  kind: 'snapshot' | 'event' | 'error';
  event?: TopicEvent;
  /** With a snapshot: the position that could not be served. */
  lost?: Lost;
}

/** A refcounted hold on a topic; the subscription ends some seconds after the last one is released. */
export interface TopicHandle<S> {
  readonly name: string;
  /** The folded state; undefined until the first snapshot. Changed in place. */
  readonly state: S | undefined;
  readonly gen?: string;
  /** The offset up to which `state` is folded. */
  readonly off: number;
  /** Why the topic cannot be had; cleared by the next success. */
  readonly error?: RpcError;
  /** A snapshot or replay answer was applied on this connection and nothing is missing. */
  readonly live: boolean;
  /**
   * Calls `fn` at once if there is state, then after each snapshot, applied event and error.
   *
   * On an error before the first snapshot `state` is undefined.
   */
  subscribe(fn: (state: S, change: Change) => void): () => void;
  /** Calls `fn` for each event of that name, ephemeral ones too, after it was folded. */
  on(event: string, fn: (d: any, meta: { o?: number; r?: boolean }) => void): () => void;
  /** Gives up this hold and its listeners; may be called twice. */
  release(): void;
}

export type StateListener = (state: any, change: Change) => void;
export type EventListener = (d: any, meta: { o?: number; r?: boolean }) => void;

export class Topic {
  state: any = undefined;
  gen: string | undefined;
  off = 0;
  error: RpcError | undefined;
  /** The number of the current subscription on this connection. */
  t: number | null = null;
  /** A subscribe or unsubscribe is open: frames are dropped and nothing else is asked. */
  asking = false;
  /** The next subscribe asks for a snapshot, since the position is of no use. */
  fresh = false;
  holders = 0;
  /** Timer: how long the topic stays without a holder, or until it is asked for again. */
  linger: unknown = null;
  retry: unknown = null;

  /** Listeners heard of an error and have to hear that it is over. */
  #toldFailure = false;

  readonly stateListeners = new Set<StateListener>();
  readonly eventListeners = new Map<string, Set<EventListener>>();

  constructor(readonly name: string, readonly reduce: Reducer | undefined, readonly fault: (error: unknown) => void) {}

  get live(): boolean {
    return this.t !== null && !this.asking;
  }

  /** The position to subscribe from; none asks for a snapshot. */
  position(): { gen?: string; off?: number } {
    const known = !this.fresh && this.state !== undefined && this.gen !== undefined;
    return known ? { gen: this.gen!, off: this.off } : {};
  }

  /**
   * Takes an answer of `topic.subscribe`.
   *
   * @returns Whether it fits what is here; a replay that begins elsewhere than at the cursor does not.
   */
  take(answer: SubscribeAnswer): boolean {
    if (answer.mode === 'snapshot') {
      this.state = answer.snap;
      this.gen = answer.gen;
      this.off = answer.off;
    } else if (this.state === undefined || answer.gen !== this.gen || answer.off !== this.off) {
      return false;
    }
    const wasFailed = this.#toldFailure;
    this.fresh = false;
    this.error = undefined;
    this.#toldFailure = false;
    if (answer.mode === 'snapshot') this.#tell({ kind: 'snapshot', ...(answer.lost ? { lost: answer.lost } : {}) });
    else if (wasFailed) this.#tell({ kind: 'snapshot' });
    return true;
  }

  /**
   * Takes a frame of the current subscription.
   *
   * @returns False where frames are missing: subscribe again from the cursor.
   */
  receive(frame: TopicEvent): boolean {
    if (frame.o === undefined) {
      this.#tellEvent(frame);
      return true;
    }
    const verdict = judge(this.off, frame.o, frame.p);
    if (verdict !== 'apply') return verdict === 'drop';
    try {
      this.reduce?.(this.state, frame.e, frame.d);
    } catch (error) {
      // An event that cannot be folded leaves a state that is not the server's: take the server's whole.
      this.fresh = true;
      this.fault(error);
      return false;
    }
    this.off = frame.o;
    this.#tellEvent(frame);
    this.#tell({ kind: 'event', event: frame });
    return true;
  }

  fail(error: RpcError): void {
    this.error = error;
    this.#toldFailure = true;
    this.#tell({ kind: 'error' });
  }

  /** The connection is gone; state and position stay. */
  cut(): void {
    this.t = null;
    this.asking = false;
  }

  #tell(change: Change): void {
    for (const listener of [...this.stateListeners]) this.#guard(() => listener(this.state, change));
  }

  #tellEvent(frame: TopicEvent): void {
    const meta = { ...(frame.o === undefined ? {} : { o: frame.o }), ...(frame.r ? { r: true } : {}) };
    for (const listener of [...(this.eventListeners.get(frame.e) ?? [])]) this.#guard(() => listener(frame.d, meta));
  }

  /** A listener that throws must not stop the others, nor the frames that follow. */
  #guard(fn: () => void): void {
    try {
      fn();
    } catch (error) {
      this.fault(error);
    }
  }
}

/** One hold of an application on a topic. */
export class Handle<S> implements TopicHandle<S> {
  readonly #topic: Topic;
  readonly #released: () => void;
  readonly #undo = new Set<() => void>();
  #held = true;

  constructor(topic: Topic, released: () => void) {
    this.#topic = topic;
    this.#released = released;
  }

  get name(): string { return this.#topic.name; }
  get state(): S | undefined { return this.#topic.state; }
  get gen(): string | undefined { return this.#topic.gen; }
  get off(): number { return this.#topic.off; }
  get error(): RpcError | undefined { return this.#topic.error; }
  get live(): boolean { return this.#topic.live; }

  subscribe(fn: (state: S, change: Change) => void): () => void {
    // A wrapper of its own for each call, so that one function may be subscribed twice and undone once.
    const listener: StateListener = (state, change) => fn(state, change);
    this.#topic.stateListeners.add(listener);
    if (this.#topic.state !== undefined) fn(this.#topic.state, { kind: 'snapshot' });
    return this.#undoOnce(() => this.#topic.stateListeners.delete(listener));
  }

  on(event: string, fn: EventListener): () => void {
    const listener: EventListener = (d, meta) => fn(d, meta);
    const listeners = this.#topic.eventListeners.get(event) ?? new Set();
    this.#topic.eventListeners.set(event, listeners.add(listener));
    return this.#undoOnce(() => listeners.delete(listener));
  }

  release(): void {
    if (!this.#held) return;
    this.#held = false;
    for (const undo of [...this.#undo]) undo();
    this.#released();
  }

  #undoOnce(fn: () => void): () => void {
    const undo = () => {
      if (this.#undo.delete(undo)) fn();
    };
    this.#undo.add(undo);
    return undo;
  }
}
