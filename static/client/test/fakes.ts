/** Fakes of what the client stands on: time, the socket, a storage, and a hub that serves topics from a journal. */
import { readFileSync, readdirSync } from 'node:fs';
import { Client, emptyClient, emptyConv, emptyHub, emptyUser, type Clock, type Options } from '../src/index';
import { reducerOf } from '../src/reduce';

/** Time that moves only when told. */
export class FakeClock implements Clock {
  time = 1_000_000;
  chance = 0.5;
  #timers = new Map<number, { at: number; fn: () => void }>();
  #last = 0;

  now() { return this.time; }
  random() { return this.chance; }
  setTimeout(fn: () => void, ms: number) {
    this.#timers.set(++this.#last, { at: this.time + ms, fn });
    return this.#last;
  }
  clearTimeout(timer: any) { this.#timers.delete(timer); }
  get pending() { return this.#timers.size; }

  /** Moves on, running what falls due in order, with room for promises after each. */
  async advance(ms: number) {
    const end = this.time + ms;
    for (;;) {
      const due = [...this.#timers].filter(([, timer]) => timer.at <= end).sort((a, b) => a[1].at - b[1].at || a[0] - b[0])[0];
      if (!due) break;
      this.#timers.delete(due[0]);
      this.time = Math.max(this.time, due[1].at);
      due[1].fn();
      await settle();
    }
    this.time = end;
    await settle();
  }
}

/** Lets promises that are resolved run. */
export async function settle() {
  for (let i = 0; i < 12; i++) await Promise.resolve();
}

export class FakeSocket {
  sent: any[] = [];
  closedWith: number | null = null;
  onopen: (() => void) | null = null;
  onmessage: ((message: { data: unknown }) => void) | null = null;
  onclose: ((event: { code: number }) => void) | null = null;
  /** Called for each frame that the client sends. */
  onsend: ((frame: any) => void) | null = null;

  constructor(readonly url: string, readonly protocols: string[]) {}

  send(text: string) {
    if (this.closedWith !== null) throw new Error('the socket is closed');
    const frame = JSON.parse(text);
    this.sent.push(frame);
    this.onsend?.(frame);
  }
  close(code: number) { this.closedWith = code; }

  deliver(...frames: any[]) { this.onmessage?.({ data: JSON.stringify(frames.length === 1 ? frames[0] : frames) }); }
  deliverText(data: unknown) { this.onmessage?.({ data }); }
  fail(code = 1006) {
    this.closedWith = code;
    this.onclose?.({ code });
  }
  /** Frames sent with that method. */
  calls(method: string): any[] { return this.sent.filter((frame) => frame.method === method); }
  last(method: string): any { return this.calls(method).at(-1); }
}

export class FakeStorage {
  readonly kept = new Map<string, string>();
  getItem(name: string) { return this.kept.get(name) ?? null; }
  setItem(name: string, value: string) { this.kept.set(name, value); }
  get value() { return JSON.parse([...this.kept.values()][0] ?? 'null'); }
}

export class Rig {
  readonly clock = new FakeClock();
  readonly sockets: FakeSocket[] = [];
  readonly storage = new FakeStorage();
  readonly client: Client;
  readonly errors: Error[] = [];

  constructor(options: Partial<Options> = {}) {
    const sockets = this.sockets;
    class Socket extends FakeSocket {
      constructor(url: string, protocols: string[]) {
        super(url, protocols);
        sockets.push(this);
      }
    }
    this.client = new Client({
      url: 'ws://hub.test/ws',
      client: { id: 'chat', kind: 'browser' },
      storage: this.storage as unknown as Storage,
      webSocket: Socket as unknown as typeof WebSocket,
      clock: this.clock,
      ...options,
    });
    this.client.on('error', (error) => this.errors.push(error));
  }

  get socket(): FakeSocket {
    const socket = this.sockets.at(-1);
    if (!socket) throw new Error('no socket was opened');
    return socket;
  }

  /** Connects, or follows a reconnect, up to the open socket with its hello sent. */
  async greet(): Promise<any> {
    if (this.client.status === 'idle' || this.client.status === 'closed') this.client.connect();
    if (this.client.status === 'waiting') await this.clock.advance(this.client.retryAt! - this.clock.now());
    await settle();
    this.socket.onopen?.();
    return this.socket.sent[0];
  }

  answerHello(result: object = {}) {
    this.socket.deliver({ id: this.socket.sent[0].id, result: helloAnswer(result) });
  }

  async open(result: object = {}) {
    await this.greet();
    this.answerHello(result);
    await settle();
    return this.socket;
  }

  /** Answers the newest request of that method. */
  answer(method: string, result: any) { this.socket.deliver({ id: this.socket.last(method).id, result }); }
  refuse(method: string, code: number, data: any = {}) {
    this.socket.deliver({ id: this.socket.last(method).id, error: { code, message: 'no', data } });
  }
}

export function helloAnswer(result: object = {}) {
  return {
    v: 1, server: { name: 'sag', version: '0.1.0' }, user: { id: 'u1', name: 'Ada', roles: ['user'] },
    session: { id: 'ses_1', secret: 's1', resumed: false, keep_ms: 120000 }, tools_refused: [],
    ping: { every_ms: 25000, timeout_ms: 10000 }, limits: { frame: 1048576, inflight: 64, topics: 128 }, topics: {}, ...result,
  };
}

export function resumed(secret: string, more: object = {}) {
  return { session: { id: 'ses_1', secret, resumed: true, keep_ms: 120000 }, ...more };
}

export interface Transcript { name: string; topic: string; start: any; events: { o: number; e: string; d: any }[]; end: any }

export function transcripts(): Transcript[] {
  const folder = new URL('../../../tests/transcripts/', import.meta.url);
  return readdirSync(folder).filter((name) => name.endsWith('.json')).sort()
    .map((name) => JSON.parse(readFileSync(new URL(name, folder), 'utf8')));
}

export function emptyState(topic: string): any {
  if (topic === 'user:me') return emptyUser();
  if (topic === 'hub') return emptyHub();
  return topic.startsWith('conv:') ? emptyConv(topic.slice(5)) : emptyClient();
}

export function startOf(transcript: Transcript): any {
  return structuredClone(transcript.start ?? emptyState(transcript.topic));
}

/** Folds the first events of a transcript, up to and with offset `off`. */
export function foldTo(transcript: Transcript, off: number): any {
  const state = startOf(transcript);
  for (const { o, e, d } of structuredClone(transcript.events)) if (o <= off) reducerOf(transcript.topic)!(state, e, d);
  return state;
}
