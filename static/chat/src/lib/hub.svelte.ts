/**
 * The page's one store: the connection, the inbox, the hub's models and tools, the conversation that is open, and what
 * a person can do with them.
 *
 * It adapts topics of the socket client to runes; components read it and call its methods, and never see the client.
 */
import { Client, RpcError, type ClientState, type HubState, type StartRun, type Status, type UserState } from '@sag/client';
import { Conversation } from './conversation.svelte';
import { now } from './clock.svelte';
import { composer } from './composer.svelte';
import { rulesOf, titleOf, viewConnectors, type Decision, type Rules } from './connectors';
import { addToOutbox, dropFromOutbox, newDraft, takeLeftovers, type Draft, type FileRef, type OutboxEntry } from './drafts';
import { onFrame } from './frame';
import { inForce, ownMembers, type Kind, type Setup } from './kinds';
import { shortName, type ModelInfo, type ModelQuery } from './models';
import { notices } from './notices.svelte';
import { router } from './route.svelte';
import { load, store } from './storage';
import type { Queued } from './transcript';
import { isImage, type Upload } from './uploads.svelte';
import type { UsageAnswer } from './usage';

/** A cut shorter than this is not shown. */
const GRACE_MS = 2000;
export const CLIENT_ID = 'chat';
/** The topic `hub` holds so many models at most; where there are more, the hub is asked. */
const MODELS_TOLD = 500;
const FOUND = 200;
const DENIED_CODES = new Set([4500, 4504]);

/** Why the hub refuses an answer, and at which place of it. */
export interface Refusal {
  path: string;
  message: string;
  kind: string;
}

export interface ConversationEntry {
  id: string;
  title: string;
  ts: number;
  isRunning: boolean;
  isWaiting: boolean;
}

/** A message on its way: until it is accepted, and then until its conversation shows it. */
export interface Pending extends OutboxEntry {
  msg?: string;
  /** Files that it waits for. */
  uploads: Upload[];
  /** Which of the chats that were not begun it was written in. */
  chat: number | null;
}

class Hub {
  status = $state<Status>('idle');
  retryAt = $state<number | null>(null);
  /** The hub wants to know who this is. */
  isDenied = $state(false);
  serverVersion = $state('');
  userName = $state('');
  userId = $state('');
  isAdmin = $state(false);
  open = $state.raw<Conversation | null>(null);
  pending = $state.raw<Pending[]>([]);
  /** The run whose cancel is on its way. */
  stopping = $state<string | null>(null);
  isInboxLoaded = $state(false);
  /** The kinds of run that there are, `chat` first. */
  kinds = $state.raw<Kind[]>([]);
  device = $state.raw<ClientState>({ config: {}, rev: 1, presets: {}, ui: {} });

  #inbox = $state.raw<UserState>({ convs: {}, runs: {}, asks: {} });
  #hub = $state.raw<HubState>({ plugins: {}, connectors: {}, models: {} });
  /** Models beyond those that the hub tells by itself, as far as they were looked for. */
  #found = $state.raw<ModelInfo[]>([]);
  #lostAt = $state<number | null>(Date.now());

  readonly client = new Client({
    client: { id: CLIENT_ID, kind: 'chat', name: 'sag-chat' },
    token: () => load<string>('token', '') || undefined,
    caps: { ask: ['approval', 'form', 'url', 'choice'] },
  });

