import { describe, expect, it } from 'vitest';
import { completingAt, cut, filterCommands, filterModels, findModel, parseCommand } from '../src/lib/commands';

const models = [
  { id: 'demo/scripted', label: 'Demo (scripted, offline)' }, { id: 'openai/gpt-5', label: 'GPT-5' }, { id: 'openai/gpt-5-mini' }, { id: 'local/qwen:7b' },
];

const presets = [{ name: 'planning', title: 'Resource planning' }, { name: 'brief', title: 'In a nutshell' }];

describe('commands', () => {
  it.each<[string, object]>([
    ['/new', { name: 'new' }],
    ['/stop ', { name: 'stop' }],
    ['/HELP', { name: 'help' }],
    ['/model gpt-5', { name: 'model', model: 'openai/gpt-5' }],
    ['/model qwen', { name: 'model', model: 'local/qwen:7b' }],
    ['/model default', { name: 'model', model: null }],
    ['/temperature 0.3', { name: 'temperature', temperature: 0.3 }],
    ['/temperature 0,3', { name: 'temperature', temperature: 0.3 }],
    ['/temperature', { name: 'temperature', temperature: null }],
    ['/system Be brief.\nAnd kind.', { name: 'system', system: 'Be brief.\nAnd kind.' }],
    ['/theme dark', { name: 'theme', theme: 'dark' }],
    ['/theme', { name: 'theme', theme: null }],
    ['/connectors', { name: 'connectors' }],
    ['/preset planning', { name: 'preset', preset: 'planning' }],
    ['/preset Resource planning', { name: 'preset', preset: 'planning' }],
    ['/preset brief', { name: 'preset', preset: 'brief' }],
  ])('%j is one', (text, command) => expect(parseCommand(text, models, presets)).toEqual({ command }));

  it.each(['/temperature 3', '/temperature warm', '/model', '/model gpt', '/theme pink', '/new chat about cats', '/preset', '/preset n', '/preset none'])('%j is told what is wrong', (text) => {
    expect(parseCommand(text, models, presets)).toHaveProperty('fault');
  });

  it.each(['/etc/hosts', '/unknown', 'hello /new', ' /new', '/', '/newer', '//new'])('%j is a message', (text) => {
    expect(parseCommand(text, models)).toBeNull();
  });

  it('are offered by how they begin', () => {
    expect(filterCommands('s').map((c) => c.name)).toEqual(['stop', 'system', 'settings']);
    expect(filterCommands('x')).toEqual([]);
  });
});

describe('models', () => {
  it('are found by id, label or a part that fits one alone', () => {
    expect(['openai/gpt-5', 'GPT-5', 'scripted', 'mini', 'gpt'].map((m) => findModel(m, models))).toEqual(
      ['openai/gpt-5', 'openai/gpt-5', 'demo/scripted', 'openai/gpt-5-mini', null]);
  });
  it('need not be listed where the name is whole', () => expect(findModel('vendor/other', models)).toBe('vendor/other'));
  it('are filtered by words', () => expect(filterModels(models, 'openai mini').map((m) => m.id)).toEqual(['openai/gpt-5-mini']));
});

describe('what is being typed', () => {
  const at = (text: string, caret = text.length) => {
    const found = completingAt(text, caret);
    return found && `${found.kind} ${found.query} ${found.from}-${found.to}`;
  };
  it.each<[string, string | null]>([
    ['/', 'command  0-1'],
    ['/te', 'command te 0-3'],
    ['/temperature 0', null],
    ['/model g', 'model-of-command g 7-8'],
    ['/theme ', 'theme-of-command  7-7'],
    ['/preset pl', 'preset-of-command pl 8-10'],
    ['/list_people-2', 'command list_people-2 0-14'],
    ['/etc/hosts', null],
    ['hello /', null],
    ['@', 'mention  0-1'],
    ['ask @gpt', 'mention gpt 4-8'],
    ['(@openai/g', 'mention openai/g 1-10'],
    ['me@example', null],
    ['@gpt hello', null],
    ['a\n@x', 'mention x 2-4'],
  ])('%j', (text, found) => expect(at(text)).toBe(found));

  it('goes by where the caret is', () => {
    expect(at('ask @gp now', 7)).toBe('mention gp 4-7');
    expect(at('/new', 0)).toBeNull();
    expect(at('/ne', -1)).toBeNull();
  });

  it('leaves no gap when a mention is taken out', () => {
    expect(cut('ask @gpt now', 4, 8)).toBe('ask now');
    expect(cut('@gpt', 0, 4)).toBe('');
    expect(cut('ask\n@gpt now', 4, 8)).toBe('ask\nnow');
  });
});
