/**
 * The shapes of the built-in topics' snapshots (protocol sections 3 to 6), as JSON.
 *
 * Types only. Members that a newer server adds arrive too and are kept; the open-ended shapes say so with an index
 * signature. `reduce` folds events into these shapes, `topic` holds them for the application.
 */

export type Role = 'user' | 'assistant' | 'system' | (string & {});
export type PartKind = 'text' | 'reasoning' | 'tool_args' | 'tool_output' | 'image' | 'file' | (string & {});
export type RunStatus =
  | 'queued' | 'running' | 'waiting' | 'paused'
  | 'done' | 'cancelled' | 'failed' | 'limit' | 'interrupted' | (string & {});
export type ToolStatus =
  | 'running' | 'ok' | 'error' | 'denied' | 'invalid' | 'timeout' | 'cancelled' | 'lost' | (string & {});

/** How a step ended; after `fallback` another model takes over. */
export type Finish = 'stop' | 'tools' | 'length' | 'refused' | 'config' | 'fallback' | 'cancelled' | 'failed' | (string & {});

/** A sparse config document: only what was set at its scope. */
export type ConfigDoc = Record<string, any>;

/** Tokens, and US dollars in `cost_usd`. */
export interface Usage {
  input: number;
  output: number;
  /** Of those written, the ones that are thoughts. */
  reasoning?: number;
  /** Of those sent, the ones that the vendor still had, or keeps for later. */
  cached?: number;
  cache_write?: number;
  /** Left out where the price is not known. */
  cost_usd?: number;
  [member: string]: number | undefined;
}

/** One part of a message. A user's input parts have no `part` number. */
export interface Part {
  part?: number;
  kind: PartKind;
  text?: string;
  open: boolean;
  /** The part was cut: an interrupted or cancelled step. */
  partial?: boolean;
  /** The tool call that a `tool_args` or `tool_output` part belongs to. */
  call?: string;
  agent?: string | null;
  ts?: number;
  /** Of reasoning: how long the model thought, and what its vendor wants to have back. */
  ms?: number;
  replay?: unknown;
  /** Uploaded content of kind `image` and `file`. */
  ref?: string;
  mime?: string;
  name?: string;
  [member: string]: unknown;
}

export interface Message {
  msg: string;
  role: Role;
  run?: string;
  agent?: string | null;
  by?: string | null;
  /** The message that this one answers, where the conversation branches. */
  parent?: string | null;
  ts?: number;
  parts: Part[];
  /** Of an assistant's message: the step that made it. The members below are there once that is closed. */
  step?: number;
  model?: string;
  usage?: Usage | null;
  /** How long the step took. */
  ms?: number | null;
  finish?: Finish;
  /** The vendor's id of the answer. */
  request?: string | null;
  /** Of a step that ended by `fallback`: why another model takes over. */
  error?: RunFault | null;
  [member: string]: unknown;
}

export interface RunFault {
  kind: string;
  message: string;
  retry: boolean;
}

/** What the hub waits for before it asks a model again: the failure, and the number of the next attempt. */
export interface Waiting {
  kind: string;
  message: string;
  attempt: number;
  of: number;
  /** When the wait began, Unix ms. */
  ts: number;
}

/** So many of the oldest messages were left out of a step, to fit a model that takes `context` tokens. */
export interface Trimmed {
  step: number;
  messages: number;
  context: number;
}

/** Which revision of its config a run works with, and since which step. */
export interface AppliedConfig {
  rev: number;
  step: number;
}

/** A model round that has not ended. */
export interface OpenStep {
  model: string;
  agent?: string | null;
  ts?: number;
  [member: string]: unknown;
}

/** A patch of a run's config, and the step that was the newest then. */
export interface ConfigChange {
  rev: number;
  patch: ConfigDoc;
  by: string;
  ts?: number;
  step: number;
}

/** A question of a run, and how it was settled: `by` is null where no person did it. */
export interface Asked {
  ask: string;
  kind: string;
  title: string;
  /** What the run's kind calls it. */
  name?: string;
  /** The tool call that it is about. */
  call?: string;
  ts: number;
  /** Left out while it is open. */
  choice?: string | null;
  by?: string | null;
}

export interface RunState {
  kind: string;
  by?: string | null;
  client?: string | null;
  status: RunStatus;
  /** The newest step; 0 before the first. */
  step: number;
  /** The steps that are open, by number. */
  open_steps?: Record<string, OpenStep>;
  /** The model of the newest step. */
  model?: string;
  /** Agents that act or acted in the run. */
  agents?: Record<string, 'open' | 'closed'>;
  /** What people call them, where that is told. */
  titles?: Record<string, string>;
  /** The patches of its config, the newest 200. */
  changes?: ConfigChange[];
  /** What people were asked, the newest 200. */
  asked?: Asked[];
  /** It is to hold before its next step. */
  paused?: boolean;
  rev: number;
  config: ConfigDoc;
  usage: Usage;
  ts?: number;
  /** What the run's kind keeps here: a plan, for instance. */
  data?: any;
  /** While it waits for a model: how long from when that was told, and why. */
  after_ms?: number;
  why?: Waiting;
  trimmed?: Trimmed;
  error?: RunFault;
  applied?: AppliedConfig;
  [member: string]: unknown;
}

export interface ToolProgress {
  done: number;
  total?: number;
  text?: string;
  [member: string]: unknown;
}

export interface ToolState {
  run: string;
  name: string;
  /** The agent that called it. */
  agent?: string | null;
  /** The call that repeats this one, which was lost. */
  repeated?: string;
  /** What people call it. */
  title?: string | null;
  origin: string;
  /** The same where it is a connector. */
  connector?: string | null;
  args: any;
  risk?: string;
  status: ToolStatus;
  ts?: number;
  progress?: ToolProgress;
  ms?: number;
  result?: any;
  error?: any;
  ref?: string;
  [member: string]: unknown;
}

/** An open ask; closed ones are gone from the state. */
export interface AskState {
  run: string;
  call?: string;
  kind: 'approval' | 'form' | 'url' | 'choice' | (string & {});
  title?: string;
  subject?: any;
  options?: string[];
  schema?: any;
  expires_at?: number | null;
  on_expiry?: string | null;
  ts?: number;
  [member: string]: unknown;
}

export interface ConvProperties {
  id: string;
  title?: string;
  config: ConfigDoc;
  rev: number;
  [member: string]: unknown;
}

/** The snapshot of `conv:<id>`. */
export interface ConvState {
  conv: ConvProperties;
  messages: Message[];
  runs: Record<string, RunState>;
  tools: Record<string, ToolState>;
  asks: Record<string, AskState>;
  /** The oldest message included, where older ones are left to `message.list`. */
  before?: string;
}

export interface InboxConv {
  title?: string;
  [member: string]: any;
}
export interface InboxRun {
  conv: string;
  kind: string;
  status: RunStatus;
  [member: string]: any;
}
export interface InboxAsk {
  conv: string;
  [member: string]: any;
}

/** The snapshot of `user:me`: open runs and asks, and all conversations. */
export interface UserState {
  convs: Record<string, InboxConv>;
  runs: Record<string, InboxRun>;
  asks: Record<string, InboxAsk>;
}

/** The snapshot of `client:<id>`. */
export interface ClientState {
  config: ConfigDoc;
  rev: number;
  presets: Record<string, any>;
  ui: Record<string, any>;
  [member: string]: any;
}

/** The snapshot of `hub`. */
export interface HubState {
  plugins: Record<string, any>;
  connectors: Record<string, any>;
  models: Record<string, any>;
}
