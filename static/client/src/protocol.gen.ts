/**
 * Generated from the declarations by scripts/generate. Do not edit.
 *
 * Params and results of operations, data of events, kinds of errors, as the hub declares them. Types only.
 */

/** An object whose members are not declared here. */
export type Json = Record<string, any>;

/** The hub's own kinds of errors; plugins add theirs. */
export type ErrorKind =
  | 'rpc.parse'
  | 'rpc.frame'
  | 'rpc.method'
  | 'rpc.params'
  | 'rpc.internal'
  | 'request.bad'
  | 'auth.required'
  | 'auth.invalid'
  | 'hello.first'
  | 'hello.version'
  | 'access.denied'
  | 'origin.denied'
  | 'host.denied'
  | 'topic.unknown'
  | 'conv.unknown'
  | 'run.unknown'
  | 'ask.unknown'
  | 'scope.unknown'
  | 'message.unknown'
  | 'kind.unknown'
  | 'model.unknown'
  | 'bot.unknown'
  | 'generation.unknown'
  | 'format.unknown'
  | 'tool.unknown'
  | 'connector.unknown'
  | 'file.unknown'
  | 'token.unknown'
  | 'route.unknown'
  | 'method.denied'
  | 'request.timeout'
  | 'body.timeout'
  | 'connector.exists'
  | 'connector.fixed'
  | 'run.busy'
  | 'run.closed'
  | 'run.state'
  | 'ask.closed'
  | 'config.conflict'
  | 'key.mismatch'
  | 'call.closed'
  | 'frame.large'
  | 'topic.later'
  | 'import.large'
  | 'media.type'
  | 'config.invalid'
  | 'ask.invalid'
  | 'input.invalid'
  | 'import.invalid'
  | 'import.version'
  | 'provider.unknown'
  | 'toolchain.no_tool'
  | 'toolchain.invalid'
  | 'topic.limit'
  | 'run.rate'
  | 'run.queue'
  | 'inflight.limit'
  | 'connection.limit'
  | 'request.cancelled'
  | 'connector.failed'
  | 'provider.protocol'
  | 'provider.disconnected'
  | 'provider.truncated'
  | 'provider.unreachable'
  | 'provider.auth'
  | 'provider.rate_limit'
  | 'provider.overloaded'
  | 'provider.context'
  | 'provider.refused'
  | 'provider.timeout'
  | 'gateway.void'
  | 'outbound.large'
  | 'outbound.denied'
  | 'tool.error'
  | 'toolchain.tool_failed'
  | 'draining'
  | 'plugin.failed'
  | 'export.failed'
  | 'export.timeout'
  | 'store.unavailable'
  | 'store.busy'
  | 'store.full';

/** An agent has finished. */
export interface AgentClose {
  run: string;
  agent: string;
}

/** An agent begins to act in the run; `title` is what people call it. */
export interface AgentOpen {
  run: string;
  agent: string;
  title?: string | null;
  ts?: number | null;
}

/** An answer to an ask: a choice of its options, and the data of a form or edited arguments (`data.args`). */
export interface AskAnswer {
  ask: string;
  choice: string;
  data?: Json | null;
  key?: string | null;
}

/** How the ask was settled, and from which offset it is visible. */
export interface AskAnswered {
  ask: string;
  outcome: Json;
  at: Record<string, number>;
}

/** The question is settled; `by` is null where no person did it, and `why` tells then: `expired` or `run`. */
export interface AskClose {
  ask: string;
  by: string | null;
  choice: string | null;
  client?: string | null;
  why?: 'expired' | 'run' | null;
  args?: Json | null;
  data?: Json | null;
}

/** The hub wants a person: an approval, a form, a URL to visit or a choice. `name` is what the run kind calls it. */
export interface AskOpen {
  ask: string;
  run: string;
  kind: 'approval' | 'choice' | 'form' | 'url';
  title: string;
  options: string[];
  expires_at: number;
  on_expiry: string;
  ts: number;
  call?: string | null;
  subject?: Json | null;
  schema?: Json | null;
  url?: string | null;
  name?: string | null;
}

/** Credentials in `hello`. */
export interface Auth {
  /** Default `'bearer'`. */
  scheme?: string;
  token?: string;
}

/** The token will expire; without `auth.refresh` by then the connection ends with 4004. */
export interface AuthExpiring {
  in_ms: number;
}

/** A user's budgets; those that are set. */
export interface BudgetView {
  day?: DollarBudget;
  month?: DollarBudget;
  day_tokens?: TokenBudget;
}

/** The connection will be closed: with which code, why, whether to come back, and after how long. */
export interface Bye {
  code: number;
  reason: string;
  reconnect: boolean;
  after_ms: number;
}

/** Done; `at` says from which offset of which topic it is visible. */
export interface Changed {
  at: Record<string, number>;
}

/** A patch of the device's settings was accepted. */
export interface ClientConfig {
  scope: string;
  rev: number;
  patch: Json;
  by: string;
  ts?: number | null;
}

/** Who speaks: the device or frontend whose settings apply. */
export interface ClientInfo {
  id: string;
  kind?: string;
  name?: string;
  version?: string;
}

/** A merge patch on the device's state. */
export interface ClientPatch {
  patch: Json;
}

/** A tool as a client declares it in `hello`; `input` is the JSON Schema of its arguments. */
export interface ClientTool {
  name: string;
  description?: string;
  input?: Json;
  /** Default `false`. */
  idempotent?: boolean;
  /** Default `60000`. */
  timeout_ms?: number;
  /** Default `'read'`. */
  risk?: string;
}

