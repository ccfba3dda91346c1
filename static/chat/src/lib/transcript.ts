/**
 * From a conversation's state to what its page shows: turns, who says what in them, tool cards, what is queued. Pure.
 *
 * The socket client folds events into the state in place; `TranscriptBuilder` is told which runs changed since it was
 * last asked, builds those anew and answers the same objects for all others, so that only what changed is rendered.
 */
import { lineOf, MODERATOR, speakersOf, type Line, type Speaker } from './agents';
import type { FileRef } from './drafts';
import type { ConvState, Message, Part, RunFault, RunState, RunStatus, ToolProgress, ToolState, Trimmed, Usage, Waiting } from '@sag/client';

export interface ToolView {
  call: string;
  name: string;
  /** What people call it. */
  title?: string;
  origin: string;
  /** The same where it is a connector. */
  connector?: string;
  /** What the agent that called it is called. */
  agent?: string;
  /** How often it was made again because it was lost. */
  repeats?: number;
  risk?: string;
  /** `preparing` while the model still writes the arguments, `asking` while a person is asked. */
  status: string;
  args: unknown;
  /** The arguments as far as they are written, while `preparing`. */
  argsText: string;
  output: string;
  progress?: ToolProgress;
  ts?: number;
  ms?: number;
  result?: unknown;
  error?: unknown;
  ref?: string;
}

export type TurnItem =
  | { kind: 'text'; key: string; text: string; open: boolean }
  | { kind: 'reasoning'; key: string; text: string; open: boolean; ts?: number; ms?: number }
  | { kind: 'tools'; key: string; calls: ToolView[] }
  | { kind: 'media'; key: string; part: Part }
  | { kind: 'note'; key: string; note: Note }
  | { kind: 'line'; key: string; line: Line };

/** What one agent says and does in a row, or at the same time as others. */
export interface Lane {
  key: string;
  /** Null is the assistant. */
  speaker: Speaker | null;
  items: TurnItem[];
  model?: string;
  /** Its turn is not over. */
  isOpen: boolean;
  /** Nothing of an agent that works is to be seen yet, or nothing new since its last piece was completed. */
  waits?: boolean;
}

/** Lanes of agents that worked at the same time; one of them where nobody else did. */
export interface Block {
  key: string;
  lanes: Lane[];
}

/** What happened between the pieces of a reply. */
export type Note =
  /** Another model took over from those that failed. */
  | { about: 'fallback'; from: string[]; to: string; why: string; answered: boolean }
  /** The oldest messages were left out from here on. */
  | ({ about: 'trimmed' } & Trimmed)
  /** The step before ended otherwise than the model meant it. */
  | { about: 'length' | 'refused'; tokens?: number };

/** One model round of a reply, once it is closed. */
export interface Round {
  step: number;
  model: string;
  usage?: Usage;
  ms?: number;
  /** How long it thought, as far as that is known. */
  thoughtMs?: number;
  finish: string;
  request?: string;
  /** Why another model took over. */
  why?: string;
}

export interface Turn {
  key: string;
  role: string;
  run?: string;
  /** The kind of its run. */
  kind?: string;
  ts?: number;
  /** All that is in its blocks, in order. */
  items: TurnItem[];
  /** Who did what, of a reply. */
  blocks: Block[];
  /** What the run's kind keeps, on the first reply of its run. */
  data?: any;
  /** The run's status, on the last turn of its run only. */
  status?: RunStatus;
  error?: RunFault;
  /** Until the next try, while the run is paused or waits for a model. */
  afterMs?: number;
  /** What the hub waits for before it asks a model again. */
  why?: Waiting;
  usage?: Usage;
  steps?: number;
  /** The rounds of its run, on the last turn of it. */
  rounds?: Round[];
  model?: string;
  /** Nothing to see yet, or nothing new since the last piece was completed. */
  thinking: boolean;
}

export interface Queued {
  run: string;
  text: string;
  files: FileRef[];
  model: string | null;
  /** What it is to be, and what is set up for it. */
  kind: string;
  setups: Record<string, Record<string, unknown>>;
  /** Text and uploaded files alone, so that the message can be put back into the composer. */
  plain: boolean;
}

export interface ActiveRun extends RunState {
  id: string;
}

export interface Transcript {
  turns: Turn[];
  queued: Queued[];
  active: ActiveRun | null;
  /** The newest run that began. */
  newest: ActiveRun | null;
}

