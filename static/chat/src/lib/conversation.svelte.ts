/**
 * One conversation as the page shows it: folds of `conv:<id>` made into runes, once for each frame.
 *
 * Stands on the socket client's topic and on `transcript`; knows nothing of components and sends nothing but
 * `message.list`.
 */
import type { AskState, Client, ConvState, RpcError, ToolState, TopicHandle } from '@sag/client';
import { waitingWords } from './failures';
import { onFrame } from './frame';
import { notices } from './notices.svelte';
import type { RunParts } from './timeline';
import { contextOf } from './usage';
import { touchedRuns, TranscriptBuilder, type Older, type Transcript } from './transcript';

export interface OpenAsk extends AskState {
  id: string;
  /** The call that it is about, or that asks. */
  tool: ToolState | null;
}

/** An accepted patch of live settings, and the step that took it up. */
export interface ConfigChange {
  scope: string;
  rev: number;
  patch: Record<string, unknown>;
  by: string | null;
  step: number | null;
}

const EMPTY: Transcript = { turns: [], queued: [], active: null, newest: null };
const CHANGES_KEPT = 30;

export class Conversation {
  readonly id: string;
  transcript = $state.raw<Transcript>(EMPTY);
  asks = $state.raw<OpenAsk[]>([]);
  title = $state('');
  config = $state.raw<{ rev: number; config: Record<string, unknown> }>({ rev: 1, config: {} });
  changes = $state.raw<ConfigChange[]>([]);
  /** What the newest answer left in the model's context; its message tells one answer from the next. */
  context = $state.raw<{ msg: string; tokens: number } | null>(null);
  isLoaded = $state(false);
  error = $state.raw<RpcError | null>(null);
  /** The oldest message that is here, where there are older ones. */
  before = $state<string | null>(null);
  isLoadingOlder = $state(false);
  /** Messages known to be in the state, for those who wait for their own to appear. */
  messages = $state.raw<ReadonlySet<string>>(new Set());

  readonly #client: Client;
  readonly #handle: TopicHandle<ConvState>;
  readonly #builder = new TranscriptBuilder();
  readonly #models = new Map<string, string>();
  readonly #schedule = onFrame(() => this.#show());
  #asked = new Map<string, AskState>();
  #older: Older | null = null;
  #changed: Set<string> | 'all' = 'all';
  #isReleased = false;

