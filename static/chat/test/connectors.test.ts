import { mergePatch } from '@sag/client';
import { describe, expect, it } from 'vitest';
import { countWords, filterConnectors, policyPatch, readHeaders, switchPatch, titleOf, viewConnectors, type Decision, type Rules } from '../src/lib/connectors';

const TOLD = {
  basics: { kind: 'plugin', status: 'ready', tools: { note_add: { description: 'Writes a note', risk: 'write', key: 'note_add' }, note_delete: { description: 'Deletes one', risk: 'danger', key: 'note_delete' } } },
  files: {
    kind: 'mcp', status: 'ready', title: 'Files', plugin: 'mcp', version: '1.2', resources: 5,
    tools: {
      read: { description: 'Reads a file', risk: 'read', key: 'files/read' },
      remove: { description: 'Removes a file', risk: 'danger', key: 'files/remove', title: 'Remove a file' },
      format: { description: 'Formats the disk', risk: 'danger', key: 'files/format', policy: 'deny' },
    },
    prompts: { tidy: { name: 'tidy' } },
  },
  mail: { kind: 'mcp', status: 'auth', plugin: 'mcp', tools: {}, error: 'sign in' },
};

const rules = (some: Partial<Rules> = {}): Rules => ({ device: {}, llm: {}, decisions: [], ...some });
const decision = (key: string, policy: Decision['policy'], some: Partial<Decision> = {}): Decision => ({ key, policy, ts: 1, ...some });
const tool = (key: string, some: Partial<Rules> = {}) => viewConnectors(TOLD, rules(some)).flatMap((view) => view.tools).find((one) => one.key === key)!;

describe('connectors', () => {
  it('stand before plugins, and those that need somebody before all', () => {
    expect(viewConnectors(TOLD, rules()).map((v) => `${v.title}: ${v.words} (${v.tone})`)).toEqual(['mail: Sign-in needed (warn)', 'Files: Ready (ok)', 'basics: Ready (ok)']);
  });

  it('tell what they have', () => {
    const files = viewConnectors(TOLD, rules({ device: { 'files/read': { enabled: false } } })).find((v) => v.id === 'files')!;
    expect(countWords(files)).toBe('3 tools, 1 off · 1 prompt · 5 resources');
    expect(countWords(viewConnectors(TOLD, rules())[0]!)).toBe('no tools');
  });

  it('are found by their own words, or by those of their tools', () => {
    const found = (query: string) => filterConnectors(viewConnectors(TOLD, rules()), query).map((v) => `${v.id}: ${v.tools.map((t) => t.name).join(' ')}`);
    expect(found('files')).toEqual(['files: read remove format']);
    expect(found('remove')).toEqual(['files: remove']);
    expect(found('files reads')).toEqual(['files: read']);
    expect(found('delete one')).toEqual(['basics: note_delete']);
    expect(found('nothing like it')).toEqual([]);
  });

  it('may have a state that this page does not know', () => {
    expect(viewConnectors({ x: { status: 'dreaming', plugin: 'p' } }, rules())[0]).toMatchObject({ words: 'dreaming', tools: [], resources: 0 });
  });
});

describe('what becomes of a call', () => {
  it.each<[string, Partial<Rules>, string]>([
    ['files/read', {}, 'auto '],
    ['files/remove', {}, 'ask since it is dangerous'],
    ['files/remove', { decisions: [decision('files', 'auto')] }, 'auto as you decided for the connector'],
    ['files/remove', { device: { files: { policy: 'deny' } }, decisions: [decision('files', 'auto')] }, 'deny as the connector on this device'],
    ['files/remove', { device: { files: { policy: 'deny' } }, decisions: [decision('files/remove', 'auto')] }, 'auto as you decided for all devices'],
    ['files/remove', { decisions: [decision('files/remove', 'auto', { changed: true })] }, 'ask it has changed since you allowed it'],
    ['files/remove', { decisions: [decision('files/remove', 'deny', { changed: true })] }, 'deny as you decided for all devices'],
    ['files/remove', { device: { 'files/remove': { policy: 'auto' } }, decisions: [decision('files/remove', 'deny')] }, 'auto on this device'],
    ['files/format', { device: { 'files/format': { policy: 'auto' } } }, 'deny as its connector is set up'],
    ['note_delete', { device: { basics: { policy: 'auto' } } }, 'ask since it is dangerous'],
  ])('of %s under %j', (key, some, verdict) => {
    const { policy, why } = tool(key, some);
    expect(`${policy} ${why}`).toBe(verdict);
  });
});