/** A thought without words that took less is not told. */
const SHORT_THOUGHT_MS = 1000;
/** How a round ends that did not come to its end: its agent goes on with another. */
const CUT = new Set<string>(['fallback', 'config', 'cancelled', 'failed', 'interrupted']);
const OPEN_STATUS = new Set<string>(['queued', 'running', 'waiting', 'paused']);

export function isOpenRun(run: RunState | undefined): boolean {
  return run !== undefined && OPEN_STATUS.has(run.status);
}

export function textOf(message: Message): string {
  return message.parts.filter((part) => part.kind === 'text').map((part) => part.text ?? '').join('\n');
}

/** The uploaded files among some parts. */
export function filesIn(parts: Part[]): FileRef[] {
  return parts.flatMap((part) => (part.ref ? [{ ref: part.ref, mime: part.mime ?? '', name: part.name ?? '' }] : []));
}

/** All that was said in a turn, as it is copied. */
export function turnText(turn: Turn): string {
  return turn.items.flatMap((item) => (item.kind === 'text' ? [item.text] : [])).join('\n\n').trim();
}

/** How many turns agents have had in a run, with the one that goes on. */
export function turnsOf(turns: readonly Turn[], run: string): number {
  return turns.reduce((sum, turn) => sum + (turn.run === run ? turn.blocks.reduce((n, block) => n + block.lanes.filter((lane) => lane.speaker && lane.speaker.id !== MODERATOR).length, 0) : 0), 0);
}

/** Messages from before those of the state, with the runs and the tool calls that they name. */
export type Older = Pick<ConvState, 'messages' | 'runs' | 'tools'>;

interface Group {
  run: string | undefined;
  messages: Message[];
  /** Where it stands: the place of its first reply, else of its first message. */
  place: number;
}

export class TranscriptBuilder {
  #cache = new Map<string, { size: number; turns: Turn[] }>();

  /**
   * @param changed Names of the runs that changed since the last call; `all` after a snapshot.
   * @param models The model of each run's last step, where an event told it.
   */
  build(newest: ConvState, older: Older | null, changed: Set<string> | 'all', models: ReadonlyMap<string, string>): Transcript {
    const state = older ? join(older, newest) : newest;
    const { groups, queued } = group(state.messages, state);
    const cache = new Map<string, { size: number; turns: Turn[] }>();
    const turns: Turn[] = [];
    for (const part of groups) {
      const key = part.run ?? part.messages[0]!.msg;
      const kept = this.#cache.get(key);
      const fresh = changed !== 'all' && !changed.has(key) && kept?.size === part.messages.length ? kept : null;
      const entry = fresh ?? { size: part.messages.length, turns: keepBlocks(buildTurns(part, state, models), kept?.turns ?? []) };
      cache.set(key, entry);
      turns.push(...entry.turns);
    }
    this.#cache = cache;
    return { turns, queued, ...runsOf(state) };
  }
}

/** The same objects for blocks in which nothing has changed, so that a long run is not rendered again for each word. */
function keepBlocks(turns: Turn[], before: Turn[]): Turn[] {
  const known = new Map(before.flatMap((turn) => turn.blocks.map((block) => [block.key, block])));
  for (const turn of turns) {
    turn.blocks = turn.blocks.map((block) => {
      const old = known.get(block.key);
      return old && old.lanes.length === block.lanes.length && block.lanes.every((lane, i) => isSameLane(lane, old.lanes[i]!)) ? old : block;
    });
  }
  return turns;
}

function isSameLane(a: Lane, b: Lane): boolean {
  const { items, speaker, ...rest } = a;
  const { items: others, speaker: other, ...rests } = b;
  return items.length === others.length && hasSame(rest, rests) && hasSame(speaker ?? {}, other ?? {}) && items.every((item, i) => isSameItem(item, others[i]!));
}

function isSameItem(a: TurnItem, b: TurnItem): boolean {
  if (a.kind === 'tools') return b.kind === 'tools' && a.key === b.key && a.calls.length === b.calls.length && a.calls.every((call, i) => hasSame(call, b.calls[i]!));
  return a.kind === 'text' || a.kind === 'reasoning' ? hasSame(a, b) : JSON.stringify(a) === JSON.stringify(b);
}

/** Whether two objects have the same members; what is in those is replaced by the folds, never changed. */
function hasSame(a: object, b: object): boolean {
  const members = Object.keys(a);
  return members.length === Object.keys(b).length && members.every((name) => (a as any)[name] === (b as any)[name]);
}