/** What to go on with: the prompt's or template's name, the argument, and what was typed of it. */
export interface Complete {
  connector: string;
  kind: 'prompt' | 'resource';
  name: string;
  argument: string;
  value?: string;
}

/** What the argument may go on with. */
export interface Completions {
  values: string[];
}

/** A step has started on this revision. */
export interface ConfigApplied {
  scope: string;
  rev: number;
  step: number;
}

/** Which scope: `run:<id>`, `conv:<id>` or `client:<id>`. */
export interface ConfigGet {
  scope: string;
}

/** A merge patch on a scope; `rev` makes it compare-and-set, `apply` says when a run takes it up. */
export interface ConfigPatch {
  scope: string;
  patch: Json;
  rev?: number | null;
  /** Default `'next_step'`. */
  apply?: 'next_step' | 'now';
  key?: string | null;
}

/** A config patch was accepted. */
export interface ConfigPatched {
  scope: string;
  rev: number;
  patch: Json;
  by: string;
  ts?: number | null;
}

/** A scope's config. */
export interface ConfigView {
  /** The scope's revision, from 1. */
  rev: number;
  /** The sparse document that is set at the scope. */
  config: Json;
  /** What follows of it and the layers below. */
  effective: Json;
  /** JSON Schema of the document. */
  schema: Json;
}

/** A merge patch on the conversation's properties. */
export interface ConvPatch {
  patch: Json;
}

/** Its title; left out, the start of its first message becomes it. */
export interface ConversationCreate {
  title?: string;
  key?: string | null;
}

/** A conversation in which nothing has been said; `at` says from which offset of its topic it is there. */
export interface ConversationCreated {
  conv: string;
  at: Record<string, number>;
}

/** Which conversation. */
export interface ConversationDelete {
  conv: string;
  key?: string | null;
}

/** Which conversation, in which format: `json`, or one that a plugin offers. */
export interface ConversationExport {
  conv: string;
  /** Default `'json'`. */
  format?: string;
}

/** A conversation as a file; as of a run. */
export interface ConversationExported {
  conv: string;
  format: string;
  mime: string;
  name: string;
  text?: string;
  ref?: string;
  notes?: string[];
}

/** An exported document, or the `ref` of an uploaded file that holds one. */
export interface ConversationImport {
  document?: Json | null;
  ref?: string | null;
  key?: string | null;
}

/** The new conversation, and from which offset it is visible whole. */
export interface ConversationImported {
  conv: string;
  at: Record<string, number>;
}

/** A conversation as it is listed. Times in Unix ms. */
export interface ConversationInfo {
  conv: string;
  title: string;
  created: number;
  updated: number;
}

/** How many, the last changed first. */
export interface ConversationList {
  /** Default `100`. */
  limit?: number;
}

/** Conversations, the last changed first. */
export interface ConversationListed {
  conversations: ConversationInfo[];
}

/** Which conversation. */
export interface ConversationRef {
  conv: string;
}

/** A new title. */
export interface ConversationUpdate {
  conv: string;
  title: string;
  key?: string | null;
}

/** A conversation's state at an offset of its topic, as 'Writing a client' explains it. */
export interface ConversationView {
  conv: string;
  gen: string;
  off: number;
  snap: Json;
}

/** A budget in US dollars, and what of it is used; it begins anew at `resets_at`, Unix ms. */
export interface DollarBudget {
  limit_usd: number;
  spent_usd: number;
  resets_at: number;
}

/** Why a request was not fulfilled. */
export interface ErrorBody {
  /** A JSON-RPC code below 0, else the HTTP status. */
  code: number;
  /** Words for a person. */
  message: string;
  data: ErrorData;
}

/** What a program goes by; further members depend on the kind. */
export interface ErrorData {
  /** The stable name of what went wrong. */
  kind: string;
  /** Whether the same request may succeed later. */
  retry: boolean;
  /** How long to wait before. */
  after_ms?: number;
  /** The member that does not fit, `$.input[0].text`. */
  path?: string;
  /** Names the line of the hub's log. */
  trace?: string;
}

/** A format: how it is named, which is how names of such files end, and its media type. */
export interface ExportFormat {
  format: string;
  mime: string;
}

/** The formats of the hub: `json`, and those that plugins offer, by name. */
export interface ExportFormats {
  formats: ExportFormat[];
}

/** The vendor's id of an answer (`request` of `step.close`), and whose it is; else all providers are asked. */
export interface GenerationRef {
  id: string;
  provider?: string | null;
}

/** The answer to `hello`. */
export interface HelloAnswer {
  /** The version of the protocol. */
  v: number;
  /** Who answers. */
  server: ServerTold;
  /** Who the client is taken for. */
  user: User;
  /** What to resume after a cut. */
  session: SessionTold;
  /** Names of the client's tools that cannot be had. */
  tools_refused: string[];
  /** The heartbeat's times. */
  ping: PingTold;
  /** What this connection may take. */
  limits: LimitsTold;
  /** For each topic that was asked for its answer, or why it cannot be had. */
  topics: Record<string, SubscribeOutcome>;
}

/** Params of `hello`; only `v` and `client.id` are required. */
export interface HelloParams {
  v: number;
  client: ClientInfo;
  auth?: Auth | null;
  caps?: Json;
  topics?: Record<string, Position>;
  tools?: ClientTool[] | null;
  resume?: Resume | null;
}

/** A source of tools and its tools; null removes it. */
export interface HubConnector {
  id: string;
  patch: Json | null;
}

/** A model that runs can use; null removes it. */
export interface HubModel {
  id: string;
  patch: Json | null;
}

/** A plugin's state; null removes it. */
export interface HubPlugin {
  id: string;
  patch: Json | null;
}