describe('a switch', () => {
  it.each<[string, Partial<Rules>, boolean]>([
    ['files/read', {}, true],
    ['files/read', { device: { files: { enabled: false } } }, false],
    ['files/read', { device: { files: { enabled: false }, 'files/read': { enabled: true } } }, true],
    ['files/read', { device: { 'files/read': { enabled: true } }, llm: { 'files/read': false } }, false],
    ['files/read', { device: { 'files/read': { policy: 'ask' } } }, true],
    ['note_add', { device: { basics: { enabled: false } } }, true],
  ])('of %s under %j is %j', (key, some, isOn) => expect(tool(key, some).isOn).toBe(isOn));

  it.each<[string, boolean, string, Partial<Rules>]>([
    ['files/read', false, 'files', {}],
    ['files/read', true, 'files', { device: { 'files/read': { enabled: false, policy: 'ask' } } }],
    ['files/read', true, 'files', { device: { files: { enabled: false } } }],
    ['files/read', false, 'files', { device: { files: { enabled: false }, 'files/read': { enabled: true } } }],
    ['files/read', true, 'files', { llm: { 'files/read': false } }],
    ['files/read', true, 'files', { llm: { files: false } }],
    ['files', false, 'files', {}],
    ['files', true, 'files', { device: { files: { enabled: false } } }],
    ['note_add', false, '', {}],
  ])('of %s that is set to %j (%s, %j) is what was wanted, and says no more than is needed', (key, isOn, connector, some) => {
    const before = rules(some);
    const after = mergePatch({ llm: { tools: before.llm }, tools: before.device }, switchPatch(key, isOn, connector, before));
    const then = rules({ device: after.tools ?? {}, llm: after.llm?.tools ?? {} });
    const view = viewConnectors(TOLD, then);
    expect((view.find((v) => v.id === key) ?? view.flatMap((v) => v.tools).find((t) => t.key === key))!.isOn).toBe(isOn);
    for (const one of Object.values(then.device)) expect(one).not.toEqual({});
  });

  it('is gone once it says nothing', () => {
    const off = rules({ device: { 'files/read': { enabled: false } } });
    expect(switchPatch('files/read', true, 'files', off)).toEqual({ tools: { 'files/read': null } });
    expect(policyPatch('files/read', 'ask', off)).toEqual({ tools: { 'files/read': { enabled: false, policy: 'ask' } } });
    expect(policyPatch('files/read', null, rules({ device: { 'files/read': { policy: 'ask' } } }))).toEqual({ tools: { 'files/read': null } });
  });
});

describe('headers', () => {
  it.each<[string, string, object]>([
    ['', '', { headers: {} }],
    ['', ' abc ', { headers: { Authorization: 'Bearer abc' } }],
    ['X-Key: a: b\n\n x-team:web', '', { headers: { 'X-Key': 'a: b', 'x-team': 'web' } }],
    ['nonsense', '', { fault: '“nonsense” is no header: write Name: value.' }],
    ['X-Key:', '', { fault: '“X-Key:” is no header: write Name: value.' }],
    ['authorization: Basic x', 'abc', { fault: 'authorization is there twice.' }],
  ])('%j with the token %j', (text, token, read) => expect(readHeaders(text, token)).toEqual(read));
});

describe('two connectors of one title', () => {
  it('are told apart by their names', () => {
    const told = { a: { title: 'Files' }, b: { title: 'Files' }, c: { title: 'Mail' }, d: {} };
    expect(Object.keys(told).map((id) => titleOf(told, id))).toEqual(['Files (a)', 'Files (b)', 'Mail', 'd']);
  });
});
