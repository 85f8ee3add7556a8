/**
 * Divides the shells that are kept waiting among families, by how often each was used of late. A
 * family with a small share has none: its shells would be started and ended for others in turn.
 *
 * @param recent - families of the last uses, the latest one last
 * @param total - shells in all
 */
export function shellShares(recent: readonly string[], total: number): Map<string, number> {
  const shares = new Map<string, number>();
  const uses = new Map<string, number>();
  for (const family of recent) uses.set(family, (uses.get(family) ?? 0) + 1);
  let left = total;
  for (const family of recent.toReversed()) {
    if (shares.has(family)) continue;
    const share = Math.min(left, Math.round((total * uses.get(family)!) / recent.length));
    shares.set(family, share);
    left -= share;
  }
  return shares;
}