/** A question is settled. */
export interface InboxAskClose {
  ask: string;
  conv: string;
}

/** A question waits for the user. */
export interface InboxAskOpen {
  ask: string;
  conv: string;
  run: string;
  kind: string;
  title: string;
}

/** A conversation is new or changed. */
export interface InboxConv {
  conv: string;
  patch: Json;
}

/** A conversation was deleted. */
export interface InboxConvDrop {
  conv: string;
}

/** A run's status changed. */
export interface InboxRun {
  run: string;
  conv: string;
  patch: Json;
}

/** A run ended. */
export interface InboxRunClose {
  run: string;
  conv: string;
  status: 'cancelled' | 'done' | 'failed' | 'interrupted' | 'limit';
}

/** A run was accepted in one of the user's conversations. */
export interface InboxRunOpen {
  run: string;
  conv: string;
  kind: string;
  status: string;
}

/** A piece of a user's message: text, or a file that was uploaded (`ref`). */
export interface InputPart {
  kind: 'file' | 'image' | 'text';
  text?: string | null;
  ref?: string | null;
  mime?: string | null;
  name?: string | null;
}

/** A run kind: what it is called, the config of a run that says nothing, and the config's JSON Schema. */
export interface KindInfo {
  name: string;
  title: string;
  description: string;
  origin: string;
  defaults: Json;
  schema: Json;
}

/** All run kinds. */
export type KindList = Record<string, never>;

/** The run kinds, `chat` first. */
export interface KindListed {
  kinds: KindInfo[];
}

/** What a connection may take. */
export interface LimitsTold {
  /** Bytes of a frame. */
  frame: number;
  /** Requests that are not answered yet. */
  inflight: number;
  /** Subscriptions. */
  topics: number;
}

/** What all tokens of a round cost where more than `above` are sent; the other members are those of `Price`. */
export interface LongPrice {
  above: number;
  input: number;
  output: number;
  cached?: number;
  cache_write?: number;
}

/**
 * A user's message with its parts, or the beginning of an assistant's with none. Of one that is given back by an
 * import, `model` and what follows it say what else `step.close` tells of a message.
 */
export interface MessageAdd {
  msg: string;
  role: 'assistant' | 'user';
  ts: number;
  parts: Json[];
  run?: string | null;
  agent?: string | null;
  by?: string | null;
  parent?: string | null;
  step?: number | null;
  model?: string | null;
  usage?: Usage | null;
  finish?: string | null;
  ms?: number | null;
  request?: string | null;
  error?: RunError | null;
  notes?: string[] | null;
}

/** A message is gone. */
export interface MessageDrop {
  msg: string;
}

/** The messages before one, the newest that fit. */
export interface MessageList {
  conv: string;
  before?: string | null;
  /** Default `100`. */
  limit?: number;
}

/** Messages in order with what belongs to them; `before` is the oldest included, where there are more. */
export interface MessageListed {
  messages: Json[];
  runs: Json;
  tools: Json;
  before?: string;
}

/** Which model, and the config that it is to run on. */
export interface ModelCheck {
  model: string;
  config?: RunConfig | null;
}

/** Whether runs on it can begin; else the kind of error and why, in words for a person. */
export interface ModelChecked {
  ok: boolean;
  kind?: string;
  message?: string;
}

/** How many of the models that fit have what. */
export interface ModelFacets {
  /** How many fit. */
  total: number;
  /** By who serves them. */
  providers: Record<string, number>;
  /** By who made them. */
  authors: Record<string, number>;
  /** By what they can do. */
  abilities: Record<string, number>;
  /** By the tokens that fit: from the number that is the key to below the next one; or `unknown`. */
  context: Record<string, number>;
  /**
   * By the dollars for a million input tokens: up to the number that is the key, from above the one before; or `more`,
   * or `unknown`.
   */
  price: Record<string, number>;
}

/** Which models. One of which something is not known does not fit where it is asked for. */
export interface ModelFilter {
  /** Words that all stand in the name, the label or the author. */
  q?: string;
  /** Who serves it. */
  provider?: string | null;
  /** Who made it; the provider, where no other is known. */
  author?: string | null;
  /** What it can do, all of it. */
  ability?: ('files' | 'images' | 'json' | 'reasoning' | 'tools')[];
  /** Tokens that fit at least. */
  min_context?: number | null;
  /** The most that a million input tokens may cost, in US dollars. */
  max_price?: number | null;
  /** Whether it costs nothing. */
  free?: boolean | null;
}

/** A model and what is known of it. */
export interface ModelInfo {
  /** Its full name, `provider/model`. */
  model: string;
  /** Who serves it. */
  provider: string;
  /** For people. */
  label: string;
  /** Who made it, where that is another than the provider. */
  author?: string;
  /** Tokens that fit. */
  context?: number;
  /** The most tokens of one answer. */
  output?: number;
  /** What it can do. */
  abilities?: ('files' | 'images' | 'json' | 'reasoning' | 'tools')[];
  /** What it costs. */
  price?: Price;
  /** When it came out, Unix seconds. */
  created?: number;
  /** It is scripted. Default `false`. */
  demo?: boolean;
  /** It is used where nobody chose another. Default `false`. */
  default?: boolean;
}

