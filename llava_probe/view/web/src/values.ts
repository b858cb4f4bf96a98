// Which numbers a selection means: one value for each visual token, where they came from, and what full colour stands for.

import { Attention, AttentionOfPicture, Maps, Payload, Run } from "./payload";
import { ranges } from "./numbers";
import { Range, Selection } from "./selection";
import { spelled } from "./text";

export interface Shown {
  /** [N] */
  values: Float32Array;
  signed: boolean;
  /** What gets the full colour, and of what that is the largest value. */
  top: number;
  scale: string;
  unit: string;
  /** Whose rows these are, in the tokens' own words. */
  of: string;
  /** What is shown, in words. */
  told: string;
  /** What to know of it: that something was left out, that no row was there. */
  notes: string[];
  /** Visual tokens that the method itself points out, by index. */
  marked: number[];
  /** The visual tokens of the chosen tile, by index. */
  seen: readonly number[];
}

/** What is shown; why there is nothing; or null while it is being unpacked. */
export type Seen = Shown | string | null;

export const isShown = (seen: Seen): seen is Shown => seen !== null && typeof seen !== "string";

/** Maps to average, a list for each explained token, and the largest magnitude of everything of their kind. */
interface Rows {
  maps: Maps;
  /** None: the same rows whichever token is meant. */
  of: ((token: number) => number[]) | null;
  whole: number[];
  largest: number;
  among: string;
  notes: string[];
}

/** The positions that a selection means in a run. */
export function chosenTokens(run: Run, tokens: readonly number[]): number[] {
  return tokens.length ? [...tokens] : run.said;
}

/** The text of some tokens: what stands together together, the rest apart. */
export function textOf(run: Run, positions: readonly number[]): string {
  const texts = new Map(run.tokens.map(([position, text]) => [position, text]));
  const parts: string[] = [];
  positions.forEach((position, at) => {
    const text = texts.get(position) ?? "";
    if (at && position === positions[at - 1] + 1) parts[parts.length - 1] += text;
    else parts.push(text);
  });
  return parts.map((part) => spelled(part.trim() || part)).join(" · ");
}

/** What a run shows under a selection. */
export function show(payload: Payload, run: Run, selection: Selection, picture: number, tokens: readonly number[]): Seen {
  const layout = run.pictures[picture]?.layout;
  if (!layout) return run.attention?.refused ?? "the places of its visual tokens are not known";
  const tiles = payload.array<Int32Array>(layout.tiles)!;
  const own = [...tiles.keys()].filter((token) => tiles[token] === selection.tile);
  const seen = own.length ? own : [...tiles.keys()];
  const view = own.length ? [selection.tile === 0 ? "the whole picture's own tokens" : `tile ${selection.tile}`] : [];
  const found = selection.map === "attention" ? ofAttention(payload, run, selection, picture, tokens) : ofMap(payload, run, selection, picture, tokens);
  if (!isShown(found)) return found;
  const largest = seen.reduce((most, token) => Math.max(most, Math.abs(found.values[token])), 0);
  const one = selection.scale === "one";
  return { ...found, seen, top: (one ? found.top : largest) || 1, scale: one ? found.scale : "its own scale", told: [found.told, ...view].join(", ") };
}

function ofAttention(payload: Payload, run: Run, selection: Selection, picture: number, tokens: readonly number[]): Seen {
  const attention = run.attention;
  if (!attention) return "no attention rows were kept";
  if (attention.refused) return attention.refused;
  const own = attention.pictures[picture];
  if (!own) return "this picture has no visual tokens";
  const rows = attentionRows(payload, attention, own, selection.layers, selection.heads);
  if (rows === null || typeof rows === "string") return rows;
  const positions = chosenTokens(run, tokens);
  const chosen = indices(attention.tokens, positions);
  const notes = [...rows.notes];
  let of = tokens.length ? textOf(run, positions.filter((position) => attention.tokens.includes(position))) : "the whole answer";
  if (!chosen.length) {
    notes.push("no attention row of this token was kept: the mean over all that were");
    of = "every kept token";
    chosen.push(...attention.tokens.keys());
  } else if (chosen.length < positions.length) notes.push(`of ${positions.length} tokens ${chosen.length} have a kept row`);
  return {
    values: averaged(rows.maps, rows.of ? chosen.flatMap(rows.of) : rows.whole),
    signed: false,
    top: rows.largest,
    scale: `one scale for all ${rows.among}`,
    unit: "share of attention",
    of: rows.of ? of : "the whole answer",
    told: `attention, ${named("layer", attention.layers, selection.layers)}, ${named("head", attention.heads, selection.heads)}`,
    notes,
    marked: [],
    seen: [],
  };
}

