/**
 * The folds of the built-in topics: old state plus event gives new state (protocol sections 3 to 6).
 *
 * Pure: no clock, no network, no topic bookkeeping. A reducer changes the state that it is given in place and never an
 * event's data, which stays the caller's. The server folds by the same rules; `tests/transcripts` holds both to them.
 */
import type { Asked, ClientState, ConfigChange, ConvState, HubState, Message, Part, RunState, ToolState, Usage, UserState } from './shapes';

type Json = Record<string, any>;

function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/**
 * Applies a merge patch (RFC 7396): left out is unchanged, `null` removes, a value replaces.
 *
 * Gives a new value and leaves both arguments as they were; a patch that is no object replaces the target.
 */
export function mergePatch(target: any, patch: any): any {
  if (!isObject(patch)) return patch;
  const merged: Json = isObject(target) ? { ...target } : {};
  for (const [member, value] of Object.entries(patch)) {
    if (value === null) delete merged[member];
    else merged[member] = mergePatch(merged[member], value);
  }
  return merged;
}

/** Applies a merge patch to an object that others hold a reference to. */
function patchInPlace(target: Json, patch: unknown): void {
  if (!isObject(patch)) return;
  for (const [member, value] of Object.entries(patch)) {
    if (value === null) delete target[member];
    else target[member] = mergePatch(target[member], value);
  }
}

/** Merges a patch into one entry of a map; a patch of `null` removes the entry. */
function patchEntry(map: Json, id: string, patch: unknown): void {
  if (patch === null) delete map[id];
  else map[id] = mergePatch(map[id], patch);
}

/** In the events that close something, a member that is `null` counts as left out. */
function isGiven(value: unknown): boolean {
  return value !== undefined && value !== null;
}

function without(d: Json, ...members: string[]): any {
  const rest = { ...d };
  for (const member of members) delete rest[member];
  return rest;
}

function addUsage(total: Usage, step: unknown): Usage {
  const sum: Usage = { ...total };
  if (!isObject(step)) return sum;
  for (const [member, value] of Object.entries(step)) {
    if (typeof value === 'number') sum[member] = (sum[member] ?? 0) + value;
  }
  return sum;
}

// ---------------------------------------------------------------- conv:<id>

/** So many of the newest patches of a run its object tells. */
const CHANGES = 200;
/** And so many of the newest questions. */
const ASKED = 200;

export function emptyConv(id: string): ConvState {
  return { conv: { id, config: {}, rev: 1 }, messages: [], runs: {}, tools: {}, asks: {} };
}

function findMessage(state: ConvState, msg: string): Message | undefined {
  return state.messages.findLast((message) => message.msg === msg);
}

/** Where a part lies; searched from the end, since what changes is nearly always in the last message. */
function findPart(state: ConvState, part: number): { message: Message; index: number; part: Part } | undefined {
  for (let at = state.messages.length - 1; at >= 0; at--) {
    const message = state.messages[at]!;
    const index = message.parts.findIndex((candidate) => candidate.part === part);
    if (index >= 0) return { message, index, part: message.parts[index]! };
  }
  return undefined;
}

type Fold<S> = Record<string, (state: S, d: any) => void>;

/** The scope `run:<id>` as the run of that id, if it is known. */
function runOfScope(state: ConvState, scope: unknown): RunState | undefined {
  return typeof scope === 'string' && scope.startsWith('run:') ? state.runs[scope.slice(4)] : undefined;
}

function setAgent(state: ConvState, d: any, to: 'open' | 'closed'): void {
  const run = state.runs[d.run];
  if (!run) return;
  run.agents = { ...run.agents, [d.agent]: to };
  if (d.title) run.titles = { ...run.titles, [d.agent]: d.title };
}