function join(older: Older, newest: ConvState): ConvState {
  return {
    ...newest,
    messages: [...older.messages, ...newest.messages],
    runs: { ...older.runs, ...newest.runs },
    tools: { ...older.tools, ...newest.tools },
  };
}

function runsOf(state: ConvState): Pick<Transcript, 'active' | 'newest'> {
  const begun = Object.entries(state.runs).filter(([, run]) => run.status !== 'queued' && !(run.status === 'cancelled' && run.step === 0));
  const active = begun.find(([, run]) => isOpenRun(run));
  const newest = active ?? begun.at(-1);
  return { active: active ? { ...active[1], id: active[0] } : null, newest: newest ? { ...newest[1], id: newest[0] } : null };
}

/**
 * Messages by run, in the order in which the runs began: what was queued stands among the messages of the run before
 * it, from the moment that it was accepted.
 */
function group(messages: Message[], state: ConvState): { groups: Group[]; queued: Queued[] } {
  const groups: Group[] = [];
  const byRun = new Map<string, Group>();
  messages.forEach((message, index) => {
    const known = message.run === undefined ? undefined : byRun.get(message.run);
    const target = known ?? { run: message.run, messages: [], place: index };
    if (!known) {
      groups.push(target);
      if (message.run !== undefined) byRun.set(message.run, target);
    }
    if (message.role !== 'user' && target.messages.every((m) => m.role === 'user')) target.place = index;
    target.messages.push(message);
  });
  const queued: Queued[] = [];
  const shown = groups.filter(({ run, messages: own }) => {
    const state_ = run === undefined ? undefined : state.runs[run];
    if (!state_ || own.some((m) => m.role !== 'user')) return true;
    if (state_.status === 'queued') {
      queued.push({
        run: run!,
        text: own.map(textOf).join('\n'),
        files: filesIn(own.flatMap((m) => m.parts)),
        model: typeof state_.config?.model === 'string' ? state_.config.model : null,
        ...asBegun(state_),
        plain: own.every((m) => m.parts.every((part) => part.kind === 'text' || part.ref !== undefined)),
      });
      return false;
    }
    // Taken out of the queue before it began: no reply will ever know of it.
    return !(state_.status === 'cancelled' && state_.step === 0 && state_.base == null);
  });
  const place = (g: Group) => {
    const run = g.run === undefined ? undefined : state.runs[g.run];
    return isOpenRun(run) && run!.status !== 'queued' ? Infinity : g.place;
  };
  // Infinity - Infinity is NaN, which sort takes for equal; there is one active run at most.
  return { groups: shown.sort((a, b) => (place(a) === place(b) ? 0 : place(a) - place(b))), queued };
}

/** What a run was begun as, for another one like it. */
export function asBegun({ kind, config }: RunState): Pick<Queued, 'kind' | 'setups'> {
  const { model: _, ...setup } = config;
  return { kind, setups: { [kind]: setup } };
}

function buildTurns(part: Group, state: ConvState, models: ReadonlyMap<string, string>): Turn[] {
  const run = part.run === undefined ? undefined : state.runs[part.run];
  const turns: Turn[] = [];
  let reply: Turn | null = null;
  const loose = looseCalls(part, state);
  const calls = new Set<string>();
  const speakers = run ? speakersOf(run) : new Map<string, Speaker>();
  const laneOf = laneFinder(run, state, speakers);
  for (const message of part.messages) {
    if (message.role === 'user') {
      reply = null;
      turns.push(userTurn(message, run));
      continue;
    }
    if (!reply) {
      reply = newReply(`${message.msg}`, part.run, run, message.ts);
      turns.push(reply);
    }
    const lane = laneOf(reply, message);
    lane.isOpen = isOpenRun(run) && !isOver(message, state);
    if (message.model) lane.model = message.model;
    addNoteBefore(lane, message, part.messages, run);
    addParts(lane, message, state, run, calls, speakers);
    for (const call of loose.get(message.msg) ?? []) addCall(lane, call, state, calls, speakers);
    addNoteAfter(lane, message);
  }
  if (!run || run.status === 'queued') return finished(turns, run);
  const isOpen = isOpenRun(run);
  if (!reply && (isOpen || run.status !== 'done' || loose.has(''))) {
    reply = newReply(`reply-${part.run}`, part.run, run, run.ts);
    turns.push(reply);
  }
  if (!reply) return finished(turns, run);
  for (const call of loose.get('') ?? []) addCall(lastLane(reply), call, state, calls, speakers);
  finished(turns, run);
  for (const lane of run.status === 'running' ? (reply.blocks.at(-1)?.lanes ?? []) : []) {
    if (lane.speaker && lane.isOpen && !isLaneBusy(lane)) lane.waits = true;
  }
  const model = models.get(part.run!) ?? run.model ?? run.config.model ?? (run.base as { model?: string } | undefined)?.model;
  Object.assign(reply, {
    status: run.status,
    steps: run.step,
    usage: run.usage,
    rounds: part.messages.flatMap(roundOf),
    thinking: run.status === 'running' && !isBusy(reply),
    ...(run.error ? { error: run.error } : {}),
    ...(typeof run.after_ms === 'number' ? { afterMs: run.after_ms } : {}),
    ...(run.status === 'waiting' && run.why ? { why: run.why } : {}),
    ...(typeof model === 'string' ? { model } : {}),
  });
  return turns;
}

