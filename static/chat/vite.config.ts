import { svelte } from '@sveltejs/vite-plugin-svelte';
import type { Plugin } from 'vite';
import { defineConfig } from 'vitest/config';

/** The hub that `npm run dev` talks to. */
const HUB = 'http://127.0.0.1:4100';

/** Of KaTeX's fonts every browser that this page supports takes the first form. */
const woff2Only: Plugin = {
  name: 'woff2-only',
  enforce: 'pre',
  transform: (code, id) =>
    /katex\.min\.css/.test(id) ? code.replace(/,url\([^)]+\.(?:woff|ttf)\) format\("(?:woff|truetype)"\)/g, '') : undefined,
};

/** Diagrams that bring a graph library each, and are rarely drawn; `diagrams.svelte.ts` shows their source. */
const noHugeDiagrams: Plugin = {
  name: 'no-huge-diagrams',
  enforce: 'pre',
  resolveId: (source, importer) =>
    importer?.includes('mermaid') && /(?:mindmap-definition|architectureDiagram|swimlanes|swimlanesDiagram|cose-bilkent)-\w+\.mjs$/.test(source)
      ? '\0left-out'
      : undefined,
  load: (id) => (id === '\0left-out' ? 'export default null; export const diagram = null;' : undefined),
};

export default defineConfig({
  plugins: [svelte(), woff2Only, noHugeDiagrams],
  base: './',
  build: {
    outDir: '../../sag/frontend/chat',
    emptyOutDir: true,
    target: ['chrome123', 'edge123', 'firefox121', 'safari17.5'],
    // A font as a data: URL is none to the page's content security policy.
    assetsInlineLimit: (file) => (file.endsWith('.woff2') ? false : undefined),
    modulePreload: { polyfill: false },
    reportCompressedSize: true,
  },
  server: {
    proxy: {
      '/ws': { target: HUB, ws: true },
      ...Object.fromEntries(['/rpc', '/api', '/events', '/schema', '/health'].map((path) => [path, HUB])),
    },
  },
  test: { environment: 'happy-dom', include: ['test/**/*.test.ts'] },
});