/** Which models, in which order, how many. */
export interface ModelList {
  /** As of `model.facets`. */
  q?: string;
  /** As of `model.facets`. */
  provider?: string | null;
  /** As of `model.facets`. */
  author?: string | null;
  /** As of `model.facets`. */
  ability?: ('files' | 'images' | 'json' | 'reasoning' | 'tools')[];
  /** As of `model.facets`. */
  min_context?: number | null;
  /** As of `model.facets`. */
  max_price?: number | null;
  /** As of `model.facets`. */
  free?: boolean | null;
  /**
   * By `name`, the lowest `price` of input, the largest `context` or the `newest` first, what is not known last; left
   * out, the default comes first and the others as their providers list them.
   */
  sort?: 'context' | 'name' | 'newest' | 'price' | null;
  /** How many at most. Default `1000`. */
  limit?: number;
  /** How many to leave out before them. Default `0`. */
  offset?: number;
}

/** Models that runs can use; `total` is how many fit, with those that are not in this page. */
export interface ModelListed {
  models: ModelInfo[];
  total: number;
}

/** Nothing to tell. */
export type NoResult = Record<string, never>;

/** No params. */
export type Nothing = Record<string, never>;

/** Params of an operation that only reads. Members that it does not know are ignored. */
export type Params = Record<string, never>;

/**
 * A piece is complete. `len` counts Unicode code points; `partial` means that it was cut. Of reasoning, `ms` is how
 * long the model thought, and `replay` what its vendor wants to have back.
 */
export interface PartClose {
  part: number;
  len: number;
  /** Default `false`. */
  partial?: boolean;
  ms?: number | null;
  replay?: Json | null;
}

/** What came is void. */
export interface PartDrop {
  part: number;
  why: 'config' | 'fallback' | 'provider_retry';
}

/** A piece of a message begins; deltas fill it. */
export interface PartOpen {
  part: number;
  run: string;
  msg: string;
  kind: 'file' | 'image' | 'reasoning' | 'text' | 'tool_args' | 'tool_output';
  ts: number;
  call?: string | null;
  agent?: string | null;
  name?: string | null;
}

/** The answer to an accepted patch; `at` says from which offset of which topic it is visible. */
export interface Patched {
  rev: number;
  effective: Json;
  applies: 'next_step' | 'now';
  at: Record<string, number>;
}

/** The heartbeat: how often the hub sends one, and how long it waits for the answer. */
export interface PingTold {
  every_ms: number;
  timeout_ms: number;
}

/** What `plugin.list`, the `hub` topic and `sag plugin list` show of a plugin. */
export interface PluginInfo {
  /** The entry point's; a second one of the same name is shown as `name@distribution`. */
  name: string;
  /** The package that it comes in. */
  dist: string;
  /** The package that it comes in. */
  version: string;
  /** `on`, `off` (by plugins.toml) or `failed`. */
  status: 'failed' | 'off' | 'on';
  /** Why it is off. */
  reason: string | null;
  /** What is wrong with it while it is on. */
  problems: string[];
  /** What it says of itself. */
  notes: string[];
  /** What it brings; empty unless it is on. */
  provides: Provides;
}

/** All plugins that were found. */
export interface PluginListed {
  plugins: PluginInfo[];
}

/** What is decided now. */
export interface PolicyAnswer {
  tool: string;
  policy: 'ask' | 'auto' | 'deny' | null;
}

/** What the user decided. */
export type PolicyList = Record<string, never>;

/** What to decide of a tool (its key) or a connector (its name); null takes it back. */
export interface PolicySet {
  tool: string;
  policy?: 'ask' | 'auto' | 'deny' | null;
  key?: string | null;
}

/** What a user decided of a tool or a connector, on all devices. */
export interface PolicyView {
  /** The tool's key, or the connector's name. */
  key: string;
  /** auto, ask or deny. */
  policy: 'ask' | 'auto' | 'deny';
  /** When, Unix ms. */
  ts: number;
  /** The tool's definition has changed since, so that it asks. Default `false`. */
  changed?: boolean;
  /** There is no such tool or connector now. Default `false`. */
  gone?: boolean;
}

/** What the user decided, by key. */
export interface PolicyViews {
  policies: PolicyView[];
}

/** Where a client stands in a topic, or from where it wants to begin. */
export interface Position {
  gen?: string | null;
  off?: number | null;
  from?: 'head' | 'snapshot' | null;
}

/** Config that people choose by a name. */
export interface Preset {
  /** What tells it apart. */
  name: string;
  /** For people. */
  title: string;
  /** A patch on a conversation's config. */
  config: Json;
  /** For people. */
  description?: string;
}

/** All presets. */
export type PresetList = Record<string, never>;

/** Presets that plugins offer. */
export interface PresetViews {
  presets: Preset[];
}

/** What tokens cost, in US dollars per million. */
export interface Price {
  /** Tokens sent and written; reasoning counts as written. */
  input: number;
  /** Tokens sent and written; reasoning counts as written. */
  output: number;
  /** Tokens sent that the vendor still had; like `input` where it is left out. */
  cached?: number;
  /** Tokens sent that the vendor keeps for later; like `input` where it is left out. */
  cache_write?: number;
  /** The price of rounds that send very much, where that is another. */
  long?: LongPrice;
}

/** Which prompt of which connector, with its arguments. */
export interface PromptGet {
  connector: string;
  name: string;
  arguments?: Record<string, string>;
}

/** A prompt that was filled in: messages of `role` and text, as the composer takes them. */
export interface PromptText {
  messages: Json[];
}

/** Names of what a plugin brings when it is loaded; `topics` holds its family, if it has one. */
export interface Provides {
  tools?: string[];
  providers?: string[];
  kinds?: string[];
  operations?: string[];
  connectors?: string[];
  mounts?: string[];
  routes?: string[];
  exporters?: string[];
  presets?: string[];
  topics?: string[];
}

/** The token was taken; in how many ms it expires, null for never. */
export interface Refreshed {
  expires_ms: number | null;
}

