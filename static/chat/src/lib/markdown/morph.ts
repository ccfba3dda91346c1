/**
 * Makes a node's children equal to those of a fragment while touching as little as possible, so that a selection, a
 * scrolled table or a focused button survives while the text around it grows.
 */
export function morph(target: Node, wanted: Node) {
  const fresh = [...wanted.childNodes];
  for (let i = 0; i < fresh.length; i += 1) {
    const want = fresh[i]!;
    const have = target.childNodes[i];
    if (!have) target.appendChild(want);
    else if (!have.isEqualNode(want)) adapt(target, have, want);
  }
  while (target.childNodes.length > fresh.length) target.lastChild!.remove();
}

function adapt(parent: Node, have: Node, want: Node) {
  if (have instanceof Text && want instanceof Text) {
    if (want.data.startsWith(have.data)) have.appendData(want.data.slice(have.data.length));
    else have.data = want.data;
  } else if (have instanceof Element && want instanceof Element && isSameKind(have, want)) {
    morph(have, want);
  } else {
    parent.replaceChild(want, have);
  }
}

function isSameKind(have: Element, want: Element): boolean {
  if (have.tagName !== want.tagName || have.attributes.length !== want.attributes.length) return false;
  return [...want.attributes].every((a) => have.getAttribute(a.name) === a.value);
}
