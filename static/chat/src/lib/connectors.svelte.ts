/**
 * What a person does with connectors: switches and policies of this device, decisions on all of them, servers connected
 * by URL, prompts and resources for the composer, presets.
 *
 * Stands on the store `hub`, which has the topics; everything here is a request.
 */
import { RpcError, type Operations } from '@sag/client';
import { composer } from './composer.svelte';
import { policyPatch, rulesOf, switchPatch, type Policy, type Rules } from './connectors';
import { CLIENT_ID, hub, type Refusal } from './hub.svelte';
import { notices } from './notices.svelte';
import { attachmentsOf, draftOf, type Attachment, type OfferedPrompt, type Resource } from './prompts';
import { router } from './route.svelte';
import { Upload } from './uploads.svelte';

export type Preset = Operations['preset.list']['result']['presets'][number];

/** An MCP server, as far as the page has a use for it. */
export interface Server {
  id: string;
  title: string;
  source: 'config' | 'user';
  enabled: boolean;
  lazy: boolean;
  policy?: Policy;
  url?: string;
  /** The name of its program. */
  command?: string;
  /** Names of headers that are sent; their values are not told. */
  headers?: Record<string, unknown>;
  can_change: boolean;
}

/** What is given of a server to connect. */
export interface NewServer {
  url: string;
  name: string;
  headers: Record<string, string>;
  /** An administrator's word that its host may have a private address. */
  allow: boolean;
}

/** What may change of a server; what is left out stays. */
export interface ServerPatch {
  title?: string;
  enabled?: boolean;
  lazy?: boolean;
  policy?: Policy | null;
  headers?: Record<string, string | null>;
  tools?: Record<string, boolean>;
}

/** A tool of a server, whether or not it is offered to anybody. */
export interface ServerTool {
  name: string;
  title?: string;
  enabled: boolean;
}

/** A server that was found. */
export interface Found {
  url: string;
  title?: string;
  version?: string;
  /** It wants a sign-in, or a key. */
  auth?: boolean;
  /** It is connected already, under this name. */
  server?: string;
}

/** The plugin that connects MCP servers; without it there are plugins' tools alone. */
const MCP = 'mcp';
/** Against others who patch the same settings. */
const TRIES = 5;
/** Asking many addresses takes its time. */
const DISCOVER_MS = 60_000;

class Connectors {
  /** What is being done to which connector. */
  busy = $state.raw<Record<string, string>>({});
  /** MCP servers by their connectors' names. */
  servers = $state.raw<Record<string, Server>>({});
  /** Pages to sign in at that were asked for, by connector. */
  signIns = $state.raw<Record<string, string>>({});
  resources = $state.raw<Resource[]>([]);
  presets = $state.raw<Preset[]>([]);

  readonly prompts = $derived(
    hub.connectors.filter((view) => view.isOn).flatMap((view) => view.prompts.map((prompt): OfferedPrompt => ({ ...prompt, connector: view.id, from: view.title }))),
  );
  /** Changes when what connectors can read may have changed. */
  readonly resourceCount = $derived(hub.connectors.map((view) => `${view.id} ${view.resources}`).join('\n'));
  readonly hasResources = $derived(hub.connectors.some((view) => view.resources > 0));

  get canConnect(): boolean {
    return hub.isPluginOn(MCP);
  }

  // ------------------------------------------------- this device, all devices

  switch(key: string, isOn: boolean, connector = ''): Promise<boolean> {
    return this.#patchDevice((rules) => switchPatch(key, isOn, connector, rules));
  }

  setPolicy(key: string, policy: Policy | null): Promise<boolean> {
    return this.#patchDevice((rules) => policyPatch(key, policy, rules));
  }