function attentionRows(payload: Payload, attention: Attention, own: AttentionOfPicture, layers: Range | null, heads: Range | null): Rows | string | null {
  const count = attention.tokens.length;
  const [rows, columns] = [places(attention.layers, layers), places(attention.heads, heads)];
  if (!rows.length || !columns.length) return `this run kept layers ${ranges(attention.layers)} and heads ${ranges(attention.heads)} alone`;
  const ofLayers = Maps.read(payload, own.layers);
  if (!layers && !heads) {
    const maps = Maps.read(payload, own.mean)!;
    return { maps, of: (token) => [token], whole: [], largest: Math.max(maps.largest(), ofLayers?.largest() ?? 0), among: "tokens and layers", notes: [] };
  }
  if (!heads) {
    if (!ofLayers) return null;
    const kept = own.layers.kept.flatMap((layer, row) => (rows.includes(layer) ? [row] : []));
    const nearest = kept.length ? kept : [nearestTo(own.layers.kept, rows[0])];
    const there = ranges(nearest.map((row) => attention.layers[own.layers.kept[row]]));
    const notes = kept.length === rows.length ? [] : [`shown: layer ${there}, of which this page has the words one by one`];
    return { maps: ofLayers, of: (token) => nearest.map((row) => row * count + token), whole: [], largest: ofLayers.largest(), among: "tokens and layers", notes };
  }
  const wanted = rows.flatMap((layer) => columns.map((head) => [layer, head] as const));
  const kept = own.heads.kept.flatMap(([layer, head], row) => (wanted.some(([a, b]) => a === layer && b === head) ? [row] : []));
  const among = "tokens, layers and heads";
  if (kept.length) {
    const maps = Maps.read(payload, own.heads);
    if (!maps) return null;
    const notes = kept.length === wanted.length ? [] : [`${kept.length} of these ${wanted.length} heads are kept word by word, and shown`];
    return { maps, of: (token) => kept.map((row) => row * count + token), whole: [], largest: maps.largest(), among, notes };
  }
  if (!own.ofHeads) return "this page had no room for these heads; the trace has them";
  const maps = Maps.read(payload, own.ofHeads);
  if (!maps) return null;
  const whole = wanted.map(([layer, head]) => layer * attention.heads.length + head);
  return { maps, of: null, whole, largest: maps.largest(), among: "layers and heads", notes: ["not kept word by word: the mean over the answer"] };
}

function ofMap(payload: Payload, run: Run, selection: Selection, picture: number, tokens: readonly number[]): Seen {
  const map = run.maps[selection.map as number];
  if (!map || map.picture !== picture) return "there is no such map of this picture";
  const maps = Maps.read(payload, map.values);
  if (!maps) return null;
  let rows = map.rows.flatMap(([, span], row) => (span.some((position) => tokens.includes(position)) ? [row] : []));
  const notes = map.note ? [map.note] : [];
  if (!rows.length) {
    if (tokens.length) notes.push("this method explained no such token: the mean over all that it did");
    rows = map.rows.map((_, row) => row);
  }
  const marked = map.marked && payload.array<Uint8Array>(map.marked);
  const labels = [...new Set(rows.map((row) => spelled(map.rows[row][0])))].join(" · ");
  return {
    values: averaged(maps, rows),
    signed: map.values.signed,
    top: maps.largest(),
    scale: "one scale for all rows of this map",
    unit: map.unit,
    of: labels.length > 80 ? `${labels.slice(0, 79)}…` : labels,
    told: `${map.name}${rows.length > 1 ? `, mean of ${rows.length} rows` : ""}`,
    notes,
    marked: marked ? [...Array(maps.width).keys()].filter((token) => rows.some((row) => marked[row * maps.width + token])) : [],
    seen: [],
  };
}