  readonly conversations = $derived.by(() => this.#listConversations());
  readonly models = $derived.by(() => {
    const entries = Object.entries(this.#hub.models).map(([id, model]) => ({ ...model, id }) as ModelInfo);
    return entries.sort((a, b) => Number(b.default ?? false) - Number(a.default ?? false) || a.id.localeCompare(b.id));
  });
  readonly #byName = $derived(new Map([...this.#found, ...this.models].map((model) => [model.id, model])));
  readonly hasAllModels = $derived(this.models.length < MODELS_TOLD);
  /** What the user decided of tools on all devices, as far as it was asked for. */
  decisions = $state.raw<Decision[]>([]);
  /** What is set of tools for this device, and decided of them. */
  readonly rules = $derived<Rules>({ ...rulesOf(this.device.config), decisions: this.decisions });
  readonly connectors = $derived(viewConnectors(this.#hub.connectors, this.rules));
  /** The model that the next reply uses, or that the active run runs on. */
  readonly model = $derived.by(() => this.#currentModel());
  /** The kind that the next run is of. */
  readonly kind = $derived(this.#currentKind());
  /** What is set up for it, over the layers below. */
  readonly setup = $derived<Setup>(this.kind ? this.#setupOf(this.kind) : {});
  readonly effectiveSetup = $derived<Setup>(this.kind ? inForce(this.kind, this.open?.config.config ?? {}, this.setup) : {});
  readonly isBusy = $derived(this.open?.transcript.active != null);

  constructor() {
    this.client.on('status', (status) => this.#onStatus(status));
    this.client.on('bye', (bye) => {
      if (DENIED_CODES.has(bye.code)) this.isDenied = true;
    });
    this.client.on('error', (error) => {
      if (error instanceof RpcError && error.code === 401) this.isDenied = true;
    });
    this.#mirror<UserState>('user:me', (state) => {
      this.#inbox = state;
      this.isInboxLoaded = true;
    });
    this.#mirror<HubState>('hub', (state) => (this.#hub = state));
    this.#mirror<ClientState>(`client:${CLIENT_ID}`, (state) => (this.device = state));
  }

  start() {
    this.client.connect();
    const wake = () => {
      if (document.visibilityState === 'visible') this.client.wake();
    };
    document.addEventListener('visibilitychange', wake);
    window.addEventListener('online', wake);
    window.addEventListener('pageshow', wake);
    for (const entry of takeLeftovers(Date.now())) void this.#deliver(entry);
  }

  /** True once a cut has lasted long enough to be told. */
  get isTroubled(): boolean {
    return this.#lostAt !== null && now() - this.#lostAt > GRACE_MS;
  }

  retry() {
    if (this.status === 'closed') this.client.connect();
    else this.client.wake();
  }

  signIn(token: string) {
    store('token', token.trim());
    this.isDenied = false;
    this.client.close();
    this.client.connect();
  }

  get hasToken(): boolean {
    return load<string>('token', '') !== '';
  }

  signOut() {
    store('token', '');
    try {
      sessionStorage.clear();
    } catch {
      // No storage, no session in it.
    }
    location.reload();
  }

  // ------------------------------------------------------------------ models

  /** What is known of a model; of one that nobody lists its name alone. */
  modelOf(id: string): ModelInfo {
    return this.#byName.get(id) ?? { id };
  }

  modelName(id: string): string {
    return this.#byName.get(id)?.label || shortName(id);
  }

  /** Look for models among all that the hub knows, which may be more than it tells by itself. */
  async findModels({ q, provider, abilities, sort }: ModelQuery, signal: AbortSignal): Promise<{ models: ModelInfo[]; total: number }> {
    const order = sort === 'name' ? null : sort;
    const { models, total } = await this.client.request('model.list', { q, provider, ability: abilities, sort: order, limit: FOUND }, { signal });
    const found = models.map(({ model: id, ...known }) => ({ ...known, id }));
    this.#found = [...new Map([...this.#found, ...found].map((model) => [model.id, model])).values()];
    return { models: found, total };
  }

  /** What steps took, summed up by something, since a day `YYYY-MM-DD`. */
  usage(params: { by: 'day' | 'model' | 'conv'; from: string; conv?: string }, signal: AbortSignal): Promise<UsageAnswer> {
    return this.client.request('usage.get', params, { signal });
  }

  // ------------------------------------------------------------------- kinds

  #currentKind(): Kind | null {
    const name = composer.kind ?? this.open?.transcript.newest?.kind ?? 'chat';
    return this.kinds.find((kind) => kind.name === name) ?? this.kinds.find((kind) => kind.name === 'chat') ?? null;
  }

  /** What was set up for a kind here, else what the conversation's newest run of it had. */
  #setupOf(kind: Kind): Setup {
    const newest = this.open?.transcript.newest;
    if (composer.setups[kind.name] || newest?.kind !== kind.name) return composer.setups[kind.name] ?? {};
    const own = ownMembers(kind, this.kinds.find((one) => one.name === 'chat'));
    return Object.fromEntries(Object.entries(newest.config).filter(([name]) => own.includes(name)));
  }

  async #loadKinds() {
    try {
      this.kinds = (await this.client.request('kind.list')).kinds;
    } catch (error) {
      // A cut is told elsewhere, and an older hub has no kinds to choose from.
      if (!(error instanceof RpcError && (error.code === 503 || error.code === -32601))) notices.error(error);
    }
  }

  // -------------------------------------------------------------- connectors

  /** What people call a connector, or the plugin that a tool comes from. */
  connectorName(origin: string): string {
    return titleOf(this.#hub.connectors, origin);
  }

  isPluginOn(name: string): boolean {
    return this.#hub.plugins[name]?.status === 'on';
  }

  // ----------------------------------------------------------- conversations

  /** Show a conversation; null for a chat that is not begun. */
  show(conv: string | null) {
    if (this.open?.id === conv) return;
    if (conv === null) this.#chat += 1;
    this.open?.release();
    this.open = conv === null ? null : new Conversation(this.client, conv);
  }

  async rename(conv: string, title: string) {
    await this.#attempt(() => this.client.request('conversation.update', { conv, title }));
  }

  async remove(conv: string) {
    const done = await this.#attempt(() => this.client.request('conversation.delete', { conv }));
    if (done && router.conv === conv) router.go(null, { replace: true });
  }

  // ---------------------------------------------------------------- messages

  /** Send a message; it waits for its uploads, and what is sent after it waits with it, as for the chat that it begins. */
  send(draft: Partial<Draft>, when: OutboxEntry['when'], uploads: Upload[] = []) {
    const waits = uploads.some((upload) => !upload.file);
    const entry = { ...newDraft(draft), key: newKey(), conv: router.conv, when, ts: Date.now(), ...(waits ? { incomplete: true } : {}) };
    addToOutbox(entry);
    void this.#deliver(entry, uploads, entry.conv === null ? this.#chat : null);
  }

  /** Take a message back that was not accepted yet. */
  takeBack(pending: Pending) {
    this.#aborts.get(pending.key)?.abort();
  }

  /** A pending message that its conversation shows by itself now. */
  isArrived(pending: Pending): boolean {
    return pending.msg !== undefined && (this.open?.messages.has(pending.msg) ?? false);
  }

  readonly #aborts = new Map<string, AbortController>();
  /** Counts the chats to begin, to tell the messages of one from those of the next. */
  #chat = 0;
  /** The newest message on its way, by conversation, answering the conversation in which it arrived. */
  readonly #lanes = new Map<string | null, Promise<string | null>>();

  #deliver(entry: OutboxEntry, uploads: Upload[] = [], chat: number | null = null): Promise<unknown> {
    const abort = new AbortController();
    this.#aborts.set(entry.key, abort);
    const ahead = this.pending.some((p) => p.conv === entry.conv && (p.incomplete || (chat !== null && p.chat === chat)));
    this.pending = [...this.pending, { ...entry, uploads, chat }];
    const before = ahead ? this.#lanes.get(entry.conv) : undefined;
    const delivery = this.#deliverAfter(before, entry, uploads, abort.signal).finally(() => {
      dropFromOutbox(entry.key);
      this.#aborts.delete(entry.key);
      if (this.#lanes.get(entry.conv) === delivery) this.#lanes.delete(entry.conv);
    });
    this.#lanes.set(entry.conv, delivery);
    return delivery;
  }

  async #deliverAfter(before: Promise<string | null> | undefined, entry: OutboxEntry, uploads: Upload[], signal: AbortSignal): Promise<string | null> {
    let { conv } = entry;
    try {
      const arrivedIn = before && (await orAborted(before, signal));
      conv ??= arrivedIn ?? null;
      if (conv !== entry.conv) this.pending = this.pending.map((p) => (p.key === entry.key ? { ...p, conv } : p));
      const files = uploads.length > 0 ? await orAborted(Promise.all(uploads.map((upload) => upload.done())), signal) : entry.files;
      if (entry.incomplete) {
        addToOutbox({ ...entry, conv, files, incomplete: false });
        this.pending = this.pending.map((p) => (p.key === entry.key ? { ...p, conv, files, incomplete: false } : p));
      }
      const answer = await this.client.startRun(toRun({ ...entry, conv, files }), { signal });
      if (conv === null) this.#onBegun(answer.conv, entry.config);
      this.pending = this.pending.map((p) => (p.key === entry.key ? { ...p, conv: answer.conv, ...(answer.msg ? { msg: answer.msg } : {}) } : p));
      if (!answer.msg) this.#forgetPending(entry.key);
      else setTimeout(() => this.#forgetPending(entry.key), 3000);
      return answer.conv;
    } catch (error) {
      this.#forgetPending(entry.key);
      composer.putBack(conv, entry, uploads.length > 0 ? uploads : undefined);
      if (!signal.aborted) notices.error(error);
      return conv;
    }
  }

  /** A chat exists now; what was set for it before holds for its later messages too. */
  #onBegun(conv: string, config: Draft['config']) {
    if (Object.keys(config).length > 0) void this.#attempt(() => this.client.patchConfig(`conv:${conv}`, config));
    if (router.conv !== null) return;
    composer.adopt(conv);
    router.go(conv);
  }

  #forgetPending(key: string) {
    this.pending = this.pending.filter((p) => p.key !== key);
  }

