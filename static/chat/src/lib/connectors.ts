/**
 * Connectors and tools as the panel shows them: how each is, whether it is on, what becomes of its calls and why. Pure.
 *
 * The order in which decisions are looked up is the hub's (`sag.engine.approvals`); it is worked out here too, so that a
 * switch shows at once what it does. The journey holds the two together.
 */

export type Policy = 'auto' | 'ask' | 'deny';

/** A device's switch of a tool (by its key) or of a connector (by its name). */
export interface Switch {
  enabled?: boolean | null;
  policy?: Policy | null;
}

/** What a user decided on all devices. */
export interface Decision {
  key: string;
  policy: Policy;
  ts: number;
  /** The definition has changed since, so that it asks. */
  changed?: boolean;
  /** There is no such tool or connector now. */
  gone?: boolean;
}

/** All that is set and decided. */
export interface Rules {
  /** The section `tools` of the device's settings. */
  device: Record<string, Switch>;
  /** `llm.tools` of the device's settings, which stands above the switches. */
  llm: Record<string, boolean>;
  decisions: Decision[];
}

/** What a device's settings say of tools. */
export function rulesOf(settings: Record<string, any>): Omit<Rules, 'decisions'> {
  return { device: settings.tools ?? {}, llm: settings.llm?.tools ?? {} };
}

export interface PromptInfo {
  name: string;
  title?: string;
  description?: string;
  arguments?: { name: string; description?: string; required?: boolean }[];
}

export interface ToolRow {
  key: string;
  name: string;
  title: string;
  description: string;
  risk: string;
  isOn: boolean;
  /** The device's own policy. */
  own: Policy | null;
  /** What becomes of a call, and who says so. */
  policy: Policy;
  why: string;
  /** Whoever set the connector up forbids it: nothing here changes that. */
  isForbidden: boolean;
}

export type Tone = 'ok' | 'live' | 'warn' | 'bad' | 'quiet';

export interface ConnectorView {
  id: string;
  title: string;
  /** A plugin's own tools have no connector: no state, and no switch for all of them. */
  isConnector: boolean;
  kind: string;
  status: string;
  words: string;
  tone: Tone;
  error: string;
  version: string;
  instructions: string;
  notes: string[];
  tools: ToolRow[];
  prompts: PromptInfo[];
  resources: number;
  isOn: boolean;
  own: Policy | null;
}

const STATES: Record<string, { words: string; tone: Tone }> = {
  starting: { words: 'Starting', tone: 'live' },
  ready: { words: 'Ready', tone: 'ok' },
  idle: { words: 'Starts when it is needed', tone: 'quiet' },
  auth: { words: 'Sign-in needed', tone: 'warn' },
  backoff: { words: 'Down, trying again', tone: 'warn' },
  failed: { words: 'Failed', tone: 'bad' },
  off: { words: 'Switched off', tone: 'quiet' },
};

/** Which states a person should see without opening the panel. */
export function needsPerson(status: string): boolean {
  return status === 'auth' || status === 'failed';
}

export const POLICIES: { value: Policy; label: string; words: string }[] = [
  { value: 'auto', label: 'Goes ahead', words: 'goes ahead' },
  { value: 'ask', label: 'Asks first', words: 'asks first' },
  { value: 'deny', label: 'Refused', words: 'is refused' },
];

export function policyWords(policy: Policy): string {
  return POLICIES.find((one) => one.value === policy)?.words ?? policy;
}

const RISKS: Record<string, { label: string; about: string; tone: Tone }> = {
  read: { label: 'reads', about: 'It only reads.', tone: 'quiet' },
  write: { label: 'writes', about: 'It changes or sends something.', tone: 'warn' },
  danger: { label: 'dangerous', about: 'It may destroy something or reach outside.', tone: 'bad' },
};

export function riskWords(risk: string): { label: string; about: string; tone: Tone } {
  return RISKS[risk] ?? { label: risk, about: '', tone: 'quiet' };
}

/** What people call a connector; where several are called the same, its own name tells them apart. */
export function titleOf(told: Record<string, any>, id: string): string {
  const title = told[id]?.title;
  if (!title) return id;
  const isShared = Object.entries(told).some(([other, connector]) => other !== id && connector?.title === title);
  return isShared ? `${title} (${id})` : title;
}

/** Connectors first, by their titles; what needs a person stands before all else. */
export function viewConnectors(told: Record<string, any>, rules: Rules): ConnectorView[] {
  const views = Object.entries(told).map(([id, connector]) => viewConnector(id, titleOf(told, id), connector ?? {}, rules));
  const rank = (view: ConnectorView) => (needsPerson(view.status) ? 0 : view.isConnector ? 1 : 2);
  return views.sort((a, b) => rank(a) - rank(b) || a.title.localeCompare(b.title) || a.id.localeCompare(b.id));
}

function viewConnector(id: string, title: string, told: Record<string, any>, rules: Rules): ConnectorView {
  const isConnector = typeof told.plugin === 'string';
  const status = String(told.status ?? 'ready');
  const state = STATES[status] ?? { words: status, tone: 'quiet' as const };
  const connector = isConnector ? id : '';
  const tools = Object.entries((told.tools ?? {}) as Record<string, any>).map(([name, tool]) => viewTool(name, tool ?? {}, connector, rules));
  return {
    id, title, isConnector, status, tools,
    kind: told.kind || (isConnector ? 'connector' : 'plugin'),
    words: state.words,
    tone: state.tone,
    error: told.error ?? '',
    version: told.version ?? '',
    instructions: told.instructions ?? '',
    notes: Array.isArray(told.notes) ? told.notes : [],
    prompts: Object.entries((told.prompts ?? {}) as Record<string, any>).map(([name, prompt]) => ({ ...prompt, name })),
    resources: Number(told.resources ?? 0),
    isOn: switchOf(rules, id) ?? true,
    own: rules.device[id]?.policy ?? null,
  };
}