/** Sum up the blocks; what the run's kind keeps stands with the first reply. */
function finished(turns: Turn[], run: RunState | undefined): Turn[] {
  const replies = turns.filter((turn) => turn.role !== 'user');
  for (const turn of replies) turn.items = turn.blocks.flatMap((block) => block.lanes.flatMap((lane) => lane.items));
  if (replies[0] && run?.data !== undefined) replies[0].data = run.data;
  return turns;
}

function newReply(key: string, run: string | undefined, state: RunState | undefined, ts: number | undefined): Turn {
  return {
    key, role: 'assistant', items: [], blocks: [], thinking: false,
    ...(run ? { run } : {}), ...(state ? { kind: state.kind } : {}), ...(ts ? { ts } : {}),
  };
}

function newLane(turn: Turn, key: string, speaker: Speaker | null): Lane {
  const lane: Lane = { key, speaker, items: [], isOpen: false };
  turn.blocks.push({ key, lanes: [lane] });
  return lane;
}

function lastLane(turn: Turn): Lane {
  return turn.blocks.at(-1)?.lanes.at(-1) ?? newLane(turn, turn.key, null);
}

/**
 * Finds the lane that a message belongs to: that of its agent, if it goes on there; beside another, if the two work at
 * the same time; else a new one.
 */
function laneFinder(run: RunState | undefined, state: ConvState, speakers: ReadonlyMap<string, Speaker>) {
  /** Of each lane: whose it is, until when it worked as far as that is known, and whether its turn was over then. */
  const known = new Map<Lane, { agent: string | null; until: number; isOver: boolean }>();
  return (turn: Turn, message: Message): Lane => {
    const agent = message.agent ?? null;
    const block = turn.blocks.at(-1);
    const mine = block?.lanes.findLast((lane) => known.get(lane)!.agent === agent);
    const isLast = mine !== undefined && block!.lanes.length === 1;
    const about = mine && known.get(mine)!;
    let lane: Lane;
    if (mine && (isLast ? agent === null || !about!.isOver : !about!.isOver)) {
      lane = mine;
    } else {
      const speaker = agent === null ? null : (speakers.get(agent) ?? null);
      const isBeside = agent !== null && !mine && message.ts !== undefined && block?.lanes.some((other) => known.get(other)!.agent !== null && known.get(other)!.until > message.ts!);
      if (isBeside) {
        lane = { key: message.msg, speaker, items: [], isOpen: false };
        block!.lanes.push(lane);
      } else {
        lane = newLane(turn, message.msg, speaker);
      }
    }
    known.set(lane, { agent, until: endOf(message, run, state), isOver: isOver(message, state) });
    return lane;
  };
}

/** Whether the round that writes a message goes on; one that was cut does not, though nothing told its end. */
export function isWritten(message: Message, run: RunState | undefined): boolean {
  return message.finish === undefined && isOpenRun(run) && run!.open_steps?.[String(message.step)] !== undefined;
}

/** When a message and its calls were done; Infinity while they are not. */
function endOf(message: Message, run: RunState | undefined, state: ConvState): number {
  if (isWritten(message, run)) return Infinity;
  const calls = message.parts.flatMap((part) => (part.kind === 'tool_args' && part.call ? [state.tools[part.call]] : []));
  const ends = calls.map((tool) => (!tool ? 0 : tool.status === 'running' ? Infinity : (tool.ts ?? 0) + (tool.ms ?? 0)));
  return Math.max((message.ts ?? 0) + (message.ms ?? 0), ...ends);
}

