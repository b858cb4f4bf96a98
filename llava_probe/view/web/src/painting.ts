// A map under its photograph, as `maps/overlay.py` paints it: each pixel has the colour of the finest visual token that
// covers it, the photograph lies over it in grey like ink, what the model never saw is hatched.

import { Numbers } from "./payload";

const LUMINANCE = [0.299, 0.587, 0.114];

/** Where the visual tokens of a picture lie, at the size in which it is shown. */
export interface Ground {
  width: number;
  height: number;
  /** [height * width] index of the token that each pixel belongs to, -1 where none does. */
  owner: Int32Array;
  grids: GridOfTokens[];
  /** [N] which of `grids` a token belongs to, -1 for none. */
  gridOf: Int32Array;
}

interface GridOfTokens {
  tokens: Numbers;
  rows: number;
  columns: number;
  across: Between;
  down: Between;
}

/** For each pixel along a side: the cell before it, and how far it is on the way to the next one's centre. */
interface Between {
  before: Int32Array;
  share: Float32Array;
}

export interface Places {
  boxes: Float32Array;
  tiles: Int32Array;
  grids: { tokens: Numbers; rows: number; columns: number }[];
}

export function laidOut(places: Places, size: readonly [number, number], shown: readonly [number, number], tile: number | null): Ground {
  const { boxes, tiles } = places;
  const [width, height] = shown;
  const [columns, rows] = [samples(size[0], width), samples(size[1], height)];
  const count = boxes.length / 4;
  const order = [...Array(count).keys()].filter((token) => tile === null || tiles[token] === tile);
  const area = (token: number): number =>
    (boxes[4 * token + 2] - boxes[4 * token]) * (boxes[4 * token + 3] - boxes[4 * token + 1]);
  order.sort((one, other) => area(other) - area(one));
  const owner = new Int32Array(width * height).fill(-1);
  for (const token of order) {
    const [x0, x1] = owned(boxes[4 * token], boxes[4 * token + 2]);
    const [y0, y1] = owned(boxes[4 * token + 1], boxes[4 * token + 3]);
    const [left, right] = [from(columns, x0), from(columns, x1)];
    for (let y = from(rows, y0), end = from(rows, y1); y < end; y++) owner.fill(token, y * width + left, y * width + right);
  }
  const gridOf = new Int32Array(count).fill(-1);
  const grids = places.grids.map((grid, number) => {
    for (const token of grid.tokens) gridOf[token] = number;
    const centre = (place: number, axis: number): number => (boxes[4 * grid.tokens[place] + axis] + boxes[4 * grid.tokens[place] + axis + 2]) / 2;
    const across = between(columns, [...Array(grid.columns).keys()].map((column) => centre(column, 0)));
    const down = between(rows, [...Array(grid.rows).keys()].map((row) => centre(row * grid.columns, 1)));
    return { ...grid, across, down };
  });
  return { width, height, owner, grids, gridOf };
}

/** [height * width] a value for each pixel, NaN where the model saw nothing. */
export function rastered(ground: Ground, values: Float32Array, smooth: boolean): Float32Array {
  const { width, height, owner, gridOf, grids } = ground;
  const pixels = new Float32Array(width * height);
  for (let y = 0, at = 0; y < height; y++)
    for (let x = 0; x < width; x++, at++) {
      const token = owner[at];
      if (token < 0) pixels[at] = NaN;
      else if (!smooth || gridOf[token] < 0) pixels[at] = values[token];
      else pixels[at] = blended(grids[gridOf[token]], values, x, y);
    }
  return pixels;
}

function blended({ tokens, rows, columns, across, down }: GridOfTokens, values: Float32Array, x: number, y: number): number {
  const [column, row] = [across.before[x], down.before[y]];
  const [right, below] = [Math.min(column + 1, columns - 1), Math.min(row + 1, rows - 1)];
  const value = (r: number, c: number): number => values[tokens[r * columns + c]];
  const [fx, fy] = [across.share[x], down.share[y]];
  return (1 - fy) * ((1 - fx) * value(row, column) + fx * value(row, right)) + fy * ((1 - fx) * value(below, column) + fx * value(below, right));
}

/** How a map is coloured. */
export interface Colouring {
  /** [256 * 3] */
  table: Uint8Array;
  signed: boolean;
  top: number;
  ink: number;
  /** 0: the photograph alone; 1: all of the map. */
  opacity: number;
}

/** RGBA of `picture` (RGBA) over `pixels`, written into `into`. */
export function paint(picture: Uint8ClampedArray, pixels: Float32Array, width: number, colouring: Colouring, into: Uint8ClampedArray): void {
  const { opacity } = colouring;
  const stripe = Math.max(2, Math.round(Math.max(width, pixels.length / width) / 80));
  for (let at = 0, p = 0; at < pixels.length; at++, p += 4) {
    const light = lightOf(picture, p, colouring.ink);
    const value = pixels[at];
    into[p + 3] = 255;
    if (Number.isNaN(value)) {
      const stripes = (Math.floor(at / width) + (at % width)) % (2 * stripe) < stripe ? 95 : 150;
      into[p] = into[p + 1] = into[p + 2] = light * stripes;
      continue;
    }
    const index = 3 * level(value, colouring);
    for (let c = 0; c < 3; c++) into[p + c] = opacity * light * colouring.table[index + c] + (1 - opacity) * picture[p + c];
  }
}

/** The place of a value in its colour table, 0 to 255. */
export function level(value: number, { signed, top }: Pick<Colouring, "signed" | "top">): number {
  const strength = Math.min(1, Math.max(signed ? -1 : 0, value / top));
  return Math.round(signed ? (strength + 1) * 127.5 : strength * 255);
}

/** The share of the light that a pixel of the photograph leaves. */
export function lightOf(picture: Uint8ClampedArray, p: number, ink: number): number {
  const [red, green, blue] = [picture[p], picture[p + 1], picture[p + 2]];
  const grey = LUMINANCE[0] * red + LUMINANCE[1] * green + LUMINANCE[2] * blue;
  return 1 - ink * (1 - (grey + Math.min(red, green, blue)) / 510);
}

/** The pixels of one side that a box owns, as `geometry.py` has it: those whose centre lies in it. */
function owned(low: number, high: number): [number, number] {
  const [first, last] = [Math.ceil(low - 0.5), Math.ceil(high - 0.5)];
  const under = Math.floor((low + high) / 2);
  return last > first ? [first, last] : [under, under + 1];
}

/** The pixel of the original under the centre of each shown one. */
function samples(length: number, count: number): Int32Array {
  return Int32Array.from({ length: count }, (_, at) => Math.floor(((at + 0.5) * length) / count));
}

/** The first place in `sorted` that holds at least `value`. */
function from(sorted: Int32Array, value: number): number {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

function between(pixels: Int32Array, centres: readonly number[]): Between {
  const [before, share] = [new Int32Array(pixels.length), new Float32Array(pixels.length)];
  pixels.forEach((pixel, at) => {
    const place = pixel + 0.5;
    let cell = 0;
    while (cell < centres.length - 2 && centres[cell + 1] <= place) cell++;
    const [one, next] = [centres[cell], centres[Math.min(cell + 1, centres.length - 1)]];
    before[at] = cell;
    share[at] = next > one ? Math.min(1, Math.max(0, (place - one) / (next - one))) : 0;
  });
  return { before, share };
}