  // -------------------------------------------------------------------- runs

  async stop() {
    const run = this.open?.transcript.active?.id;
    if (!run || this.stopping === run) return;
    this.stopping = run;
    try {
      await this.client.cancelRun(run);
    } catch (error) {
      if (!isClosed(error)) notices.error(error);
    } finally {
      this.stopping = null;
    }
  }

  /** Hold a run before its next step, or let it go on. */
  async pause(run: string, isHeld: boolean) {
    await this.#attempt(() => this.client.request(isHeld ? 'run.pause' : 'run.continue', { run }));
  }

  async resume(run: string) {
    await this.#attempt(() => this.client.resumeRun(run));
  }

  async unqueue(queued: Queued): Promise<boolean> {
    return this.#attempt(() => this.client.cancelRun(queued.run));
  }

  async editQueued(queued: Queued) {
    const conv = router.conv;
    if (await this.unqueue(queued)) composer.putBack(conv, queued);
  }

  async sendNow(queued: Queued) {
    if (await this.unqueue(queued)) this.send(queued, 'interrupt');
  }

  /** Patch the live config of the reply that is being written, else of the conversation, else of the chat to come. */
  async configure(name: string, value: unknown): Promise<'run' | 'conv' | 'new' | null> {
    const run = this.open?.transcript.active?.id;
    const scope = run ? `run:${run}` : router.conv === null ? null : `conv:${router.conv}`;
    if (scope === null) {
      composer.configure(name, value);
      return 'new';
    }
    const done = await this.#attempt(() => this.client.patchConfig(scope, { [name]: value }));
    return done ? (run ? 'run' : 'conv') : null;
  }