/** What a resource holds: items of kind `text`, `image`, `file` … */
export interface ResourceContent {
  content: Json[];
}

/** Resources of one connector, or of all. */
export interface ResourceList {
  connector?: string | null;
}

/** Which resource of which connector. What is no text is kept as a file of the user's. */
export interface ResourceRead {
  connector: string;
  uri: string;
  key?: string | null;
}

/** Resources and templates, each with its `connector`. */
export interface ResourceViews {
  resources: Json[];
}

/** The session to go on with. */
export interface Resume {
  session: string;
  secret: string;
}

/** Whoever asked waits no longer; the request is still answered, with 499 if it was cancelled. */
export interface RpcCancel {
  /** The id of the request. */
  id: number | string;
}

/** How far the client is with a `tool.call`. */
export interface RpcProgress {
  /** The id of the request. */
  id: string;
  /** How much of how much. */
  done: number;
  /** How much of how much. */
  total?: number | null;
  /** What it does now. */
  text?: string | null;
}

/** Which run, and whether at once or when its step is over. */
export interface RunCancel {
  run: string;
  /** Default `'now'`. */
  mode?: 'after_step' | 'now';
  key?: string | null;
}

/** The run's status, and from which offset it is visible. */
export interface RunCancelled {
  run: string;
  status: string;
  at: Record<string, number>;
}

/** The run's last event. */
export interface RunClose {
  run: string;
  status: 'cancelled' | 'done' | 'failed' | 'interrupted' | 'limit';
  usage: Usage;
  ts: number;
  error?: RunError | null;
}

/** What every kind's config has, as far as it makes sense to it; a kind's own struct extends it. */
export interface RunConfig {
  /** `provider/model`; left out means the hub's default. */
  model?: string | null;
  /** Sampling temperature; left out means the vendor's own default. */
  temperature?: number | null;
  /** The most tokens of one answer. */
  max_tokens?: number | null;
  /** Nucleus sampling. */
  top_p?: number | null;
  /** Texts at which the model stops. */
  stop?: string[] | null;
  /** For answers that can be had again, where the vendor can. */
  seed?: number | null;
  /** How much the model is to think, where it can. */
  reasoning?: 'high' | 'low' | 'max' | 'medium' | 'minimal' | 'none' | 'xhigh' | null;
  /** The system prompt. */
  system?: string | null;
  /** Which tools are off or on, by name; one that is not named is on. */
  tools?: Record<string, boolean>;
  /** How many model rounds a run may take before it ends with `limit`. Default `5`. */
  rounds?: number;
  /** Models that take over, in this order, when one fails. */
  fallbacks?: string[];
  /**
   * Leave out the oldest messages where the conversation does not fit the model; else such a run fails. Default `true`.
   */
  trim?: boolean;
  /** How often a round is tried again after a broken answer. Default `2`. */
  retries?: number;
  /** Deadlines of one model round: to the first token, between two, for all. Default `60.0`. */
  first_token_s?: number;
  /** Deadlines of one model round: to the first token, between two, for all. Default `60.0`. */
  gap_s?: number;
  /** Deadlines of one model round: to the first token, between two, for all. Default `600.0`. */
  total_s?: number;
  /** Members for the vendor, sent as they are. */
  extra?: Json;
}

/** Why a run failed: a stable kind, words for a person, whether trying again may help. */
export interface RunError {
  kind: string;
  message: string;
  /** Default `false`. */
  retry?: boolean;
}

/** Which run, in which format: `json`, or one that a plugin offers. */
export interface RunExport {
  run: string;
  /** Default `'json'`. */
  format?: string;
}

/**
 * A run as a file called `name`: its `text`, or where that is no text or too long, the `ref` of the kept file. `notes`
 * say what the file does not show as it should.
 */
export interface RunExported {
  run: string;
  format: string;
  mime: string;
  name: string;
  text?: string;
  ref?: string;
  notes?: string[];
}

/** A run as it is listed; `ts` is when it was accepted, Unix ms. */
export interface RunInfo {
  run: string;
  conv: string;
  kind: string;
  status: string;
  ts: number;
}

/** Which runs: of one conversation or of all, the newest first. */
export interface RunList {
  conv?: string | null;
  /** Default `50`. */
  limit?: number;
}

/** Runs, the newest first. */
export interface RunListed {
  runs: RunInfo[];
}

/** A run was accepted. `base` is the config of the layers below it, frozen when it begins, `begun` its turn. */
export interface RunOpen {
  run: string;
  kind: string;
  by: string;
  client: string;
  config: Json;
  rev: number;
  status: 'queued' | 'running';
  ts: number;
  base?: Json | null;
  begun?: number | null;
}

/** A merge patch on the run's object of the snapshot. */
export interface RunPatch {
  run: string;
  patch: Json;
}

/** Which run. */
export interface RunPause {
  run: string;
  key?: string | null;
}

/** The run's status, and from which offset the change is visible. */
export interface RunPaused {
  run: string;
  status: string;
  at: Record<string, number>;
}

/** Which run. */
export interface RunRef {
  run: string;
}

/** Which run. */
export interface RunResume {
  run: string;
  /** Default `true`. */
  subscribe?: boolean;
  key?: string | null;
}

/** Params of `run.start`; only `input` is required. */
export interface RunStart {
  input: InputPart[];
  conv?: string | null;
  kind?: string | null;
  /** Default `'queue'`. */
  when?: 'interrupt' | 'queue' | 'reject' | 'steer';
  config?: Json;
  /** Default `true`. */
  subscribe?: boolean;
  key?: string | null;
}

