/** Whatever happens on the way, a reader ends with the state of the journal, and saw each event once. */
import { expect, test } from 'vitest';
import { foldTo, helloAnswer, Rig, settle, transcripts, type FakeSocket, type Transcript } from './fakes';

/** A small generator with a seed, so that a failure can be run again. */
function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

function mergeDeltas(events: { d: any }[]): any[] {
  const texts = new Map<number, string>();
  for (const { d } of events) {
    for (let at = 0; at < d.length; at += 2) texts.set(d[at], (texts.get(d[at]) ?? '') + d[at + 1]);
  }
  return [...texts].flat();
}

/** A hub with one topic: it serves one transcript over a line that loses, repeats, delays and cuts. */
class BadLine {
  readonly events: Transcript['events'];
  readonly first: number;
  readonly head: number;
  gen = 'g1';
  /** The subscription of this connection, and up to where it was sent. */
  t = 0;
  at = 0;
  #lastT = 0;
  #old: any[] = [];
  snapshots = 0;

  constructor(readonly transcript: Transcript, readonly random: () => number) {
    this.events = transcript.events;
    this.first = this.events[0]!.o;
    this.head = this.events.at(-1)!.o;
  }

  subscribe(position: { gen?: string; off?: number }): any {
    this.t = ++this.#lastT;
    const off = position.off;
    const isHad = position.gen === this.gen && off !== undefined && off >= this.first - 1 && off <= this.head;
    // Now and then the history is gone.
    if (isHad && this.random() < 0.8) {
      this.at = off;
      return { t: this.t, mode: 'replay', gen: this.gen, off, head: this.head };
    }
    this.snapshots++;
    this.at = this.first - 1 + Math.floor(this.random() * (this.head - this.first + 2));
    if (off !== undefined && position.gen === this.gen) this.at = Math.max(this.at, off);
    return { t: this.t, mode: 'snapshot', gen: this.gen, off: this.at, head: this.head, snap: foldTo(this.transcript, this.at), ...(off === undefined ? {} : { lost: { gen: position.gen, from: off } }) };
  }

  /** The next frame: one event, or a run of deltas, or of progress of one call, as one. */
  next(): any | undefined {
    const from = this.events.findIndex((event) => event.o === this.at + 1);
    if (from < 0) return undefined;
    const first = this.events[from]!;
    let to = from + 1;
    const isMergeable = (event: { e: string; d: any }) => event.e === first.e && (event.e === 'delta' || (event.e === 'tool.progress' && event.d.call === first.d.call));
    while (to < this.events.length && isMergeable(this.events[to]!) && this.random() < 0.6) to++;
    const range = this.events.slice(from, to);
    const last = range.at(-1)!;
    this.at = last.o;
    const d = last.e === 'delta' ? mergeDeltas(range) : last.d;
    return { t: this.t, o: last.o, ...(range.length > 1 ? { p: first.o - 1 } : {}), e: last.e, d };
  }

  /** Sends something, or fails to. */
  step(socket: FakeSocket): void {
    const chance = this.random();
    if (chance < 0.12 && this.#old.length > 0) {
      // An older frame again, of this subscription or of one that ended.
      socket.deliver(this.#old[Math.floor(this.random() * this.#old.length)]);
      return;
    }
    const frames = [];
    for (let count = 1 + Math.floor(this.random() * 4); count > 0; count--) {
      const frame = this.next();
      if (!frame) break;
      this.#old.push(frame);
      if (this.random() > 0.06) frames.push(frame);
      if (this.random() < 0.1) frames.push(frame);
      if (this.random() < 0.1) frames.push({ t: this.t, e: 'delta.ephemeral', d: [1, 'x'] });
    }
    if (frames.length > 0) socket.deliver(frames);
  }
}

/** Answers, late or at once, what the client asked. */
function answerOpen(line: BadLine, socket: FakeSocket, answered: Set<number>): void {
  for (const frame of socket.sent) {
    if (!frame.method || answered.has(frame.id) || frame.method === 'hello') continue;
    answered.add(frame.id);
    if (frame.method === 'topic.subscribe') socket.deliver({ id: frame.id, result: line.subscribe(frame.params) });
  }
}

async function play(transcript: Transcript, seed: number) {
  const random = randomOf(seed);
  const line = new BadLine(transcript, random);
  const rig = new Rig();
  const handle = rig.client.topic<any>(transcript.topic);
  /** Offsets whose events were applied, and those that a snapshot covered. */
  const applied: number[] = [];
  handle.subscribe((_, change) => {
    if (change.event?.o !== undefined) applied.push(change.event.o);
  });
  const connect = async () => {
    const hello = await rig.greet();
    const topics = { [transcript.topic]: line.subscribe(hello.params.topics[transcript.topic]) };
    rig.socket.deliver({ id: hello.id, result: helloAnswer({ topics }) });
    await settle();
  };
  await connect();
  const answered = new Set<number>();
  for (let turn = 0; turn < 60; turn++) {
    if (random() < 0.08) {
      rig.socket.fail(random() < 0.5 ? 1006 : 4001);
      await connect();
    } else if (random() < 0.05) {
      rig.socket.deliver({ method: 'topic.closed', params: { t: line.t, reason: 'behind' } });
    } else {
      line.step(rig.socket);
    }
    if (random() < 0.5) answerOpen(line, rig.socket, answered);
  }
  // The line is good from here on: one heartbeat finds what is missing.
  for (let round = 0; round < 3; round++) {
    answerOpen(line, rig.socket, answered);
    for (let frame = line.next(); frame; frame = line.next()) rig.socket.deliver(frame);
    rig.socket.deliver({ ping: round, heads: { [line.t]: line.head } });
  }
  return { rig, line, handle, applied };
}

test.each(transcripts())('$name', async (transcript) => {
  for (let seed = 1; seed <= 120; seed++) {
    const { rig, line, handle, applied } = await play(transcript, seed * 7919);
    const context = `seed ${seed}`;
    expect(rig.errors, context).toEqual([]);
    expect(handle.off, context).toBe(line.head);
    expect(handle.live, context).toBe(true);
    expect(handle.state, context).toEqual(transcript.end);
    expect(applied, context).toEqual([...new Set(applied)].sort((a, b) => a - b));
  }
});

test('without a fault on the line everything is applied from one snapshot', async () => {
  for (const transcript of transcripts()) {
    const rig = new Rig();
    const handle = rig.client.topic<any>(transcript.topic);
    const line = new BadLine(transcript, () => 0);
    await rig.open({ topics: { [transcript.topic]: line.subscribe({}) } });
    for (let frame = line.next(); frame; frame = line.next()) rig.socket.deliver([frame]);
    rig.socket.deliver({ ping: 1, heads: { [line.t]: line.head } });
    expect([line.snapshots, rig.socket.calls('topic.subscribe').length]).toEqual([1, 0]);
    expect(handle.state).toEqual(transcript.end);
  }
});
