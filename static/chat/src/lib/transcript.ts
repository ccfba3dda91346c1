/**
 * From a conversation's state to what its page shows: turns, tool cards, what is queued. Pure.
 *
 * The socket client folds events into the state in place; `TranscriptBuilder` is told which runs changed since it was
 * last asked, builds those anew and answers the same objects for all others, so that only what changed is rendered.
 */
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
  | { kind: 'text'; key: string; text: string; open: boolean; agent?: string }
  | { kind: 'reasoning'; key: string; text: string; open: boolean; ts?: number; ms?: number }
  | { kind: 'tools'; key: string; calls: ToolView[] }
  | { kind: 'media'; key: string; part: Part }
  | { kind: 'note'; key: string; note: Note };

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
  ts?: number;
  items: TurnItem[];
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
}

/** A thought without words that took less is not told. */
const SHORT_THOUGHT_MS = 1000;
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
      const entry = fresh ?? { size: part.messages.length, turns: buildTurns(part, state, models) };
      cache.set(key, entry);
      turns.push(...entry.turns);
    }
    this.#cache = cache;
    return { turns, queued, active: activeRun(state) };
  }
}

function join(older: Older, newest: ConvState): ConvState {
  return {
    ...newest,
    messages: [...older.messages, ...newest.messages],
    runs: { ...older.runs, ...newest.runs },
    tools: { ...older.tools, ...newest.tools },
  };
}

function activeRun(state: ConvState): ActiveRun | null {
  for (const [id, run] of Object.entries(state.runs)) {
    if (isOpenRun(run) && run.status !== 'queued') return { ...run, id };
  }
  return null;
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

function buildTurns(part: Group, state: ConvState, models: ReadonlyMap<string, string>): Turn[] {
  const run = part.run === undefined ? undefined : state.runs[part.run];
  const turns: Turn[] = [];
  let reply: Turn | null = null;
  const loose = looseCalls(part, state);
  const calls = new Set<string>();
  for (const message of part.messages) {
    if (message.role === 'user') {
      reply = null;
      turns.push(userTurn(message));
      continue;
    }
    if (!reply) {
      reply = newReply(`${message.msg}`, part.run, message.ts);
      turns.push(reply);
    }
    addNoteBefore(reply, message, part.messages, run);
    addParts(reply, message, state, run, calls);
    for (const call of loose.get(message.msg) ?? []) addCall(reply, call, state, calls);
    addNoteAfter(reply, message);
  }
  if (!run || run.status === 'queued') return turns;
  const isOpen = isOpenRun(run);
  if (!reply && (isOpen || run.status !== 'done' || loose.has(''))) {
    reply = newReply(`reply-${part.run}`, part.run, run.ts);
    turns.push(reply);
  }
  if (!reply) return turns;
  for (const call of loose.get('') ?? []) addCall(reply, call, state, calls);
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

function newReply(key: string, run: string | undefined, ts: number | undefined): Turn {
  return { key, role: 'assistant', items: [], thinking: false, ...(run ? { run } : {}), ...(ts ? { ts } : {}) };
}

function userTurn(message: Message): Turn {
  const items: TurnItem[] = message.parts.map((part, i) =>
    part.kind === 'text'
      ? { kind: 'text', key: String(i), text: part.text ?? '', open: false }
      : { kind: 'media', key: String(i), part },
  );
  return {
    key: message.msg,
    role: message.role,
    items,
    thinking: false,
    ...(message.run ? { run: message.run } : {}),
    ...(message.ts ? { ts: message.ts } : {}),
  };
}

function isBusy(turn: Turn): boolean {
  const last = turn.items.at(-1);
  if (!last) return false;
  if (last.kind === 'tools') return last.calls.some((c) => ['running', 'preparing', 'asking'].includes(c.status));
  if (last.kind === 'reasoning') return last.open;
  return last.kind === 'text' && last.open && last.text !== '';
}

/** That another model took over, and that the oldest messages were left out, stands before what came of it. */
function addNoteBefore(turn: Turn, message: Message, messages: Message[], run: RunState | undefined) {
  const failed: Message[] = [];
  for (let at = messages.indexOf(message) - 1; at >= 0 && messages[at]!.finish === 'fallback'; at--) failed.unshift(messages[at]!);
  const to = message.model ?? (message.step === run?.step ? run?.model : undefined);
  // Of several that failed one after the other the last one tells of all.
  if (failed.length > 0 && to && message.finish !== 'fallback') {
    const from = [...new Set(failed.map((one) => one.model ?? ''))].filter((model) => model !== to);
    const answered = message.finish !== 'failed';
    turn.items.push({ kind: 'note', key: `fallback-${message.msg}`, note: { about: 'fallback', from, to, why: failed.at(-1)!.error?.message ?? '', answered } });
  }
  if (run?.trimmed && run.trimmed.step === message.step) {
    turn.items.push({ kind: 'note', key: `trimmed-${message.msg}`, note: { about: 'trimmed', ...run.trimmed } });
  }
}

function addNoteAfter(turn: Turn, { msg, finish, usage }: Message) {
  const about = finish === 'length' || finish === 'refused' ? (finish as 'length' | 'refused') : null;
  if (about) turn.items.push({ kind: 'note', key: `${about}-${msg}`, note: { about, ...(usage ? { tokens: usage.output } : {}) } });
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

function addParts(turn: Turn, message: Message, state: ConvState, run: RunState | undefined, calls: Set<string>) {
  message.parts.forEach((part, i) => {
    const key = String(part.part ?? `${message.msg}.${i}`);
    const text = part.text ?? '';
    const open = part.open && isOpenRun(run);
    if (part.kind === 'text') {
      if (text.trim() === '' && !open) return;
      turn.items.push({ kind: 'text', key, text, open, ...(part.agent || message.agent ? { agent: String(part.agent ?? message.agent) } : {}) });
    } else if (part.kind === 'reasoning') {
      // A vendor may keep the thoughts to itself, or give back in an instant what it wants to have again.
      if (text.trim() === '' && !open && (part.ms ?? 0) < SHORT_THOUGHT_MS) return;
      turn.items.push({
        kind: 'reasoning', key, text, open,
        ...(part.ts ? { ts: part.ts } : {}),
        ...(typeof part.ms === 'number' ? { ms: part.ms } : {}),
      });
    } else if (part.kind === 'tool_args') {
      if (part.call && state.tools[part.call]) addCall(turn, part.call, state, calls);
      else if (isOpenRun(run) && !part.partial) addPreparing(turn, part, key);
    } else if (part.kind === 'tool_output') {
      const view = turn.items.flatMap((item) => (item.kind === 'tools' ? item.calls : [])).find((c) => c.call === part.call);
      if (view) view.output += text;
    } else {
      turn.items.push({ kind: 'media', key, part });
    }
  });
}

/** Consecutive calls stand in one group. */
function callsOf(turn: Turn, key: string): ToolView[] {
  const last = turn.items.at(-1);
  if (last?.kind === 'tools') return last.calls;
  const item: TurnItem = { kind: 'tools', key: `tools-${key}`, calls: [] };
  turn.items.push(item);
  return item.calls;
}

function addPreparing(turn: Turn, part: Part, key: string) {
  callsOf(turn, part.call ?? key).push({
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

function addCall(turn: Turn, call: string, state: ConvState, calls: Set<string>) {
  const tool = state.tools[call];
  if (!tool || calls.has(call)) return;
  calls.add(call);
  callsOf(turn, call).push(viewCall(call, tool, state));
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
