/**
 * A run as a picture over time: who worked when, with which tools, what was asked, said and patched meanwhile. Pure.
 *
 * Times are Unix ms. Where nobody worked for long the picture is shortened, so that a night between a question and its
 * answer does not leave everything else a hair's breadth.
 */
import type { Message, RunState, ToolState } from '@sag/client';
import { speakersOf, type Speaker } from './agents';
import { formatCount, formatElapsed, wordsOf } from './format';
import { describePatch } from './live';
import { isOpenRun, isWritten, textOf } from './transcript';

export interface TimelineEvent {
  key: string;
  kind: 'step' | 'tool' | 'ask' | 'patch' | 'said';
  /** What it is called, and what else there is to say of it. */
  title: string;
  facts: string[];
  tone: 'plain' | 'bad' | 'quiet';
  from: number;
  /** The same as `from` where it takes no time, or nobody knows how long it took. */
  to: number;
  isOpen: boolean;
  /** Which of its lane's rows it stands in, from 0. */
  row: number;
}

export interface TimelineLane {
  key: string;
  name: string;
  /** 0 for people, and for the assistant among agents. */
  colour: number;
  rows: number;
  events: TimelineEvent[];
}

export interface Timeline {
  lanes: TimelineLane[];
  from: number;
  to: number;
  isOpen: boolean;
  /** Time that is shown; less than `to - from` where it is shortened. */
  length: number;
  /** Where nothing happened for long: from when, and how long. */
  breaks: { from: number; ms: number }[];
}

/** What of a conversation's state a timeline is made of. */
export interface RunParts {
  run: RunState;
  messages: Message[];
  tools: Record<string, ToolState>;
}

/** What a gap that is shortened is shown as: a share of the time in which somebody worked, but not less than this. */
const GAP_MS = 500;
const GAP_SHARE = 0.1;
const PEOPLE = 'people';

export function timelineOf({ run, messages, tools }: RunParts, now: number, modelName: (model: string) => string): Timeline {
  const isOpen = isOpenRun(run);
  const speakers = speakersOf(run);
  const lanes = new Map<string, TimelineLane>();
  const laneOf = (agent: string | null | undefined) => {
    const speaker = agent == null ? undefined : speakers.get(agent);
    // Who has another go under another id, such as the planner of a plan, is still the same to people.
    const key = speaker ? `${speaker.colour} ${speaker.name}` : (agent ?? '');
    const known = lanes.get(key) ?? newLane(key, speaker, agent ?? '', speakers.size > 0 ? 0 : 1);
    lanes.set(key, known);
    return known;
  };
  const steps = messages.filter((message) => message.role !== 'user' && message.ts !== undefined);
  const names = Object.fromEntries([...speakers].map(([id, speaker]) => [id, speaker.name]));
  const people: TimelineLane = { key: PEOPLE, name: 'You', colour: 0, rows: 1, events: [] };
  for (const message of steps) laneOf(message.agent).events.push(stepEvent(message, run, now, modelName));
  for (const [call, tool] of Object.entries(tools)) {
    if (tool.ts !== undefined) laneOf(tool.agent).events.push(toolEvent(call, tool, run, steps, now, isOpen));
  }
  for (const message of messages) {
    if (message.role === 'user' && message.ts !== undefined) people.events.push(point(`said-${message.msg}`, 'said', message.ts, 'Said', [textOf(message).slice(0, 200)]));
  }
  for (const ask of run.asked ?? []) {
    const isWaiting = ask.choice === undefined && isOpen;
    const next = steps.find((step) => step.ts! >= ask.ts)?.ts;
    const call = ask.call === undefined ? undefined : tools[ask.call];
    const answered = call ? beginOf(ask.call!, call, run, steps) : (next ?? ask.ts);
    const choice = ask.choice == null ? (isWaiting ? 'waiting' : 'not answered') : wordsOf(ask.choice);
    people.events.push({ ...point(`ask-${ask.ask}`, 'ask', ask.ts, ask.title || 'Asked', [choice]), to: isWaiting ? Math.max(now, ask.ts) : Math.max(answered, ask.ts), isOpen: isWaiting });
  }
  for (const { rev, patch, ts, step } of run.changes ?? []) {
    if (ts !== undefined) people.events.push(point(`patch-${rev}`, 'patch', ts, describePatch(patch, names), [`made during step ${step}`]));
  }
  const all = [people, ...lanes.values()].filter((lane) => lane.events.length > 0);
  for (const lane of all) pack(lane);
  const events = all.flatMap((lane) => lane.events);
  const from = Math.min(...events.map((event) => event.from), Infinity);
  const to = Math.max(...events.map((event) => event.to), isOpen && events.length > 0 ? now : -Infinity);
  if (events.length === 0) return { lanes: [], from: 0, to: 0, isOpen, length: 1, breaks: [] };
  return { lanes: all, from, to, isOpen, ...shorten(events, from, to) };
}

