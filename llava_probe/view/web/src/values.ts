// Which numbers a selection means: one value for each visual token, where they came from, and what full colour stands for.

import { Attention, AttentionOfPicture, Maps, OtherMap, Payload, Run } from "./payload";
import { ranges } from "./numbers";
import { Range, Selection } from "./selection";
import { spelled } from "./text";

export interface Shown {
  /** [N] */
  values: Float32Array;
  signed: boolean;
  /** What gets the full colour. */
  top: number;
  unit: string;
  /** What is shown, in words. */
  told: string;
  /** What to know of it: that something was left out, that no row was there. */
  notes: string[];
  /** Visual tokens that the method itself points out, by index. */
  marked: number[];
}

/** Maps to average, a list for each explained token, and the largest magnitude of everything of their kind. */
interface Rows {
  maps: Maps;
  of: (token: number) => number[];
  largest: number;
  notes: string[];
}

/** The positions that a selection means in a run. */
export function chosenTokens(run: Run, tokens: readonly number[]): number[] {
  return tokens.length ? [...tokens] : run.said;
}

export function textOf(run: Run, positions: readonly number[]): string {
  const texts = new Map(run.tokens.map(([position, text]) => [position, text]));
  return spelled(positions.map((position) => texts.get(position) ?? "").join("").trim() || "␣");
}

/** What a run shows under a selection; null where it has no such map, or where it is still being unpacked. */
export function show(payload: Payload, run: Run, selection: Selection, picture: number, tokens: readonly number[]): Shown | null {
  if (selection.map === "attention") return showAttention(payload, run, selection, picture, tokens);
  const map = run.maps[selection.map];
  return map && map.picture === picture ? showMap(payload, map, selection, tokens) : null;
}

function showAttention(payload: Payload, run: Run, selection: Selection, picture: number, tokens: readonly number[]): Shown | null {
  const attention = run.attention;
  const own = attention?.pictures?.[picture];
  if (!attention || !own) return null;
  const rows = attentionRows(payload, attention, own, selection.layers, selection.heads);
  if (!rows) return null;
  const chosen = indices(attention.tokens, chosenTokens(run, tokens));
  const notes = [...rows.notes];
  if (!chosen.length) {
    notes.push("no attention row of this token was kept: the mean over all that were");
    chosen.push(...attention.tokens.keys());
  }
  const values = averaged(rows.maps, chosen.flatMap(rows.of));
  return {
    values,
    signed: false,
    top: (selection.scale === "one" ? rows.largest : values.reduce((most, each) => Math.max(most, each), 0)) || 1,
    unit: "share of attention",
    told: `attention, ${named("layer", attention.layers, selection.layers)}, ${named("head", attention.heads, selection.heads)}`,
    notes,
    marked: [],
  };
}

function attentionRows(payload: Payload, attention: Attention, own: AttentionOfPicture, layers: Range | null, heads: Range | null): Rows | null {
  const count = attention.tokens.length;
  if (!layers && !heads) {
    const maps = Maps.read(payload, own.mean)!;
    return { maps, of: (token) => [token], largest: maps.largest(), notes: [] };
  }
  if (!heads) {
    const maps = Maps.read(payload, own.layers);
    if (!maps) return null;
    const wanted = places(attention.layers, layers);
    const kept = own.layers.kept.flatMap((layer, row) => (wanted.includes(layer) ? [row] : []));
    const nearest = kept.length ? kept : [nearestTo(own.layers.kept, wanted[0])];
    const notes = kept.length === wanted.length ? [] : [`here only layers ${ranges(nearest.map((row) => attention.layers[own.layers.kept[row]]))} are kept word by word`];
    return { maps, of: (token) => nearest.map((row) => row * count + token), largest: maps.largest(), notes };
  }
  const wanted = places(attention.layers, layers).flatMap((layer) => places(attention.heads, heads).map((head) => [layer, head] as const));
  const kept = own.heads.kept.flatMap(([layer, head], row) => (wanted.some(([a, b]) => a === layer && b === head) ? [row] : []));
  if (kept.length) {
    const maps = Maps.read(payload, own.heads);
    if (!maps) return null;
    const notes = kept.length === wanted.length ? [] : [`${kept.length} of these ${wanted.length} heads are kept word by word, and shown`];
    return { maps, of: (token) => kept.map((row) => row * count + token), largest: maps.largest(), notes };
  }
  const maps = Maps.read(payload, own.ofHeads);
  if (!maps) return null;
  const rows = wanted.map(([layer, head]) => layer * attention.heads.length + head);
  return { maps, of: () => rows, largest: maps.largest(), notes: ["not kept word by word: the mean over the answer"] };
}

function showMap(payload: Payload, map: OtherMap, selection: Selection, tokens: readonly number[]): Shown | null {
  const maps = Maps.read(payload, map.values);
  if (!maps) return null;
  let rows = map.rows.flatMap(([, span], row) => (span.some((position) => tokens.includes(position)) ? [row] : []));
  const notes: string[] = [];
  if (!rows.length) {
    if (tokens.length) notes.push("this method explained no such token: the mean over all that it did");
    rows = map.rows.map((_, row) => row);
  }
  const values = averaged(maps, rows);
  const marked = map.marked && payload.array<Uint8Array>(map.marked);
  return {
    values,
    signed: map.values.signed,
    top: (selection.scale === "one" ? maps.largest() : values.reduce((most, each) => Math.max(most, Math.abs(each)), 0)) || 1,
    unit: map.unit,
    told: `${map.name}, of “${spelled(rows.map((row) => map.rows[row][0]).join(" · "))}”`,
    notes,
    marked: marked ? [...Array(maps.width).keys()].filter((token) => rows.some((row) => marked[row * maps.width + token])) : [],
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
    if (rows) run.attention!.tokens.forEach((position, token) => add(rows.maps, rows.of(token), [position]));
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
  const all = payload.array<Float32Array>(own.shares)!;
  const cells = attention.layers.length * attention.heads.length;
  const found = indices(attention.tokens, chosenTokens(run, tokens));
  const chosen = found.length ? found : [...attention.tokens.keys()];
  const mean = new Float32Array(cells);
  for (const token of chosen) for (let at = 0; at < cells; at++) mean[at] += all[token * cells + at] / chosen.length;
  return mean;
}

/** Index of the largest value; of equal ones the first. */
export function peak(values: Float32Array): number {
  return values.reduce((best, value, at) => (value > values[best] ? at : best), 0);
}

/** Two maps on one scale. */
export function together(one: Shown | null, other: Shown | null): void {
  if (one && other) one.top = other.top = Math.max(one.top, other.top);
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