/** The run was accepted; `at` says from which offset of which topic the effect is visible. */
export interface RunStarted {
  conv: string;
  run: string;
  state: 'queued' | 'running' | 'steered';
  at: Record<string, number>;
  msg?: string;
}

/** A run's object of the snapshot, and where it is. */
export interface RunView {
  run: string;
  conv: string;
  object: Json;
}

/** Who answers. */
export interface ServerTold {
  name: string;
  version: string;
}

/** The session. */
export interface SessionTold {
  /** Its id, for `resume`. */
  id: string;
  /** Goes with the id; a new one at each hello. */
  secret: string;
  /** Whether it is the one that was asked for. */
  resumed: boolean;
  /** How long it is kept after a cut. */
  keep_ms: number;
}

/**
 * A model round ended: `stop`, `tools`, `length`, `refused`, `config`, `fallback`, `cancelled`, `failed` … `ms` is how
 * long it took, `request` the vendor's id of the answer, `error` why another model takes over. `notes` holds `decode`
 * where bytes of the answer were no Unicode and stand as U+FFFD, `model` who answered where no message tells it.
 */
export interface StepClose {
  run: string;
  step: number;
  finish: string;
  usage?: Usage | null;
  ms?: number | null;
  request?: string | null;
  error?: RunError | null;
  notes?: string[] | null;
  model?: string | null;
}

/** A model round begins; it runs on the config of this moment. */
export interface StepOpen {
  run: string;
  step: number;
  model: string;
  agent?: string | null;
  ts?: number | null;
}

/** Params of `topic.subscribe`. */
export interface SubscribeParams {
  topic: string;
  gen?: string | null;
  off?: number | null;
  from?: 'head' | 'snapshot' | null;
}

/** The answer to a subscriber; `snap` is the whole state at `off`. */
export interface Subscribed {
  mode: 'replay' | 'snapshot';
  gen: string;
  off: number;
  head: number;
  t?: number;
  snap?: unknown;
  lost?: Json;
}

/** A budget in tokens, and what of it is used; it begins anew at `resets_at`, Unix ms. */
export interface TokenBudget {
  limit_tokens: number;
  spent_tokens: number;
  resets_at: number;
}

/** Which token. */
export interface TokenDrop {
  id: string;
  key?: string | null;
}

/** A token as it is listed. Times in Unix ms. */
export interface TokenInfo {
  id: string;
  user: string;
  name: string;
  roles: string[];
  created: number;
  expires?: number;
}

/** All tokens, without their texts. */
export interface TokenListed {
  tokens: TokenInfo[];
}

/** The token's text, which is shown this once and empty where the answer is repeated, and its listing. */
export interface TokenMade {
  token: string;
  info: TokenInfo;
}

/** For whom, with what label and roles, for how long. */
export interface TokenNew {
  /** Default `'local'`. */
  user?: string;
  name?: string;
  /** Default `false`. */
  admin?: boolean;
  expires_s?: number | null;
  key?: string | null;
}

/** What the tool gave: `content` holds parts, `{kind: "text", text}`; any other JSON object is kept as it is. */
export interface ToolAnswer {
  content?: Json[];
}

/** Params of `tool.call`. */
export interface ToolCall {
  /** The call's id in the conversation. */
  call: string;
  /** The run that it belongs to. */
  run: string;
  /** As the client declared it. */
  name: string;
  /** Fits the tool's `input`. */
  args: Json;
  /** How long the client may take. */
  deadline_ms: number;
  /** The call was sent before, on a connection that broke. */
  redelivered: boolean;
}

/** A call ended. `ms` is how long it took, `ref` the file that holds the whole of a result that is shown cut. */
export interface ToolClose {
  call: string;
  status: 'cancelled' | 'denied' | 'error' | 'invalid' | 'lost' | 'ok' | 'timeout';
  ms: number;
  result?: unknown;
  error?: Json | null;
  ref?: string | null;
}

/**
 * Whose tools: all, or those of one connector or plugin; `client` is the device that is asked for. `brief` leaves out
 * the schemas, which of many tools do not fit a frame.
 */
export interface ToolList {
  origin?: string | null;
  client?: string | null;
  /** Default `false`. */
  brief?: boolean;
}

/**
 * A tool call begins; `origin` names the connector or plugin, `connector` the same where it is a connector. `agent` is
 * who called it. `again` is the lost call that it repeats. `ends` tells that it ends its agent's turn.
 */
export interface ToolOpen {
  call: string;
  run: string;
  name: string;
  origin: string;
  args: unknown;
  risk: string;
  ts: number;
  step?: number | null;
  connector?: string | null;
  title?: string | null;
  agent?: string | null;
  again?: string | null;
  ends?: boolean | null;
}

/** How far a call is. */
export interface ToolProgress {
  call: string;
  done: number;
  total?: number | null;
  text?: string | null;
}

/** A tool. */
export interface ToolView {
  /** What tells it apart. */
  key: string;
  /** Of its definition. */
  name: string;
  /** Of its definition. */
  description: string;
  /** Of its definition. */
  origin: string;
  /** Of its definition. */
  risk: string;
  /** JSON Schema of its arguments; empty where it was not asked for. */
  input: Json;
  /** Whether runs of the device are offered it. */
  enabled: boolean;
  /** Whether calls from the device go ahead, ask first or are refused. */
  policy: 'ask' | 'auto' | 'deny';
  /** Of its definition. */
  title?: string;
  /** The same as `origin` where that is a connector. */
  connector?: string;
  /** Its definition is another than the one that was allowed for always. Default `false`. */
  changed?: boolean;
}

/** Tools, those of plugins first. */
export interface ToolViews {
  tools: ToolView[];
}

