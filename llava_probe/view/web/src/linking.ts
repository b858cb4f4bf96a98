// Which token of one answer stands for which of another: those of the longest common subsequence, then those of the same
// step between two of these.

/** For each token of `one`, the index in `other` that stands for it, or null where the other answer has no more tokens. */
export function linked(one: readonly string[], other: readonly string[]): (number | null)[] {
  const [n, m] = [one.length, other.length];
  const longest = Array.from({ length: n + 1 }, () => new Uint16Array(m + 1));
  for (let i = n - 1; i >= 0; i--)
    for (let j = m - 1; j >= 0; j--)
      longest[i][j] = one[i] === other[j] ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
  const links: (number | null)[] = new Array(n).fill(null);
  for (let i = 0, j = 0; i < n && j < m; )
    if (one[i] === other[j]) links[i++] = j++;
    else if (longest[i + 1][j] >= longest[i][j + 1]) i++;
    else j++;
  for (let i = 0, before = -1; i < n; i++) {
    const own = links[i];
    if (own !== null) {
      before = own;
      continue;
    }
    const next = links.slice(i).find((each) => each !== null) ?? m;
    if (before + 1 < next) links[i] = ++before;
  }
  return links;
}
