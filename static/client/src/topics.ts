/**
 * All topics of a client: which are wanted, which are subscribed, and what to ask next.
 *
 * For each topic there is what is wanted (somebody holds it) and what is (a subscription on this connection); `settle`
 * asks for the difference, one request at a time. It sees frames and answers only through `client`, which stands above
 * it, and leaves state and cursor to `topic`.
 */
import { jitter } from './backoff';
import { RpcError } from './errors';
import type { Clock } from './options';
import { reducerOf, type Reducer } from './reduce';
import { Handle, Topic, type Change, type TopicHandle } from './topic';
import type { SubscribeAnswer, SubscribeOutcome, TopicEvent } from './wire';

/** A topic without a holder stays subscribed this long: for a view that is rebuilt, and for a run just started. */
const LINGER_MS = 10_000;
/** Until the first hello is answered: the number of section 2. */
const TOPICS_LIMIT = 128;

/** What topics need of the connection. */
export interface Asker {
  readonly isOpen: boolean;
  readonly topicsLimit: number | undefined;
  /** Sends a request that dies with the connection; `answered` is not called then. */
  ask(method: string, params: object, answered: (result: any, error?: RpcError) => void): void;
  fault(error: unknown): void;
}

export class Topics {
  readonly #topics = new Map<string, Topic>();
  readonly #byNumber = new Map<number, Topic>();
  /** Names in the hello that is open; others that are wanted meanwhile are asked for after it. */
  #inHello = new Set<string>();

  constructor(
    private readonly asker: Asker,
    private readonly clock: Clock,
    private readonly reducers: Record<string, Reducer>,
  ) {}

  hold<S>(name: string, listener?: (state: S, change: Change) => void): TopicHandle<S> {
    const topic = this.#get(name);
    topic.holders++;
    this.#stopLinger(topic);
    const handle = new Handle<S>(topic, () => {
      topic.holders--;
      if (topic.holders === 0) this.#startLinger(topic);
    });
    if (listener) handle.subscribe(listener);
    this.#settle(topic);
    return handle;
  }

  // ------------------------------------------------------------- connection

  /** The positions to send in `hello`: as many as fit, held ones first. */
  greet(): Record<string, object> {
    const wanted = [...this.#topics.values()].sort((a, b) => Number(b.holders > 0) - Number(a.holders > 0));
    const chosen = wanted.slice(0, this.asker.topicsLimit ?? TOPICS_LIMIT);
    this.#inHello = new Set(chosen.map((topic) => topic.name));
    return Object.fromEntries(chosen.map((topic) => [topic.name, topic.position()]));
  }

  /** Takes the topics of hello's answer; what was not answered is asked for by `settleAll`. */
  welcome(outcomes: Record<string, SubscribeOutcome>): void {
    for (const [name, outcome] of Object.entries(outcomes)) {
      if (!this.#inHello.has(name)) continue;
      const topic = this.#topics.get(name);
      if (topic) this.#outcome(topic, outcome);
      // Its last holder left while the hello was under way.
      else if (!('error' in outcome)) this.asker.ask('topic.unsubscribe', { topic: name }, () => undefined);
    }
    for (const topic of this.#topics.values()) {
      if (!(topic.name in outcomes)) topic.error = undefined;
    }
    this.#inHello.clear();
  }

  settleAll(): void {
    for (const topic of [...this.#topics.values()]) this.#settle(topic);
  }

  cut(): void {
    this.#byNumber.clear();
    for (const topic of this.#topics.values()) {
      topic.cut();
      this.clock.clearTimeout(topic.retry);
      topic.retry = null;
    }
  }

  // ----------------------------------------------------------------- frames

  event(frame: TopicEvent): void {
    const topic = frame.t === undefined ? undefined : this.#byNumber.get(frame.t);
    if (!topic || topic.asking) return;
    if (!topic.receive(frame)) this.#subscribe(topic);
  }

  /** A heartbeat's heads: one above the cursor, with all earlier frames applied, means that something is missing. */
  heads(heads: Record<string, number>): void {
    for (const [number, head] of Object.entries(heads)) {
      const topic = this.#byNumber.get(Number(number));
      if (topic && !topic.asking && head > topic.off) this.#subscribe(topic);
    }
  }

  /** The server ended a subscription (`topic.closed`). */
  closed(t: number, reason: string): void {
    const topic = this.#byNumber.get(t);
    if (!topic || topic.asking) return;
    this.#unbind(topic);
    if (reason === 'deleted' || reason === 'denied') {
      const code = reason === 'deleted' ? 404 : 403;
      topic.fail(new RpcError({ code, message: `${topic.name}: ${reason}`, data: { kind: `topic.${reason}`, retry: false } }));
    }
    this.#settle(topic);
  }

  /**
   * Takes the subscription that came with the answer to `run.start` or `run.resume`.
   *
   * An open subscribe of our own replaces it at the server, so it is ignored then; and where a subscription is live
   * already, answers have overtaken each other, and only asking again tells which one is current.
   */
  adopt(name: string, outcome: SubscribeOutcome): void {
    const topic = this.#get(name);
    if (topic.holders === 0 && topic.linger === null) this.#startLinger(topic);
    if (topic.asking) return;
    if (topic.live) this.#subscribe(topic);
    else this.#outcome(topic, outcome);
  }

  // ---------------------------------------------------------------- asking

  /** Asks for the difference between what is wanted and what is, unless something is being asked. */
  #settle(topic: Topic): void {
    if (topic.asking) return;
    if (topic.holders === 0 && topic.linger === null) {
      if (topic.t !== null && this.asker.isOpen) this.#unsubscribe(topic);
      else this.#forget(topic);
    } else if (this.asker.isOpen && topic.t === null && !topic.error) {
      this.#subscribe(topic);
    }
  }

  #subscribe(topic: Topic): void {
    topic.asking = true;
    this.asker.ask('topic.subscribe', { topic: topic.name, ...topic.position() }, (result, error) => {
      topic.asking = false;
      if (!error) this.#answered(topic, result, true);
      else this.#refused(topic, error);
      this.#settle(topic);
    });
  }

  #unsubscribe(topic: Topic): void {
    topic.asking = true;
    this.asker.ask('topic.unsubscribe', { topic: topic.name }, () => {
      topic.asking = false;
      this.#unbind(topic);
      this.#settle(topic);
      this.#retryLimited();
    });
  }

  /** An outcome that came with another answer: what it leaves open is asked for alone. */
  #outcome(topic: Topic, outcome: SubscribeOutcome): void {
    if (!('error' in outcome)) {
      this.#answered(topic, outcome, false);
      return;
    }
    const error = new RpcError(outcome.error);
    // Not `kind` alone: 413 says all that is needed, the state did not fit in beside the others.
    if (error.kind !== 'topic.later' && error.code !== 413) {
      this.#refused(topic, error);
      return;
    }
    topic.error = undefined;
    this.#settle(topic);
  }

