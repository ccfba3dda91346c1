import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig } from 'vitest/config';

/** The hub that `npm run dev` talks to. */
const HUB = 'http://127.0.0.1:4100';

export default defineConfig({
  plugins: [svelte()],
  base: './',
  build: {
    outDir: '../../sag/frontend/chat',
    emptyOutDir: true,
    target: ['chrome123', 'edge123', 'firefox121', 'safari17.5'],
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
