import { describe, expect, it } from 'vitest';
import { attachmentsOf, draftOf, expandTemplate, filterPrompts, filterResources, variablesOf } from '../src/lib/prompts';

const text = (t: string) => ({ kind: 'text', text: t });

describe('a prompt that was filled in', () => {
  it('is the text of the message', () => {
    expect(draftOf([{ role: 'user', content: [text('Sum up'), text('the week.')] }])).toEqual({ text: 'Sum up\nthe week.', attachments: [] });
  });

  it('tells who speaks where several do', () => {
    const draft = draftOf([{ role: 'user', content: [text('Hi')] }, { role: 'assistant', content: [text('Hello')] }, { role: 'user', content: [text('Go on')] }]);
    expect(draft.text).toBe('User: Hi\n\nAssistant: Hello\n\nUser: Go on');
  });

  it('brings its images and links', () => {
    const draft = draftOf([{ role: 'user', content: [{ kind: 'image', mime: 'image/png', name: '', data: 'AAAA' }, { kind: 'link', uri: 'demo://1' }] }]);
    expect(draft).toEqual({ text: 'demo://1', attachments: [{ kind: 'bytes', base64: 'AAAA', name: 'attachment-1.png', mime: 'image/png' }] });
  });

  it('may be nonsense', () => expect(draftOf([null, { role: 'user' }, { content: 'x' }])).toEqual({ text: '', attachments: [] }));
});

describe('a resource', () => {
  it.each<[object, object, string]>([
    [{ name: 'Plan', uri: 'demo://plan' }, text('x'), 'Plan.txt text/plain'],
    [{ name: 'Plan', uri: 'demo://plan', mime: 'text/markdown' }, text('x'), 'Plan.md text/markdown'],
    [{ name: 'Plan', uri: 'file:///home/plan%20b.csv', mime: 'text/csv' }, text('x'), 'plan b.csv text/csv'],
    [{ name: 'Plan', uri: 'demo://plan', mime: 'image/svg+xml' }, text('<svg/>'), 'Plan.txt text/plain'],
    [{ name: 'a/b: c', uri: 'demo://x' }, { kind: 'file', ref: 'f1', mime: 'application/pdf', name: '' }, 'a b c.pdf application/pdf'],
  ])('%j becomes a file', (resource, item, named) => {
    const [one] = attachmentsOf([item], resource as { name: string; uri: string });
    expect(`${one!.name} ${one!.mime}`).toBe(named);
  });

  it('of several pieces becomes several files', () => {
    expect(attachmentsOf([text('a'), text('b')], { name: 'Log', uri: 'demo://log.txt' }).map((one) => one.name)).toEqual(['log 1.txt', 'log 2.txt']);
  });
});

describe('a template', () => {
  it('names its variables, and which may be left out', () => {
    expect(variablesOf('db://{table}/{+path}{?limit,offset}{&limit*}').map(({ name, required }) => `${name}${required ? '' : '?'}`)).toEqual(['table', 'path', 'limit?', 'offset?']);
  });

  // The examples of RFC 6570, section 1.2 and 3.2.
  it.each<[string, string]>([
    ['{var}', 'value'], ['{hello}', 'Hello%20World%21'], ['{+hello}', 'Hello%20World!'], ['{+path}/here', '/foo/bar/here'], ['{#path,x}', '#/foo/bar,1024'],
    ['map?{x,y}', 'map?1024,768'], ['X{.var}', 'X.value'], ['{/var,x}/here', '/value/1024/here'], ['{;x,y,empty}', ';x=1024;y=768'],
    ['{?x,y}', '?x=1024&y=768'], ['?fixed=yes{&x}', '?fixed=yes&x=1024'], ['{var:3}', 'val'], ['a{undef}b{?undef}', 'ab'],
  ])('%s is filled in', (template, uri) => {
    expect(expandTemplate(template, { var: 'value', hello: 'Hello World!', path: '/foo/bar', x: '1024', y: '768', empty: '' })).toBe(uri);
  });
});

it('finds prompts, those first that begin with what was typed', () => {
  const prompts = ['report_week', 'week', 'day'].map((name) => ({ name, connector: 'plan', from: 'Plan' }));
  expect(filterPrompts(prompts, 'week').map((p) => p.name)).toEqual(['week', 'report_week']);
});

it('finds resources by name, address and connector', () => {
  const resources = [{ connector: 'plan', uri: 'demo://a', name: 'Alpha' }, { connector: 'files', uri: 'file:///b.txt', name: 'Beta' }];
  expect([filterResources(resources, 'plan alp').length, filterResources(resources, 'b.txt')[0]!.name, filterResources(resources, '').length]).toEqual([1, 'Beta', 2]);
});
