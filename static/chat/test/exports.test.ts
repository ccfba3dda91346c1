import { beforeEach, describe, expect, it, vi } from 'vitest';

const request = vi.hoisted(() => vi.fn());
vi.mock('../src/lib/hub.svelte', () => ({ hub: { client: { request }, isPluginOn: () => true } }));

async function fresh() {
  vi.resetModules();
  return (await import('../src/lib/exports.svelte')).exports;
}

describe('formats of exports', () => {
  beforeEach(() => request.mockReset());

  it('are asked for once, and stand in the order in which people look for them', async () => {
    request.mockResolvedValue({ formats: ['json', 'csv', 'html', 'md', 'pdf'].map((format) => ({ format, mime: 'x/y' })) });
    const exports = await fresh();
    expect(exports.items('c1', false).map((item) => item.label)).toEqual(['Export as JSON']);
    await exports.load();
    await exports.load();
    expect(request.mock.calls).toEqual([['export.formats']]);
    expect(exports.items('c1', false).map((item) => item.label)).toEqual(['PDF', 'HTML', 'Markdown', 'JSON', 'csv'].map((name) => `Export as ${name}`));
  });

  it('are asked for again where the hub did not answer', async () => {
    request.mockRejectedValueOnce(new Error('gone')).mockResolvedValueOnce({ formats: [{ format: 'md', mime: 'text/markdown' }] });
    const exports = await fresh();
    await exports.load();
    expect(exports.formats).toEqual(['json']);
    await exports.load();
    expect(exports.formats).toEqual(['md']);
  });
});