function newLane(key: string, speaker: Speaker | undefined, agent: string, colour: number): TimelineLane {
  return { key: `agent-${key}`, name: speaker?.name ?? (agent || 'Assistant'), colour: speaker?.colour ?? colour, rows: 1, events: [] };
}

function point(key: string, kind: TimelineEvent['kind'], at: number, title: string, facts: string[]): TimelineEvent {
  return { key, kind, title, facts: facts.filter(Boolean), tone: 'plain', from: at, to: at, isOpen: false, row: 0 };
}

function stepEvent(message: Message, run: RunState, now: number, modelName: (model: string) => string): TimelineEvent {
  const { step, usage, ms, finish } = message;
  const model = message.model ?? run.open_steps?.[String(step)]?.model;
  const isWorking = isWritten(message, run);
  const from = message.ts!;
  // Of a round that was cut it is known until when it wrote.
  const wrote = ms == null ? Math.max(from, ...message.parts.map((part) => part.ts ?? 0)) - from : 0;
  return {
    ...point(`step-${message.msg}`, 'step', from, step === undefined ? 'Step' : `Step ${step}`, [
      model ? modelName(model) : '',
      usage ? `${formatCount(usage.input)} tokens in, ${formatCount(usage.output)} out` : '',
      finish === undefined && !isWorking ? 'cut' : finish && !['stop', 'tools'].includes(finish) ? finish : '',
    ]),
    to: isWorking ? Math.max(now, from) : from + (ms ?? wrote), isOpen: isWorking,
    tone: finish === 'failed' ? 'bad' : ['fallback', 'config', 'cancelled', 'interrupted'].includes(finish ?? (isWorking ? '' : 'cancelled')) ? 'quiet' : 'plain',
  };
}

function toolEvent(call: string, tool: ToolState, run: RunState, steps: Message[], now: number, isOpen: boolean): TimelineEvent {
  const isRunning = isOpen && tool.status === 'running';
  const from = beginOf(call, tool, run, steps);
  const isWaiting = isRunning && run.asked?.some((ask) => ask.call === call && ask.choice === undefined);
  return {
    ...point(`tool-${call}`, 'tool', from, tool.title || wordsOf(tool.name), [
      isWaiting ? 'waits for an answer' : tool.status === 'ok' ? '' : tool.status,
      tool.repeated ? 'made again later' : '', tool.connector ?? '',
    ]),
    to: isRunning ? Math.max(now, from) : from + (tool.ms ?? 0), isOpen: isRunning,
    tone: ['error', 'invalid', 'timeout', 'lost'].includes(tool.status) ? 'bad' : ['denied', 'cancelled'].includes(tool.status) ? 'quiet' : 'plain',
  };
}

/**
 * When a tool began to work. It is told when the call was made; where a person was asked first, it worked at the end of
 * the time before the next step of its agent.
 */
function beginOf(call: string, tool: ToolState, run: RunState, steps: Message[]): number {
  const made = tool.ts ?? 0;
  const wasAsked = run.asked?.some((ask) => ask.call === call && ask.choice !== undefined);
  if (!wasAsked || tool.status === 'running') return made;
  const next = steps.find((step) => step.ts! > made && (step.agent ?? null) === (tool.agent ?? null))?.ts;
  return next === undefined ? made : Math.max(made, next - (tool.ms ?? 0));
}