const convFold: Fold<ConvState> = {
  'message.add'(state, d) {
    const parts = (d.parts ?? []).map((part: Json) => ({ ...part, open: false }));
    state.messages.push({ ...d, parts });
  },
  'message.drop'(state, d) {
    const index = state.messages.findIndex((message) => message.msg === d.msg);
    if (index >= 0) state.messages.splice(index, 1);
  },
  'run.open'(state, d) {
    const run: RunState = without(d, 'run');
    state.runs[d.run] = { ...run, step: 0, config: run.config ?? {}, usage: { input: 0, output: 0 } };
  },
  run(state, d) {
    const run = state.runs[d.run];
    if (run) patchInPlace(run, d.patch);
  },
  'run.close'(state, d) {
    const run = state.runs[d.run];
    if (!run) return;
    run.status = d.status;
    if (d.usage) run.usage = { ...d.usage };
    if (d.error) run.error = d.error;
    else delete run.error;
    delete run.after_ms;
    delete run.why;
  },
  'step.open'(state, d) {
    const run = state.runs[d.run];
    if (!run) return;
    run.step = d.step;
    run.model = d.model;
    run.open_steps = { ...run.open_steps, [String(d.step)]: without(d, 'run', 'step') };
  },
  'step.close'(state, d) {
    const run = state.runs[d.run];
    if (!run) return;
    const { [String(d.step)]: opened, ...open } = run.open_steps ?? {};
    if (Object.keys(open).length > 0) run.open_steps = open;
    else delete run.open_steps;
    if (d.usage) run.usage = addUsage(run.usage, d.usage);
    const message = state.messages.findLast((one) => one.step === d.step && one.run === d.run);
    if (message) Object.assign(message, without(d, 'run', 'step'), { model: opened?.model ?? run.model });
  },
  'agent.open'(state, d) {
    setAgent(state, d, 'open');
  },
  'agent.close'(state, d) {
    setAgent(state, d, 'closed');
  },
  'part.open'(state, d) {
    const part: Part = { ...without(d, 'run', 'msg'), text: '', open: true };
    findMessage(state, d.msg)?.parts.push(part);
  },
  delta(state, d) {
    for (let at = 0; at + 1 < d.length; at += 2) {
      const found = findPart(state, d[at]);
      if (found) found.part.text = (found.part.text ?? '') + d[at + 1];
    }
  },
  'part.close'(state, d) {
    const found = findPart(state, d.part);
    if (!found) return;
    found.part.open = false;
    for (const member of ['partial', 'ms', 'replay'] as const) {
      if (isGiven(d[member])) found.part[member] = d[member];
    }
  },
  'part.drop'(state, d) {
    const found = findPart(state, d.part);
    found?.message.parts.splice(found.index, 1);
  },
  'tool.open'(state, d) {
    state.tools[d.call] = { ...without(d, 'call'), status: 'running' } as ToolState;
    const lost = isGiven(d.again) ? state.tools[d.again] : undefined;
    if (lost) lost.repeated = d.call;
  },
  'tool.progress'(state, d) {
    const tool = state.tools[d.call];
    if (tool) tool.progress = without(d, 'call');
  },
  'tool.close'(state, d) {
    const tool = state.tools[d.call];
    if (!tool) return;
    tool.status = d.status;
    for (const member of ['ms', 'result', 'error', 'ref'] as const) {
      if (isGiven(d[member])) tool[member] = d[member];
    }
  },
  'ask.open'(state, d) {
    state.asks[d.ask] = without(d, 'ask');
    const run = state.runs[d.run];
    if (!run) return;
    const given = (['ask', 'kind', 'title', 'name', 'call', 'ts'] as const).filter((member) => isGiven(d[member]));
    run.asked = [...(run.asked ?? []), Object.fromEntries(given.map((member) => [member, d[member]])) as unknown as Asked].slice(-ASKED);
  },
  'ask.close'(state, d) {
    const ask = state.asks[d.ask];
    if (!ask) return;
    delete state.asks[d.ask];
    const tool = ask.call === undefined ? undefined : state.tools[ask.call];
    if (tool && isGiven(d.args)) tool.args = d.args;
    const run = state.runs[ask.run];
    if (run?.asked) run.asked = run.asked.map((one) => (one.ask === d.ask ? { ...one, choice: d.choice, by: d.by } : one));
  },
  config(state, d) {
    const holder = String(d.scope).startsWith('conv:') ? state.conv : runOfScope(state, d.scope);
    if (!holder) return;
    holder.config = mergePatch(holder.config, d.patch);
    holder.rev = d.rev;
    if (holder === state.conv) return;
    const run = holder as RunState;
    run.changes = [...(run.changes ?? []), { ...without(d, 'scope'), step: run.step } as ConfigChange].slice(-CHANGES);
  },
  'config.applied'(state, d) {
    const run = runOfScope(state, d.scope);
    if (run) run.applied = { rev: d.rev, step: d.step };
  },
  conv(state, d) {
    patchInPlace(state.conv, d.patch);
  },
};

