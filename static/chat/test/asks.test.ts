import { describe, expect, it } from 'vitest';
import { optionLabel, orderOptions, urlParts } from '../src/lib/asks';

describe('options', () => {
  it('stand with the refusals last', () => {
    expect(orderOptions('approval', ['deny', 'allow_once', 'allow_always'])).toEqual(['allow_once', 'allow_always', 'deny']);
  });

  it('have words', () => {
    expect(['allow_once', 'allow_run', 'allow_always', 'deny', 'something_else'].map((o) => optionLabel('approval', o))).toEqual([
      'Allow once', 'Allow for this run', 'Always allow', 'Deny', 'Something else',
    ]);
  });
});

describe('an address', () => {
  const shown = (url: unknown) => {
    const parts = urlParts(url);
    return parts && [`${parts.before}[${parts.host}]${parts.after}`, parts.warning !== ''];
  };
  it.each<[unknown, [string, boolean] | null]>([
    ['https://example.org/a?b=c#d', ['https://[example.org]/a?b=c#d', false]],
    ['https://example.org:8443', ['https://[example.org:8443]/', false]],
    ['http://127.0.0.1:9/x', ['http://[127.0.0.1:9]/x', false]],
    ['http://example.org/', ['http://[example.org]/', true]],
    ['https://bank.example@evil.example/', ['https://bank.example@[evil.example]/', true]],
    ['https://аpple.example/', ['https://[xn--pple-43d.example]/', true]],
    ['javascript:alert(1)', null],
    ['file:///etc/hosts', null],
    ['no address', null],
    [undefined, null],
  ])('%j has its host told apart', (url, parts) => expect(shown(url)).toEqual(parts));
});