function viewTool(name: string, told: Record<string, any>, connector: string, rules: Rules): ToolRow {
  const key = String(told.key ?? (connector ? `${connector}/${name}` : name));
  const risk = String(told.risk ?? '');
  return {
    key, name, risk,
    title: told.title || name,
    description: told.description ?? '',
    isOn: switchOf(rules, key) ?? inherited(rules, connector),
    own: rules.device[key]?.policy ?? null,
    isForbidden: told.policy === 'deny',
    ...decide(key, connector, risk, told.policy ?? null, rules),
  };
}

function switchOf({ device, llm }: Rules, key: string): boolean | undefined {
  return llm[key] ?? device[key]?.enabled ?? undefined;
}

function inherited(rules: Rules, connector: string): boolean {
  return connector ? (switchOf(rules, connector) ?? true) : true;
}

/** What becomes of a call, from the nearest decision to the farthest, and whose it is. */
function decide(key: string, connector: string, risk: string, admin: Policy | null, { device, decisions }: Rules): { policy: Policy; why: string } {
  const decided = (of: string) => decisions.find((one) => one.key === of);
  if (admin === 'deny') return { policy: 'deny', why: 'as its connector is set up' };
  const own = device[key]?.policy;
  if (own) return { policy: own, why: 'on this device' };
  const kept = decided(key);
  if (kept?.policy === 'auto' && kept.changed) return { policy: 'ask', why: 'it has changed since you allowed it' };
  if (kept) return { policy: kept.policy, why: 'as you decided for all devices' };
  if (connector) {
    const all = device[connector]?.policy;
    if (all) return { policy: all, why: 'as the connector on this device' };
    const keptAll = decided(connector);
    if (keptAll) return { policy: keptAll.policy, why: 'as you decided for the connector' };
  }
  if (admin) return { policy: admin, why: 'as its connector is set up' };
  return risk === 'danger' ? { policy: 'ask', why: 'since it is dangerous' } : { policy: 'auto', why: '' };
}

// ------------------------------------------------------------------ patches

/** The patch on a device's settings that switches a tool or a connector; `connector` is the one that a tool comes from. */
export function switchPatch(key: string, isOn: boolean, connector: string, rules: Rules): Record<string, any> {
  const below = { device: rules.device, llm: rules.llm, decisions: [] };
  const enabled = isOn === (connector && connector !== key ? inherited(below, connector) : true) ? null : isOn;
  return {
    tools: { [key]: trimmed({ ...rules.device[key], enabled }) },
    // Two sections may switch it; what was said in the other one would win.
    ...(key in rules.llm ? { llm: { tools: { [key]: null } } } : {}),
  };
}

/** The patch that sets a device's policy; null takes it back. */
export function policyPatch(key: string, policy: Policy | null, rules: Rules): Record<string, any> {
  return { tools: { [key]: trimmed({ ...rules.device[key], policy }) } };
}

/** A switch that says nothing is taken away altogether. */
function trimmed({ enabled = null, policy = null }: Switch): Record<string, any> | null {
  return enabled === null && policy === null ? null : { enabled, policy };
}

// ------------------------------------------------------------------ headers

/** Headers as they are typed, `Name: value` in each line; the token goes along as one of them. */
export function readHeaders(text: string, token: string): { headers: Record<string, string> } | { fault: string } {
  const headers: Record<string, string> = token.trim() === '' ? {} : { Authorization: `Bearer ${token.trim()}` };
  for (const line of text.split('\n').map((one) => one.trim()).filter(Boolean)) {
    const [, name, value] = /^([!#$%&'*+.^_`|~\w-]+)\s*:\s*(\S.*)$/.exec(line) ?? [];
    if (!name || !value) return { fault: `“${line.length > 40 ? `${line.slice(0, 40)}…` : line}” is no header: write Name: value.` };
    if (Object.keys(headers).some((one) => one.toLowerCase() === name.toLowerCase())) return { fault: `${name} is there twice.` };
    headers[name] = value;
  }
  return { headers };
}

// ------------------------------------------------------------------- search

/** The connectors and tools that have all of the words; a connector that has them itself keeps all of its tools. */
export function filterConnectors(views: ConnectorView[], query: string): ConnectorView[] {
  const wanted = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (wanted.length === 0) return views;
  const has = (...texts: string[]) => {
    const text = texts.join('\n').toLowerCase();
    return wanted.every((word) => text.includes(word));
  };
  return views.flatMap((view) => {
    if (has(view.id, view.title)) return [view];
    const tools = view.tools.filter((tool) => has(view.id, view.title, tool.name, tool.title, tool.description));
    return tools.length > 0 ? [{ ...view, tools }] : [];
  });
}

/** How much a connector has, in words: `12 tools, 3 off · 2 prompts · 5 resources`. */
export function countWords({ tools, prompts, resources, isOn }: ConnectorView): string {
  const some = (n: number, what: string) => (n === 0 ? [] : [`${n} ${what}${n === 1 ? '' : 's'}`]);
  const off = tools.filter((tool) => !tool.isOn).length;
  const toolWords = tools.length === 0 ? ['no tools'] : some(tools.length, 'tool').map((words) => (isOn && off > 0 ? `${words}, ${off} off` : words));
  return [...toolWords, ...some(prompts.length, 'prompt'), ...some(resources, 'resource')].join(' · ');
}