/** Folds an event of `conv:<id>` into its state; an unknown event changes nothing. */
export function reduceConv(state: ConvState, e: string, d: any): void {
  apply(convFold, state, e, d);
}

// ------------------------------------------------------------------ user:me

export function emptyUser(): UserState {
  return { convs: {}, runs: {}, asks: {} };
}

const userFold: Fold<UserState> = {
  conv(state, d) {
    patchEntry(state.convs, d.conv, d.patch);
  },
  'conv.drop'(state, d) {
    delete state.convs[d.conv];
  },
  'run.open'(state, d) {
    state.runs[d.run] = without(d, 'run');
  },
  run(state, d) {
    if (state.runs[d.run]) patchEntry(state.runs, d.run, d.patch);
  },
  'run.close'(state, d) {
    delete state.runs[d.run];
  },
  'ask.open'(state, d) {
    state.asks[d.ask] = without(d, 'ask');
  },
  'ask.close'(state, d) {
    delete state.asks[d.ask];
  },
};

/** Folds an event of `user:me` into its state; an unknown event changes nothing. */
export function reduceUser(state: UserState, e: string, d: any): void {
  apply(userFold, state, e, d);
}

// -------------------------------------------------------------- client:<id>

export function emptyClient(): ClientState {
  return { config: {}, rev: 1, presets: {}, ui: {} };
}

const clientFold: Fold<ClientState> = {
  config(state, d) {
    state.config = mergePatch(state.config, d.patch);
    state.rev = d.rev;
  },
  client(state, d) {
    patchInPlace(state, d.patch);
  },
};

/** Folds an event of `client:<id>` into its state; an unknown event changes nothing. */
export function reduceClient(state: ClientState, e: string, d: any): void {
  apply(clientFold, state, e, d);
}

// ---------------------------------------------------------------------- hub

export function emptyHub(): HubState {
  return { plugins: {}, connectors: {}, models: {} };
}

const hubFold: Fold<HubState> = {
  plugin(state, d) {
    patchEntry(state.plugins, d.id, d.patch);
  },
  connector(state, d) {
    patchEntry(state.connectors, d.id, d.patch);
  },
  model(state, d) {
    patchEntry(state.models, d.id, d.patch);
  },
};

/** Folds an event of `hub` into its state; an unknown event changes nothing. */
export function reduceHub(state: HubState, e: string, d: any): void {
  apply(hubFold, state, e, d);
}

// -----------------------------------------------------------------------

function apply<S>(fold: Fold<S>, state: S, e: string, d: any): void {
  if (Object.hasOwn(fold, e)) fold[e]!(state, d);
}

export type Reducer = (state: any, e: string, d: any) => void;

/** The fold of a topic, by its name; undefined for a plugin's own topic. */
export function reducerOf(topic: string): Reducer | undefined {
  if (topic === 'user:me') return reduceUser;
  if (topic === 'hub') return reduceHub;
  if (topic.startsWith('conv:')) return reduceConv;
  if (topic.startsWith('client:')) return reduceClient;
  return undefined;
}