  constructor(client: Client, id: string) {
    this.id = id;
    this.#client = client;
    this.#handle = client.topic<ConvState>(`conv:${id}`);
    this.#listen();
    this.#handle.subscribe((state, change) => {
      if (change.kind === 'snapshot') {
        this.#changed = 'all';
        this.#older = null;
        this.before = state.before ?? null;
        this.#recallChanges(state);
      } else if (change.kind === 'event' && change.event) {
        this.#touch(touchedRuns(state, change.event.e, change.event.d));
      }
      this.#schedule();
    });
  }

  release() {
    this.#isReleased = true;
    this.#handle.release();
  }

  async loadOlder() {
    if (this.before === null || this.isLoadingOlder) return;
    this.isLoadingOlder = true;
    try {
      const page = await this.#client.request<Partial<Older> & { before?: string }>('message.list', {
        conv: this.id,
        before: this.before,
      });
      this.#older = {
        messages: [...(page.messages ?? []), ...(this.#older?.messages ?? [])],
        runs: { ...page.runs, ...this.#older?.runs },
        tools: { ...page.tools, ...this.#older?.tools },
      };
      this.before = page.before ?? null;
      this.#changed = 'all';
      this.#schedule();
    } catch (error) {
      notices.error(error);
    } finally {
      this.isLoadingOlder = false;
    }
  }

  /** What is known of one run: its object, its messages, its tool calls. Null where it is not here. */
  partsOf(run: string): RunParts | null {
    const state = this.#handle.state;
    const object = state?.runs[run] ?? this.#older?.runs[run];
    if (!state || !object) return null;
    const tools = Object.entries({ ...this.#older?.tools, ...state.tools }).filter(([, tool]) => tool.run === run);
    const messages = [...(this.#older?.messages ?? []), ...state.messages].filter((message) => message.run === run);
    return { run: object, messages, tools: Object.fromEntries(tools) };
  }

  #touch(runs: string[] | 'all') {
    if (runs === 'all' || this.#changed === 'all') this.#changed = 'all';
    else for (const run of runs) this.#changed.add(run);
  }

  #show() {
    const state = this.#handle.state;
    this.error = this.#handle.error ?? null;
    if (!state || this.#isReleased) return;
    this.transcript = this.#builder.build(state, this.#older, this.#changed, this.#models);
    this.#changed = new Set();
    this.#showAsks(state);
    this.title = state.conv.title ?? '';
    this.config = { rev: state.conv.rev, config: state.conv.config };
    const context = contextOf(state.messages);
    if (context?.msg !== this.context?.msg) this.context = context;
    if (state.messages.length !== this.messages.size) this.messages = new Set(state.messages.map((m) => m.msg));
    this.isLoaded = true;
  }

  /** The same objects for the same asks, so that what is typed into one is not disturbed by what else goes on. */
  #showAsks(state: ConvState) {
    const ids = Object.keys(state.asks);
    const isSame = ids.length === this.asks.length && this.asks.every((shown, i) => shown.id === ids[i] && this.#asked.get(shown.id) === state.asks[shown.id]);
    if (isSame) return;
    this.asks = ids.map((id) => {
      const ask = state.asks[id]!;
      const shown = this.#asked.get(id) === ask ? this.asks.find((one) => one.id === id) : undefined;
      return shown ?? { ...ask, id, tool: (ask.call && state.tools[ask.call]) || null };
    });
    this.#asked = new Map(Object.entries(state.asks));
  }

  #listen() {
    const on = (event: string, fn: (d: any, isReplay: boolean) => void) =>
      this.#handle.on(event, (d, meta) => fn(d, meta.r === true));
    on('step.open', (d) => this.#models.set(d.run, d.model));
    on('config', (d) => this.#addChange({ scope: d.scope, rev: d.rev, patch: d.patch, by: d.by ?? null, step: null }));
    on('config.applied', (d) => {
      this.changes = this.changes.map((change) =>
        change.scope === d.scope && change.rev <= d.rev && change.step === null ? { ...change, step: d.step } : change,
      );
    });
    on('run', (d, isReplay) => {
      const why = d.patch?.why;
      if (!isReplay && why) notices.announce(waitingWords(why, d.patch.after_ms ?? null));
    });
    on('run.close', (d, isReplay) => {
      if (!isReplay) notices.announce(END_WORDS[d.status as string] ?? 'Reply finished');
    });
    on('ask.open', (d, isReplay) => {
      if (!isReplay) notices.announce(`${d.kind === 'approval' ? 'Approval needed' : 'Your answer is needed'}: ${d.title ?? ''}`);
    });
    on('ask.close', (d, isReplay) => {
      if (!isReplay && d.why === 'expired') notices.toast('A question expired without an answer.');
    });
  }

  #addChange(change: ConfigChange) {
    const others = this.changes.filter((c) => c.scope !== change.scope || c.rev !== change.rev);
    this.changes = [...others, change].slice(-CHANGES_KEPT);
  }

  /** What a snapshot tells of changes that were made before this page was open. */
  #recallChanges(state: ConvState) {
    for (const [id, run] of Object.entries(state.runs)) {
      const scope = `run:${id}`;
      for (const { rev, patch, by, step } of run.changes ?? []) {
        if (this.changes.some((c) => c.scope === scope && c.rev === rev)) continue;
        // The step after it took it up, as soon as there was one.
        const applied = run.applied && run.applied.rev >= rev ? Math.min(step + 1, run.applied.step) : null;
        this.#addChange({ scope, rev, patch, by, step: applied });
      }
    }
  }
}

const END_WORDS: Record<string, string> = {
  done: 'Reply finished',
  cancelled: 'Reply stopped',
  failed: 'The reply failed',
  limit: 'The reply ended at its limit',
  interrupted: 'The reply was interrupted',
};
