// What a comparison says of words and layers, before anything is drawn.

import { Comparison } from "./payload";

/** A factor of two: a smaller change never gets the full colour, so that noise stays pale. */
const TWOFOLD = Math.LN2;

/** The positions of the second run's tokens that stand for those of the first. */
export function links({ prompt, answer }: Pick<Comparison, "prompt" | "answer">): Map<number, number> {
  return new Map([...prompt, ...answer].filter((pair): pair is [number, number] => pair[0] !== null && pair[1] !== null));
}

/** The change of log-probability, in nats, that gets the full colour: the largest there is. */
export function fullChange(changes: Iterable<number>): number {
  return [...changes].filter(Number.isFinite).reduce((most, each) => Math.max(most, Math.abs(each)), TWOFOLD);
}

/** Which way a change is coloured and how strongly, 0 to 1. */
export function shade(change: number, full: number): { way: "surer" | "doubted" | ""; share: number } {
  if (Number.isNaN(change) || change === 0) return { way: "", share: 0 };
  return { way: change > 0 ? "surer" : "doubted", share: Math.min(1, Math.abs(change) / full) };
}

/** Places of a curve in a box, its left end at 0, the largest value at its top; none where a value is no number. */
export function placed(layers: readonly number[], values: Iterable<number>, top: number, width: number, height: number): ([number, number] | null)[] {
  const [first, last] = [layers[0], layers[layers.length - 1]];
  return [...values].map((value, at) =>
    Number.isFinite(value) ? [last > first ? ((layers[at] - first) / (last - first)) * width : width / 2, height - (value / top) * height] : null,
  );
}

/** The same as the `d` of a path: a new piece behind each gap. */
export function pathOf(places: readonly ([number, number] | null)[]): string {
  return places.map((place, at) => place && `${at && places[at - 1] ? "L" : "M"}${place.map((side) => side.toFixed(1)).join(" ")}`).filter(Boolean).join("");
}
