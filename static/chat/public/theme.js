// Runs before the first paint, so that a chosen theme never flashes in the other one; `preferences.svelte.ts` writes it.
try {
  const { theme } = JSON.parse(localStorage.getItem('sag.chat.preferences') || '{}');
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
} catch {
  // No storage: the system's theme it is.
}