  /** Answer a question. What the hub refuses of the data is given back; all else is told here. */
  async answer(ask: string, choice: string, data?: unknown): Promise<Refusal | null> {
    try {
      await this.client.answerAsk(ask, choice, data);
    } catch (error) {
      if (error instanceof RpcError && error.kind === 'ask.invalid') return { path: String(error.data?.path ?? '$'), message: error.message, kind: error.kind };
      if (error instanceof RpcError && error.kind === 'ask.closed') notices.toast('This was answered already.');
      else notices.error(error);
    }
    return null;
  }

  // ------------------------------------------------------------------- inside

  async #attempt(work: () => Promise<unknown>): Promise<boolean> {
    try {
      await work();
      return true;
    } catch (error) {
      notices.error(error);
      return false;
    }
  }

  #mirror<S extends object>(name: string, show: (state: S) => void) {
    const handle = this.client.topic<S>(name);
    const schedule = onFrame(() => {
      // A copy of the outermost object tells runes of a change that was made in place.
      if (handle.state) show({ ...handle.state });
    });
    handle.subscribe(schedule);
  }

  #onStatus(status: Status) {
    this.status = status;
    this.retryAt = this.client.retryAt;
    if (status === 'open') {
      this.#lostAt = null;
      this.isDenied = false;
      this.serverVersion = this.client.server?.version ?? '';
      this.userName = this.client.user?.name ?? '';
      this.userId = this.client.user?.id ?? '';
      this.isAdmin = this.client.user?.roles?.includes('admin') ?? false;
      void this.#loadKinds();
    } else {
      this.#lostAt ??= Date.now();
    }
  }

  #listConversations(): ConversationEntry[] {
    const { convs, runs, asks } = this.#inbox;
    const running = new Set(Object.values(runs).filter((run) => run.status !== 'queued').map((run) => run.conv));
    const waiting = new Set(Object.values(asks).map((ask) => ask.conv));
    const entries = Object.entries(convs).map(([id, conv], place) => ({
      id,
      title: conv.title || 'New chat',
      ts: Number(conv.updated ?? conv.created ?? 0),
      isRunning: running.has(id),
      isWaiting: waiting.has(id),
      place,
    }));
    return entries.sort((a, b) => b.ts - a.ts || b.place - a.place);
  }

  #currentModel(): ModelInfo | null {
    const run = this.open?.transcript.active;
    const wanted =
      run?.config.model ??
      (run?.base as { model?: string } | undefined)?.model ??
      this.open?.config.config.model ??
      (router.conv === null ? composer.config.model : undefined) ??
      this.device.config.llm?.model;
    if (typeof wanted === 'string') return this.modelOf(wanted);
    return this.models.find((m) => m.default) ?? this.models[0] ?? null;
  }
}

function toRun({ key, conv, when, text, files, model, config, kind, setups }: OutboxEntry): StartRun {
  const said = text === '' ? [] : [{ kind: 'text', text }];
  // A steer keeps to the config of the reply that it steers.
  const own = when === 'steer' ? {} : { ...(conv === null ? config : {}), ...(kind === null ? {} : setups[kind]), ...(model === null ? {} : { model }) };
  return {
    key, when,
    input: [...said, ...files.map(toPart)],
    ...(conv === null ? {} : { conv }),
    ...(kind === null || when === 'steer' ? {} : { kind }),
    ...(Object.keys(own).length > 0 ? { config: own } : {}),
  };
}

function toPart({ ref, mime, name }: FileRef): StartRun['input'][number] {
  return { kind: isImage(mime) ? 'image' : 'file', ref, mime, name };
}

function orAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    if (signal.aborted) reject(new Error('taken back'));
    signal.addEventListener('abort', () => reject(new Error('taken back')), { once: true });
    work.then(resolve, reject);
  });
}

function isClosed(error: unknown): boolean {
  return error instanceof RpcError && error.kind === 'run.closed';
}

/** 128 random bits; also where the page is no secure context. */
export function newKey(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('');
}

export const hub = new Hub();