/** Events of a lane in as few rows as keep them apart: steps first, then what happened during them. */
function pack(lane: TimelineLane) {
  const order = ['said', 'step', 'ask', 'tool', 'patch'];
  lane.events.sort((a, b) => a.from - b.from || order.indexOf(a.kind) - order.indexOf(b.kind));
  let first = 0;
  for (const kinds of [['step', 'said', 'patch'], ['tool', 'ask']]) {
    const ends: number[] = [];
    for (const event of lane.events.filter((one) => kinds.includes(one.kind))) {
      // Points may lie upon each other; what takes time may not.
      const free = event.to === event.from ? 0 : ends.findIndex((end) => end <= event.from);
      const row = free < 0 ? ends.length : free;
      ends[row] = Math.max(ends[row] ?? 0, event.to);
      event.row = first + row;
    }
    first += ends.length;
  }
  lane.rows = Math.max(1, first);
}

/** Which gaps are shortened, and how long what is shown is then. */
function shorten(events: TimelineEvent[], from: number, to: number): Pick<Timeline, 'length' | 'breaks'> {
  const work = events.filter((event) => event.kind !== 'ask').sort((a, b) => a.from - b.from);
  const gaps: { from: number; ms: number }[] = [];
  let end = from;
  let busy = 0;
  for (const event of [...work, { from: to, to }]) {
    if (event.from > end) gaps.push({ from: end, ms: event.from - end });
    busy += Math.max(0, event.to - Math.max(end, event.from));
    end = Math.max(end, event.to);
  }
  const longest = gapOf(busy);
  const breaks = gaps.filter((gap) => gap.ms > longest * 2);
  const saved = breaks.reduce((sum, gap) => sum + gap.ms - longest, 0);
  return { breaks, length: Math.max(1, to - from - saved) };
}

function gapOf(busy: number): number {
  return Math.max(GAP_MS, busy * GAP_SHARE);
}

/** Where a moment stands in the picture, from 0 to 1. */
export function placeOf(timeline: Timeline, at: number): number {
  const { from, breaks, length, to } = timeline;
  const whole = to - from;
  const kept = breaks.length === 0 ? 0 : (length - (whole - breaks.reduce((sum, gap) => sum + gap.ms, 0))) / breaks.length;
  let place = Math.min(Math.max(at, from), to) - from;
  for (const gap of breaks) {
    const inside = Math.min(Math.max(at - gap.from, 0), gap.ms);
    place -= inside - (inside / gap.ms) * kept;
  }
  return place / length;
}

/** Round moments for the axis, so many at most, none of them in a gap that is shortened. */
export function ticksOfTime(timeline: Timeline, most: number): { at: number; label: string }[] {
  const { from, to, breaks, length } = timeline;
  const steps = [100, 200, 500, 1000, 2000, 5000, 10_000, 15_000, 30_000, 60_000, 120_000, 300_000, 600_000, 1_800_000, 3_600_000, 7_200_000, 21_600_000, 86_400_000];
  const step = steps.find((one) => length / one <= Math.max(1, most)) ?? steps.at(-1)!;
  const ticks: { at: number; label: string }[] = [];
  const spans = [from, ...breaks.flatMap((gap) => [gap.from, gap.from + gap.ms]), to];
  for (let i = 0; i + 1 < spans.length; i += 2) {
    const first = Math.ceil((spans[i]! - from) / step) * step;
    for (let ms = first; from + ms <= spans[i + 1]! && ticks.length < 200; ms += step) ticks.push({ at: from + ms, label: ms === 0 ? '0' : axisWords(ms) });
  }
  return ticks;
}

function axisWords(ms: number): string {
  if (ms < 1000) return `${ms} ms`;
  if (ms < 60_000) return `${Number((ms / 1000).toFixed(1))} s`;
  return formatElapsed(ms);
}

/** All events of a timeline in order, with whose they are: the picture as a table. */
export function rowsOf(timeline: Timeline): { lane: TimelineLane; event: TimelineEvent }[] {
  return timeline.lanes.flatMap((lane) => lane.events.map((event) => ({ lane, event }))).sort((a, b) => a.event.from - b.event.from);
}

/** How long an event took, in words; '' where it takes no time or that is not known. */
export function tookWords({ from, to, isOpen, kind }: TimelineEvent): string {
  if (kind === 'said' || kind === 'patch') return '';
  if (to === from) return isOpen ? 'just begun' : '';
  return `${formatElapsed(to - from)}${isOpen ? ' so far' : ''}`;
}
