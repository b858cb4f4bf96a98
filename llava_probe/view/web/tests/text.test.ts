import { expect, test } from "vitest";
import { cell, inXml, shown, spelled } from "../src/text";

test("what a browser would obey or hide is written out", () => {
  expect(shown("a\u0000b\u202Egnp.exe")).toBe("a⟨0000⟩b⟨202e⟩gnp.exe");
  expect(shown("\ufffd \u200b")).toBe("\ufffd ⟨200b⟩");
  expect(shown("one\ntwo\tthree")).toBe("one⏎two⇥three");
  expect(shown("\ud83d\ude00 \ud83d x")).toBe("😀 ⟨d83d⟩ x");
  expect(shown("<script>")).toBe("<script>"); // text nodes take care of that
});

test("a token of spaces is seen", () => {
  expect(spelled("  ")).toBe("␣␣");
  expect(spelled("")).toBe("∅");
  expect(spelled(" red")).toBe(" red");
});

test("a cell of a table is one cell and no formula", () => {
  expect(cell('a "b", c')).toBe('"a ""b"", c"');
  expect(cell("=HYPERLINK(1)")).toBe("\"'=HYPERLINK(1)\"");
  expect(cell(0.5)).toBe("0.5");
});

test("an SVG file holds text as text", () => {
  expect(inXml('<a href="x">&')).toBe("&lt;a href=&quot;x&quot;&gt;&amp;");
});