/** Whether an agent's turn was over with a message: it called nothing, or what ends its turn. */
function isOver(message: Message, state: ConvState): boolean {
  if (message.finish === undefined || CUT.has(message.finish)) return false;
  const calls = message.parts.flatMap((part) => (part.kind === 'tool_args' && part.call ? [part.call] : []));
  return calls.length === 0 || calls.some((call) => state.tools[call]?.ends === true && state.tools[call].status === 'ok');
}

function userTurn(message: Message, run: RunState | undefined): Turn {
  const items: TurnItem[] = message.parts.map((part, i) =>
    part.kind === 'text'
      ? { kind: 'text', key: String(i), text: part.text ?? '', open: false }
      : { kind: 'media', key: String(i), part },
  );
  return {
    key: message.msg,
    role: message.role,
    items,
    blocks: [],
    thinking: false,
    ...(message.run ? { run: message.run } : {}),
    ...(run ? { kind: run.kind } : {}),
    ...(message.ts ? { ts: message.ts } : {}),
  };
}

function isBusy(turn: Turn): boolean {
  return turn.blocks.at(-1)?.lanes.some((lane) => lane.waits || isLaneBusy(lane)) ?? false;
}

/** Whether what comes of it can be seen. */
function isLaneBusy(lane: Lane): boolean {
  const last = lane.items.at(-1);
  if (!last) return false;
  if (last.kind === 'tools') return last.calls.some((c) => ['running', 'preparing', 'asking'].includes(c.status));
  if (last.kind === 'reasoning') return last.open;
  return last.kind === 'text' && last.open && last.text !== '';
}

/** That another model took over, and that the oldest messages were left out, stands before what came of it. */
function addNoteBefore(lane: Lane, message: Message, messages: Message[], run: RunState | undefined) {
  const failed: Message[] = [];
  for (let at = messages.indexOf(message) - 1; at >= 0 && messages[at]!.finish === 'fallback'; at--) failed.unshift(messages[at]!);
  const to = message.model ?? (message.step === run?.step ? run?.model : undefined);
  // Of several that failed one after the other the last one tells of all.
  if (failed.length > 0 && to && message.finish !== 'fallback') {
    const from = [...new Set(failed.map((one) => one.model ?? ''))].filter((model) => model !== to);
    const answered = message.finish !== 'failed';
    lane.items.push({ kind: 'note', key: `fallback-${message.msg}`, note: { about: 'fallback', from, to, why: failed.at(-1)!.error?.message ?? '', answered } });
  }
  if (run?.trimmed && run.trimmed.step === message.step) {
    lane.items.push({ kind: 'note', key: `trimmed-${message.msg}`, note: { about: 'trimmed', ...run.trimmed } });
  }
}

function addNoteAfter(lane: Lane, { msg, finish, usage }: Message) {
  const about = finish === 'length' || finish === 'refused' ? (finish as 'length' | 'refused') : null;
  if (about) lane.items.push({ kind: 'note', key: `${about}-${msg}`, note: { about, ...(usage ? { tokens: usage.output } : {}) } });
}

function roundOf(message: Message): Round[] {
  const { step, model, finish } = message;
  if (message.role === 'user' || finish === undefined || step === undefined) return [];
  const thoughtMs = message.parts.reduce((sum, part) => sum + (part.kind === 'reasoning' ? (part.ms ?? 0) : 0), 0);
  return [{
    step, finish, model: model ?? '',
    ...(message.usage ? { usage: message.usage } : {}),
    ...(typeof message.ms === 'number' ? { ms: message.ms } : {}),
    ...(thoughtMs > 0 ? { thoughtMs } : {}),
    ...(message.request ? { request: message.request } : {}),
    ...(message.error ? { why: message.error.message } : {}),
  }];
}

function addParts(lane: Lane, message: Message, state: ConvState, run: RunState | undefined, calls: Set<string>, speakers: ReadonlyMap<string, Speaker>) {
  message.parts.forEach((part, i) => {
    const key = String(part.part ?? `${message.msg}.${i}`);
    const text = part.text ?? '';
    const open = part.open && isOpenRun(run);
    if (part.kind === 'text') {
      if (text.trim() === '' && !open) return;
      lane.items.push({ kind: 'text', key, text, open });
    } else if (part.kind === 'reasoning') {
      // A vendor may keep the thoughts to itself, or give back in an instant what it wants to have again.
      if (text.trim() === '' && !open && (part.ms ?? 0) < SHORT_THOUGHT_MS) return;
      lane.items.push({
        kind: 'reasoning', key, text, open,
        ...(part.ts ? { ts: part.ts } : {}),
        ...(typeof part.ms === 'number' ? { ms: part.ms } : {}),
      });
    } else if (part.kind === 'tool_args') {
      if (part.call && state.tools[part.call]) addCall(lane, part.call, state, calls, speakers);
      else if (isOpenRun(run) && !part.partial) addPreparing(lane, part, key);
    } else if (part.kind === 'tool_output') {
      const view = lane.items.flatMap((item) => (item.kind === 'tools' ? item.calls : [])).find((c) => c.call === part.call);
      if (view) view.output += text;
    } else {
      lane.items.push({ kind: 'media', key, part });
    }
  });
}

