/** Work that writes to the page, once for each frame however often it is asked for; while hidden, a few times a second. */

const HIDDEN_MS = 250;

export function onFrame(work: () => void): () => void {
  let asked = false;
  const run = () => {
    if (!asked) return;
    asked = false;
    work();
  };
  return () => {
    if (asked) return;
    asked = true;
    if (document.hidden) setTimeout(run, HIDDEN_MS);
    else {
      requestAnimationFrame(run);
      setTimeout(run, HIDDEN_MS); // a frame may never come, when the page is hidden just now
    }
  };
}