  /** One patch after the other, each made from what is set by then, here or elsewhere. */
  #patchDevice(make: (rules: Rules) => Record<string, any>): Promise<boolean> {
    const done = this.#patching.then(() => attempt(async () => {
      for (let tries = 0; ; tries += 1) {
        const { rev, config } = this.#newest.rev > hub.device.rev ? this.#newest : hub.device;
        try {
          const answer = await hub.client.patchConfig(`client:${CLIENT_ID}`, make({ ...rulesOf(config), decisions: [] }), { rev });
          this.#newest = { rev: answer.rev, config: answer.effective ?? {} };
          return;
        } catch (error) {
          if (!(error instanceof RpcError) || error.kind !== 'config.conflict' || tries === TRIES) throw error;
          this.#newest = { rev: Number(error.data?.rev), config: error.data?.effective ?? {} };
        }
      }
    }));
    this.#patching = done;
    return done;
  }

  #patching: Promise<unknown> = Promise.resolve();
  /** The device's settings as an answer told them, which may be ahead of its topic. */
  #newest: { rev: number; config: Record<string, any> } = { rev: 0, config: {} };

  async loadDecisions() {
    await attempt(async () => {
      hub.decisions = (await hub.client.request('tool.policy.list', {})).policies;
    });
  }

  /** Decide on all devices; null takes a decision back. */
  async decide(key: string, policy: Policy | null): Promise<boolean> {
    const isDone = await attempt(() => hub.client.request('tool.policy.set', { tool: key, policy }));
    if (isDone) await this.loadDecisions();
    return isDone;
  }

  // ------------------------------------------------------------- MCP servers

  /** What the topics do not tell: servers with what may be changed of them, and decisions. */
  async load() {
    await Promise.all([this.loadDecisions(), this.canConnect ? attempt(() => this.#loadServers()) : undefined]);
  }

  async #loadServers() {
    const { servers } = await hub.client.request<{ servers: Server[] }>('mcp.server.list', {});
    this.servers = Object.fromEntries(servers.map((server) => [server.id, server]));
  }

  /** Connect a server; what is wrong with what was given, or with the server, is given back. */
  async connect(server: NewServer): Promise<Refusal | null> {
    try {
      const { id } = await hub.client.request<Server>('mcp.server.connect', server);
      notices.toast(`${hub.connectorName(id)} is connected.`);
    } catch (error) {
      if (!(error instanceof RpcError)) throw error;
      return { path: String(error.data?.path ?? '').replace(/^\$\.?/, '').replace(/[.[].*$/, ''), message: error.message, kind: error.kind };
    }
    await attempt(() => this.#loadServers());
    return null;
  }

  /** Look for servers at an address, or on a host. @throws RpcError It may not be asked. */
  async discover(where: string): Promise<{ found: Found[]; isComplete: boolean }> {
    const place = where.includes('://') ? { url: where } : { host: where };
    const answer = await hub.client.request<{ endpoints: Found[]; complete: boolean }>('mcp.server.discover', place, { timeout_ms: DISCOVER_MS });
    return { found: answer.endpoints, isComplete: answer.complete };
  }

  refresh(id: string): Promise<boolean> {
    return this.#change(id, 'Refreshing…', () => hub.client.request('mcp.server.refresh', { id }));
  }

  update(id: string, patch: ServerPatch): Promise<boolean> {
    return this.#change(id, 'Saving…', () => hub.client.request('mcp.server.update', { id, ...patch }));
  }

  remove(id: string): Promise<boolean> {
    return this.#change(id, 'Removing…', () => hub.client.request('mcp.server.remove', { id }));
  }

  async tools(id: string): Promise<ServerTool[]> {
    return (await hub.client.request<{ tools: ServerTool[] }>('mcp.server.tools', { id })).tools;
  }

  /** Ask for the page to sign in at; it is opened by a click, once its host was seen. */
  signIn(id: string): Promise<boolean> {
    return this.#change(id, 'Looking for the sign-in…', async () => {
      const { auth_url } = await hub.client.request<{ auth_url?: string }>('mcp.server.sign_in', { id });
      if (auth_url) this.signIns = { ...this.signIns, [id]: auth_url };
    });
  }

  /** Complete a sign-in with the address that the browser was sent back to, where it did not reach the hub. */
  completeSignIn(id: string, answer: string): Promise<boolean> {
    return this.#change(id, 'Signing in…', () => hub.client.request('mcp.server.sign_in', { id, answer }));
  }

  async #change(id: string, words: string, work: () => Promise<unknown>): Promise<boolean> {
    this.busy = { ...this.busy, [id]: words };
    const isDone = await attempt(work);
    const { [id]: _, ...others } = this.busy;
    this.busy = others;
    if (isDone) await attempt(() => this.#loadServers());
    return isDone;
  }

  // ------------------------------------------------------- prompts, resources

  /** Fill in a prompt. @throws RpcError Its connector cannot. */
  async getPrompt({ connector, name }: OfferedPrompt, given: Record<string, string>): Promise<{ text: string; uploads: Upload[] }> {
    const { messages } = await hub.client.request('prompt.get', { connector, name, arguments: given });
    const { text, attachments } = draftOf(messages);
    return { text, uploads: attachments.map(toUpload) };
  }

  /** What an argument may go on with; nothing where that is not known. */
  async complete(kind: 'prompt' | 'resource', connector: string, name: string, argument: string, value: string, signal: AbortSignal): Promise<string[]> {
    try {
      return (await hub.client.request('prompt.complete', { connector, kind, name, argument, value }, { signal })).values;
    } catch {
      return []; // a help for typing, and no more
    }
  }

  async loadResources() {
    if (!this.hasResources) this.resources = [];
    else await attempt(async () => (this.resources = (await hub.client.request('resource.list', {})).resources as Resource[]));
  }

  /** Attach what a resource holds to the message that is being written. */
  attach({ connector, ...resource }: Pick<Resource, 'connector' | 'uri' | 'name' | 'mime'>): Promise<boolean> {
    return attempt(async () => {
      const { content } = await hub.client.request('resource.read', { connector, uri: resource.uri });
      const attachments = attachmentsOf(content, resource);
      if (attachments.length === 0) notices.toast(`${resource.name} is empty.`);
      else composer.add(attachments.map(toUpload));
    });
  }

  // ------------------------------------------------------------------ presets

  async loadPresets() {
    await attempt(async () => (this.presets = (await hub.client.request('preset.list', {})).presets));
  }

  /** Set a preset for the conversation, or for the chat to come. */
  async applyPreset(preset: Preset): Promise<boolean> {
    const { conv } = router;
    if (conv !== null) return attempt(() => hub.client.patchConfig(`conv:${conv}`, preset.config));
    for (const [name, value] of Object.entries(preset.config)) composer.configure(name, value);
    return true;
  }
}

async function attempt(work: () => Promise<unknown>): Promise<boolean> {
  try {
    await work();
    return true;
  } catch (error) {
    notices.error(error);
    return false;
  }
}

function toUpload(attachment: Attachment): Upload {
  const { name, mime } = attachment;
  switch (attachment.kind) {
    case 'kept': return Upload.kept({ ref: attachment.ref, name, mime, ...(attachment.size === undefined ? {} : { size: attachment.size }) });
    case 'text': return Upload.begin(new File([attachment.text], name, { type: mime }));
    case 'bytes': return Upload.begin(new File([Uint8Array.from(atob(attachment.base64), (c) => c.charCodeAt(0))], name, { type: mime }));
  }
}

export const connectors = new Connectors();