/** Consecutive calls stand in one group. */
function callsOf(lane: Lane, key: string): ToolView[] {
  const last = lane.items.at(-1);
  if (last?.kind === 'tools') return last.calls;
  const item: TurnItem = { kind: 'tools', key: `tools-${key}`, calls: [] };
  lane.items.push(item);
  return item.calls;
}

function addPreparing(lane: Lane, part: Part, key: string) {
  callsOf(lane, part.call ?? key).push({
    call: part.call ?? key,
    name: typeof part.name === 'string' ? part.name : '',
    origin: '',
    status: 'preparing',
    args: undefined,
    argsText: part.text ?? '',
    output: '',
    ...(part.ts ? { ts: part.ts } : {}),
  });
}

/** A call that was made again since it was lost is one with the newest that repeats it. */
function addCall(lane: Lane, first: string, state: ConvState, calls: Set<string>, speakers: ReadonlyMap<string, Speaker>) {
  let call = first;
  let repeats = 0;
  while (state.tools[call] && !calls.has(call)) {
    calls.add(call);
    const next = state.tools[call]!.repeated;
    if (next === undefined || !state.tools[next]) {
      const tool = state.tools[call]!;
      const line = lineOf(tool, speakers);
      if (line) lane.items.push({ kind: 'line', key: `line-${call}`, line });
      else {
        const agent = tool.agent ? speakers.get(tool.agent)?.name : undefined;
        callsOf(lane, call).push({ ...viewCall(call, tool, state), ...(agent ? { agent } : {}), ...(repeats > 0 ? { repeats } : {}) });
      }
      return;
    }
    call = next;
    repeats += 1;
  }
}

function viewCall(call: string, tool: ToolState, state: ConvState): ToolView {
  const isAsked = tool.status === 'running' && Object.values(state.asks).some((ask) => ask.call === call);
  const view: ToolView = {
    call, name: tool.name, origin: tool.origin, args: tool.args, argsText: '', output: '',
    status: isAsked ? 'asking' : tool.status,
  };
  for (const member of ['title', 'connector', 'risk', 'progress', 'ts', 'ms', 'result', 'error', 'ref'] as const) {
    if (tool[member] !== undefined && tool[member] !== null) Object.assign(view, { [member]: tool[member] });
  }
  return view;
}

/**
 * Calls that no part announces, by the message that they stand under (`''`: under the last): the one of their step, else
 * the newest from before they began.
 */
function looseCalls(part: Group, state: ConvState): Map<string, string[]> {
  const loose = new Map<string, string[]>();
  if (part.run === undefined) return loose;
  const replies = part.messages.filter((m) => m.role !== 'user');
  const announced = new Set(replies.flatMap((m) => m.parts.map((p) => p.call)));
  for (const [call, tool] of Object.entries(state.tools)) {
    if (tool.run !== part.run || announced.has(call)) continue;
    const byStep = tool.step === undefined ? undefined : replies.find((m) => m.step === tool.step);
    const home = byStep ?? replies.findLast((m) => (m.ts ?? 0) <= (tool.ts ?? 0));
    const list = loose.get(home?.msg ?? '') ?? [];
    loose.set(home?.msg ?? '', [...list, call]);
  }
  return loose;
}

/** Which runs an event of `conv:<id>` touches; `all` where that is not told by the event itself. */
export function touchedRuns(state: ConvState, e: string, d: any): string[] | 'all' {
  if (typeof d?.run === 'string') return [d.run];
  if (e === 'tool.progress' || e === 'tool.close') {
    const run = state.tools[d?.call]?.run;
    return run ? [run] : 'all';
  }
  if (e === 'delta' || e === 'part.close' || e === 'part.drop' || e === 'ask.close') {
    return Object.entries(state.runs).filter(([, run]) => isOpenRun(run)).map(([id]) => id);
  }
  if (e === 'conv' || e === 'config' || e === 'config.applied') return [];
  return 'all';
}
