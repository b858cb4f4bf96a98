import { expect, test } from "vitest";
import { fullChange, links, pathOf, placed, shade } from "../src/comparing";
import { signed } from "../src/numbers";
import { fromLink, NOTHING, toLink } from "../src/selection";

test("words are linked as they were compared, those of one answer alone to nothing", () => {
  const found = links({ prompt: [[1, 1]], answer: [[5, 7], [6, null], [null, 8]] });
  expect([...found]).toEqual([[1, 1], [5, 7]]);
});

test("the full colour is the largest change, and no less than a factor of two", () => {
  expect(fullChange([0.1, -3, NaN, Infinity])).toBe(3);
  expect(fullChange([1e-6, NaN])).toBe(Math.log(2));
  expect(fullChange([])).toBe(Math.log(2));
});

test("a change is coloured by its sign, one that is none not at all", () => {
  expect(shade(-1.5, 3)).toEqual({ way: "doubted", share: 0.5 });
  expect(shade(3, 3)).toEqual({ way: "surer", share: 1 });
  expect(shade(-Infinity, 3)).toEqual({ way: "doubted", share: 1 });
  expect(shade(NaN, 3)).toEqual({ way: "", share: 0 });
  expect(shade(0, 3)).toEqual({ way: "", share: 0 });
});

test("a curve goes from left to right by the layers' own numbers, with a gap where there is no number", () => {
  const places = placed([0, 2, 8], [0, 1, 2], 2, 80, 10);
  expect(places).toEqual([[0, 10], [20, 5], [80, 0]]);
  expect(pathOf(places)).toBe("M0.0 10.0L20.0 5.0L80.0 0.0");
  expect(pathOf(placed([0, 1, 2, 3], [1, NaN, 1, 1], 1, 30, 10))).toBe("M0.0 0.0M20.0 0.0L30.0 0.0");
  expect(placed([4], [1], 1, 30, 10)).toEqual([[15, 0]]);
});

test("a change is told with its sign", () => {
  expect([0.5, -0.5, 0, NaN].map(signed)).toEqual(["+0.5", "-0.5", "0", "–"]);
});

test("a page that opens with two runs has a link to one of them alone", () => {
  const opening = { ...NOTHING, beside: 1 };
  expect(toLink(opening, opening)).toBe("");
  expect(fromLink("", opening)).toEqual(opening);
  expect(toLink(NOTHING, opening)).toBe("beside=none");
  expect(fromLink("#beside=none", opening)).toEqual(NOTHING);
});
