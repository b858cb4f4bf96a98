import { expect, test } from "vitest";
import { fromLink, NOTHING, Selection, toLink } from "../src/selection";

test("a link holds the whole selection", () => {
  const chosen: Selection = {
    run: 1,
    beside: 0,
    picture: 2,
    tokens: [3, 5],
    map: 1,
    layers: [12, 12],
    heads: [0, 3],
    scale: "one",
    colours: "viridis",
    opacity: 0.5,
    smooth: true,
    tile: 0,
    sinks: false,
    region: [10, 20, 30, 40],
  };
  expect(fromLink(toLink(chosen))).toEqual(chosen);
  expect(toLink({ ...NOTHING, tokens: [3], layers: [12, 12] })).toBe("token=3&layer=12");
  expect(toLink(NOTHING)).toBe("");
});

test("what a link tells wrongly is as if it told nothing", () => {
  for (const link of ["#token=x&layer=-&head=2-1&scale=?&opacity=7&region=1,2&run=-1&beside=1e9", "#%%%", "#layer=<script>"])
    expect(fromLink(link)).toEqual(NOTHING);
});