/** A subscription ended. After `gen` and `behind` the client subscribes again. */
export interface TopicClosed {
  /** The subscription's number. */
  t: number;
  /** Why. */
  reason: 'behind' | 'deleted' | 'denied' | 'gen';
}

/** Why a topic cannot be had; the rest of the answer holds all the same. */
export interface TopicRefused {
  error: ErrorBody;
}

/** Params of `topic.unsubscribe`. */
export interface UnsubscribeParams {
  topic: string;
}

/** Tokens and cost of a step or a run. */
export interface Usage {
  /** Tokens sent and written. */
  input: number;
  /** Tokens sent and written. */
  output: number;
  /** How many of those written are thoughts. Default `0`. */
  reasoning?: number;
  /** How many of those sent the vendor still had. Default `0`. */
  cached?: number;
  /** How many of those sent the vendor keeps for later. Default `0`. */
  cache_write?: number;
  /** In US dollars; left out where the price is not known. */
  cost_usd?: number | null;
}

/** Of which steps, and how they are put together. */
export interface UsageGet {
  /** What makes a row. Default `'day'`. */
  by?: 'conv' | 'day' | 'model' | 'run' | 'user';
  /** The first day, UTC; left out, the range has 30 days. */
  from?: string | null;
  /** The last day, UTC; left out, today. */
  to?: string | null;
  /** Of one conversation. */
  conv?: string | null;
  /** Of one run. */
  run?: string | null;
  /** Of one model, `provider/model`. */
  model?: string | null;
  /** Of another user, or with `*` of all; for administrators, as is `by` with `user`, which is of all. */
  user?: string | null;
  /** How many rows at most: the newest days, else those that cost the most. Default `1000`. */
  limit?: number;
}

/**
 * Days in their order, else what cost the most first; the sum of all; the user's budgets, if there are any. `more`
 * tells that there are more rows than were asked for; `total` counts them all.
 */
export interface UsageReport {
  rows: UsageRow[];
  total: UsageSum;
  budget?: BudgetView;
  /** Default `false`. */
  more?: boolean;
}

/** What the steps of a day, model, conversation, run or user took. */
export interface UsageRow {
  /** As of the total. */
  steps: number;
  /** As of the total. */
  input: number;
  /** As of the total. */
  output: number;
  /** As of the total. */
  reasoning: number;
  /** As of the total. */
  cached: number;
  /** As of the total. */
  cache_write: number;
  /** As of the total. */
  unpriced: number;
  /** As of the total. */
  cost_usd?: number;
  /** The day, or the id or name of the other. */
  key: string;
  /** The title of a conversation of one's own that is still there, the label of a model. */
  label?: string;
}

/** What some steps took together. */
export interface UsageSum {
  /** How many they are; those that ended without their usage being told are not among them. */
  steps: number;
  /** Tokens sent and written. */
  input: number;
  /** Tokens sent and written. */
  output: number;
  /** How many of those written are thoughts. */
  reasoning: number;
  /** How many of those sent the vendor still had. */
  cached: number;
  /** How many of those sent the vendor keeps for later. */
  cache_write: number;
  /** For how many steps the price is not known; they are missing in `cost_usd`. */
  unpriced: number;
  /** In US dollars; left out where the price is known of no step. */
  cost_usd?: number;
}

/** Who calls. A user with the role `admin` may what `admin` operations do. */
export interface User {
  id: string;
  name: string;
  roles: string[];
}

/** The answer to a subscriber, or why the topic cannot be had. */
export type SubscribeOutcome = Subscribed | TopicRefused;