/** How much each explained token looked at some visual tokens, by position: the words that light up under the pointer. */
export function lookedAt(payload: Payload, run: Run, selection: Selection, picture: number, visual: readonly number[]): Map<number, number> {
  const found = new Map<number, number>();
  const add = (maps: Maps, rows: readonly number[], positions: readonly number[]): void => {
    let sum = 0;
    for (const row of rows) for (const token of visual) sum += maps.value(row, token);
    for (const position of positions) found.set(position, sum / rows.length);
  };
  if (selection.map === "attention") {
    const own = run.attention?.pictures?.[picture];
    const rows = own && attentionRows(payload, run.attention!, own, selection.layers, selection.heads);
    if (rows && typeof rows !== "string" && rows.of) run.attention!.tokens.forEach((position, token) => add(rows.maps, rows.of!(token), [position]));
  } else {
    const map = run.maps[selection.map];
    const maps = map && map.picture === picture ? Maps.read(payload, map.values) : null;
    if (maps) map.rows.forEach(([, span], row) => add(maps, [row], span));
  }
  return found;
}

/** [L, H] the share of each head's attention on a picture, averaged over tokens. */
export function shares(payload: Payload, run: Run, picture: number, tokens: readonly number[]): Float32Array | null {
  const attention = run.attention;
  const own = attention?.pictures?.[picture];
  if (!attention || !own) return null;
  const all = Maps.read(payload, own.shares)!;
  const found = indices(attention.tokens, chosenTokens(run, tokens));
  const chosen = found.length ? found : [...attention.tokens.keys()];
  const mean = new Float32Array(attention.layers.length * attention.heads.length);
  attention.layers.forEach((_, layer) => {
    const row = averaged(all, chosen.map((token) => token * attention.layers.length + layer));
    mean.set(row, layer * attention.heads.length);
  });
  return mean;
}

/** The visual token with the largest value, of equal ones the first; null where all are alike. */
export function peak({ values, seen }: Pick<Shown, "values" | "seen">): number | null {
  const best = seen.reduce((most, token) => (values[token] > values[most] ? token : most), seen[0]);
  return seen.some((token) => values[token] !== values[best]) ? best : null;
}

/** Two maps on one scale; one that is 0 everywhere has none of its own. */
export function together(one: Seen, other: Seen): void {
  if (!isShown(one) || !isShown(other)) return;
  const tops = [one, other].filter(({ values, seen }) => seen.some((token) => values[token] !== 0)).map(({ top }) => top);
  one.top = other.top = tops.length ? Math.max(...tops) : 1;
  one.scale = other.scale = "one scale for both";
}

/** The map of one run that corresponds to another's, by its method and picture; attention where there is none. */
export function sameMap(run: Run, other: Run, map: Selection["map"], picture: number): Selection["map"] {
  if (map === "attention") return map;
  const name = run.maps[map]?.name;
  const found = other.maps.findIndex((each) => each.name === name && each.picture === picture);
  return found >= 0 ? found : "attention";
}

function averaged(maps: Maps, rows: readonly number[]): Float32Array {
  const sum = new Float32Array(maps.width);
  for (const row of rows) maps.addTo(sum, row);
  return sum.map((value) => value / rows.length);
}

function indices(tokens: readonly number[], positions: readonly number[]): number[] {
  return positions.map((position) => tokens.indexOf(position)).filter((index) => index >= 0);
}

/** Where numbers of a range stand among those that are there; all of them without one. */
export function places(numbers: readonly number[], range: Range | null): number[] {
  return numbers.flatMap((each, at) => (!range || (each >= range[0] && each <= range[1]) ? [at] : []));
}

function nearestTo(kept: readonly number[], wanted: number): number {
  return kept.reduce((best, each, row) => (Math.abs(each - wanted) < Math.abs(kept[best] - wanted) ? row : best), 0);
}

function named(what: string, numbers: readonly number[], range: Range | null): string {
  const chosen = places(numbers, range).map((place) => numbers[place]);
  if (chosen.length === 1) return `${what} ${chosen[0]}`;
  return range ? `mean of ${what}s ${ranges(chosen)}` : `mean of ${numbers.length} ${what}s`;
}
