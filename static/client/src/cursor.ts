/**
 * The client's rule for offsets (protocol section 3), as one pure function.
 *
 * It owns no state: `topic` keeps the cursor and acts on the verdict.
 */

export type Verdict = 'drop' | 'apply' | 'gap';

/**
 * Judges a frame against the cursor.
 *
 * @param cur The offset up to which the topic's state is folded.
 * @param o The frame's offset, in a merged frame the last of its range.
 * @param p The offset that the frame follows; `o - 1` where the frame leaves it out.
 * @returns `drop` for what is known already, `apply` for what follows, `gap` for what can only be had by subscribing
 *   again from `cur`.
 */
export function judge(cur: number, o: number, p: number = o - 1): Verdict {
  if (o <= cur) return 'drop';
  return p === cur ? 'apply' : 'gap';
}
