import { expect, test } from "vitest";
import { linked } from "../src/linking";

test("the same answer is linked word by word", () => {
  expect(linked(["a", "b", "c"], ["a", "b", "c"])).toEqual([0, 1, 2]);
});

test("what stands between two common words stands for what stands there", () => {
  expect(linked(["a", "red", "star", "."], ["a", "blue", "star", "."])).toEqual([0, 1, 2, 3]);
  expect(linked(["the", "sign"], ["the", "stop", "sign"])).toEqual([0, 2]);
});

test("an answer that ends leaves the rest alone", () => {
  expect(linked(["a", "b"], [])).toEqual([null, null]);
  expect(linked(["x", "y", "z"], ["p"])).toEqual([0, null, null]);
});