/** What can be asked for, by method. */
export interface Operations {
  /** Settle an ask; the first valid answer wins. */
  'ask.answer': { params: AskAnswer; result: AskAnswered };
  /** A scope's config, what follows of it, and its schema. */
  'config.get': { params: ConfigGet; result: ConfigView };
  /** Patch a scope's config; a run takes it up at its next step, or at once. */
  'config.patch': { params: ConfigPatch; result: Patched };
  /** Make a conversation before anything is said in it; `run.start` without one makes it along with its run. */
  'conversation.create': { params: ConversationCreate; result: ConversationCreated };
  /** Delete a conversation with all that is in it; its runs end first. */
  'conversation.delete': { params: ConversationDelete; result: Changed };
  /** A conversation as a file; in the format `json` an import gives it back. */
  'conversation.export': { params: ConversationExport; result: ConversationExported };
  /** A conversation as it is now. */
  'conversation.get': { params: ConversationRef; result: ConversationView };
  /**
   * Make a conversation of an exported one: the same messages, runs, tool calls and files under new ids. Everything in
   * it is closed; a run that went on is `interrupted`.
   */
  'conversation.import': { params: ConversationImport; result: ConversationImported };
  /** The user's conversations. */
  'conversation.list': { params: ConversationList; result: ConversationListed };
  /** Rename a conversation. */
  'conversation.update': { params: ConversationUpdate; result: Changed };
  /** The formats in which runs and conversations can be had. */
  'export.formats': { params: Params; result: ExportFormats };
  /** The run kinds that plugins offer. */
  'kind.list': { params: KindList; result: KindListed };
  /** Older messages of a conversation. */
  'message.list': { params: MessageList; result: MessageListed };
  /** Whether a model works: its provider takes the key, and the model is there and takes the config. */
  'model.check': { params: ModelCheck; result: ModelChecked };
  /** How many of the models there are by what they can be picked. */
  'model.facets': { params: ModelFilter; result: ModelFacets };
  /** What a vendor keeps of an answer. */
  'model.generation': { params: GenerationRef; result: Json };
  /** The models that runs can use. */
  'model.list': { params: ModelList; result: ModelListed };
  /** The plugins, what each brings, and what is wrong with it. */
  'plugin.list': { params: Nothing; result: PluginListed };
  /** Presets: config of a conversation that people choose by a name. */
  'preset.list': { params: PresetList; result: PresetViews };
  /** What an argument of a prompt or of a resource's template may go on with. */
  'prompt.complete': { params: Complete; result: Completions };
  /** Fill in a prompt of a connector. The topic `hub` tells which there are. */
  'prompt.get': { params: PromptGet; result: PromptText };
  /** Resources that connectors can read. */
  'resource.list': { params: ResourceList; result: ResourceViews };
  /** Read a resource of a connector. */
  'resource.read': { params: ResourceRead; result: ResourceContent };
  /** End a run; what came stays. */
  'run.cancel': { params: RunCancel; result: RunCancelled };
  /** Let a paused run go on. */
  'run.continue': { params: RunPause; result: RunPaused };
  /** A run as a file: the transcript so far, with its agents, tool calls, config changes and usage. */
  'run.export': { params: RunExport; result: RunExported };
  /** A run's object. */
  'run.get': { params: RunRef; result: RunView };
  /** The user's runs. */
  'run.list': { params: RunList; result: RunListed };
  /** Hold a run before its next step; it is `paused` once nothing works any more. */
  'run.pause': { params: RunPause; result: RunPaused };
  /** Go on with an interrupted run; what was finished is not done again. */
  'run.resume': { params: RunResume; result: RunStarted & { topic?: SubscribeOutcome } };
  /** Give input to a conversation: begin a run, queue it, or join the active one. */
  'run.start': { params: RunStart; result: RunStarted & { topic?: SubscribeOutcome } };
  /** Revoke an API token; the connections that it opened end. */
  'token.drop': { params: TokenDrop; result: TokenInfo };
  /** The API tokens. */
  'token.list': { params: Nothing; result: TokenListed };
  /** Make an API token; its text is shown here and never again. */
  'token.new': { params: TokenNew; result: TokenMade };
  /** The tools that runs are offered, and what is decided of each. */
  'tool.list': { params: ToolList; result: ToolViews };
  /** What the user decided of tools, on all devices. */
  'tool.policy.list': { params: PolicyList; result: PolicyViews };
  /** Decide on all devices whether calls of a tool or a connector go ahead, ask first or are refused. */
  'tool.policy.set': { params: PolicySet; result: PolicyAnswer };
  /** What model rounds took: tokens, and money where prices are known. */
  'usage.get': { params: UsageGet; result: UsageReport };
  /** Who the caller is. */
  'user.me': { params: Nothing; result: User };
}

/** Requests about the connection, which `Client` makes itself. */
export interface SocketOperations {
  /** Replace the token of this connection by a newer one of the same user. */
  'auth.refresh': { params: Auth; result: Refreshed };
  /**
   * The first request of a connection: who it is, which topics it follows, which tools it offers, which session it goes
   * on with.
   */
  hello: { params: HelloParams; result: HelloAnswer };
  /** Follow a topic from a position, or from its state; the events come after the answer, under its `t`. */
  'topic.subscribe': { params: SubscribeParams; result: Subscribed };
  /** Follow a topic no longer. */
  'topic.unsubscribe': { params: UnsubscribeParams; result: NoResult };
}

/** What the hub asks a client for. */
export interface HubRequests {
  /** The hub calls a tool that the client declared in `hello`. It stays open over a cut until its deadline. */
  'tool.call': { params: ToolCall; result: ToolAnswer };
}

/** Messages that are not answered. */
export interface Notifications {
  /** The token will expire; without `auth.refresh` by then the connection ends with 4004. */
  'auth.expiring': AuthExpiring;
  /** The connection will be closed: with which code, why, whether to come back, and after how long. */
  bye: Bye;
  /** Whoever asked waits no longer; the request is still answered, with 499 if it was cancelled. */
  'rpc.cancel': RpcCancel;
  /** How far the client is with a `tool.call`. */
  'rpc.progress': RpcProgress;
  /** A subscription ended. After `gen` and `behind` the client subscribes again. */
  'topic.closed': TopicClosed;
}

/** Data of events, by the family of the topic and the event's name. */
export interface Events {
  /** `conv:<id>` */
  conv: {
    'message.add': MessageAdd;
    'message.drop': MessageDrop;
    'run.open': RunOpen;
    run: RunPatch;
    'step.open': StepOpen;
    'step.close': StepClose;
    'agent.open': AgentOpen;
    'agent.close': AgentClose;
    'part.open': PartOpen;
    delta: (number | string)[];
    'part.close': PartClose;
    'part.drop': PartDrop;
    'tool.open': ToolOpen;
    'tool.progress': ToolProgress;
    'tool.close': ToolClose;
    'ask.open': AskOpen;
    'ask.close': AskClose;
    config: ConfigPatched;
    'config.applied': ConfigApplied;
    'run.close': RunClose;
    conv: ConvPatch;
  };
  /** `user:me` */
  user: {
    conv: InboxConv;
    'conv.drop': InboxConvDrop;
    'run.open': InboxRunOpen;
    run: InboxRun;
    'run.close': InboxRunClose;
    'ask.open': InboxAskOpen;
    'ask.close': InboxAskClose;
  };
  /** `client:<id>` */
  client: {
    config: ClientConfig;
    client: ClientPatch;
  };
  /** `hub` */
  hub: {
    plugin: HubPlugin;
    connector: HubConnector;
    model: HubModel;
  };
}