  #answered(topic: Topic, answer: SubscribeAnswer, alone: boolean): void {
    this.#unbind(topic);
    topic.t = answer.t;
    this.#byNumber.set(answer.t, topic);
    if (topic.take(answer)) return;
    if (alone && topic.fresh) {
      // A snapshot was asked for and no snapshot came: asking once more would go on for ever.
      this.#unbind(topic);
      topic.fail(new RpcError({ code: 502, message: `${topic.name}: no snapshot`, data: { kind: 'client.hello', retry: false } }));
      return;
    }
    topic.fresh = true;
    this.#subscribe(topic);
  }

  #refused(topic: Topic, error: RpcError): void {
    this.#unbind(topic);
    if (error.kind === 'topic.limit') {
      topic.fail(error);
      if (topic.holders > 0) this.#dropLingering();
    } else if (error.retry || error.afterMs !== undefined) {
      topic.asking = true;
      topic.retry = this.clock.setTimeout(() => {
        topic.retry = null;
        topic.asking = false;
        this.#settle(topic);
      }, error.afterMs ?? 1000 + jitter(3, this.clock.random()));
    } else {
      topic.fail(error);
    }
  }

  /** Makes room under the server's limit by ending what nobody holds. */
  #dropLingering(): void {
    for (const topic of [...this.#topics.values()]) {
      if (topic.holders > 0) continue;
      this.#stopLinger(topic);
      this.#settle(topic);
    }
  }

  #retryLimited(): void {
    const topic = [...this.#topics.values()].find((one) => one.error?.kind === 'topic.limit' && one.holders > 0);
    if (!topic || topic.asking) return;
    topic.error = undefined;
    this.#settle(topic);
  }

  // ------------------------------------------------------------ bookkeeping

  #get(name: string): Topic {
    let topic = this.#topics.get(name);
    if (!topic) {
      const reduce = reducerOf(name) ?? this.reducers[name.split(':', 1)[0]!];
      topic = new Topic(name, reduce, (error) => this.asker.fault(error));
      this.#topics.set(name, topic);
    }
    return topic;
  }

  #unbind(topic: Topic): void {
    if (topic.t !== null) this.#byNumber.delete(topic.t);
    topic.t = null;
  }

  #forget(topic: Topic): void {
    this.#stopLinger(topic);
    this.clock.clearTimeout(topic.retry);
    this.#topics.delete(topic.name);
  }

  #startLinger(topic: Topic): void {
    topic.linger = this.clock.setTimeout(() => {
      topic.linger = null;
      this.#settle(topic);
    }, LINGER_MS);
  }

  #stopLinger(topic: Topic): void {
    if (topic.linger !== null) this.clock.clearTimeout(topic.linger);
    topic.linger = null;
  }
}
