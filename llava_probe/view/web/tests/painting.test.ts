import { expect, test } from "vitest";
import { laidOut, paint, rastered } from "../src/painting";

const places = (boxes: number[], tiles: number[], grids: { tokens: Int32Array; rows: number; columns: number }[] = []) => ({
  boxes: Float32Array.from(boxes),
  tiles: Int32Array.from(tiles),
  grids,
});

test("a pixel belongs to the finest token whose box holds its centre", () => {
  const ground = laidOut(places([0, 0, 4, 4, 0, 0, 2, 4], [0, 1]), [4, 4], [4, 4], null);
  expect([...ground.owner.slice(0, 4)]).toEqual([1, 1, 0, 0]);
  expect([...laidOut(places([0, 0, 4, 4, 0, 0, 2, 4], [0, 1]), [4, 4], [4, 4], 0).owner.slice(0, 4)]).toEqual([0, 0, 0, 0]);
});

test("what no box holds was not seen", () => {
  const ground = laidOut(places([1, 0, 3, 4], [0]), [4, 4], [4, 4], null);
  expect([...rastered(ground, Float32Array.of(5), false).slice(0, 4)]).toEqual([NaN, 5, 5, NaN]);
});

test("a smooth map has each token's value at its centre and the mean between two", () => {
  const two = places([0, 0, 3, 3, 3, 0, 6, 3], [0, 0], [{ tokens: Int32Array.of(0, 1), rows: 1, columns: 2 }]);
  const ground = laidOut(two, [6, 3], [6, 3], null);
  const row = [...rastered(ground, Float32Array.of(0, 3), true).slice(0, 6)];
  expect(row).toEqual([0, 0, 1, 2, 3, 3]);
});

test("on white paper a value has the colour of the bar, and the photograph only darkens", () => {
  const table = Uint8Array.from({ length: 768 }, (_, at) => at % 256);
  const colouring = { table, signed: false, top: 1, ink: 0.6, opacity: 1 };
  const into = new Uint8ClampedArray(8);
  paint(Uint8ClampedArray.of(255, 255, 255, 255, 0, 0, 0, 255), Float32Array.of(1, 1), 2, colouring, into);
  expect([...into.slice(0, 3)]).toEqual([...table.slice(765)]);
  expect([...into.slice(4, 7)]).toEqual([...table.slice(765)].map((each) => Math.round(0.4 * each)));
});
