// The one place where a stranger's text becomes something to show. A model's answer, a file's name or a question may hold
// anything: what a browser would obey or hide is written out, and the result is only ever put where it is text.

const NAMES: Record<string, string> = { "\n": "⏎", "\t": "⇥", "\r": "␍" };

// Controls, marks that turn the direction of the text around them, what joins or hides letters, lone halves of a letter.
const HIDDEN =
  /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffc\ufffe\uffff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/** `text` with each character that acts or hides written out, as U+202E is. */
export function shown(text: string): string {
  return text.replace(HIDDEN, (letter) => NAMES[letter] ?? `⟨${letter.charCodeAt(0).toString(16).padStart(4, "0")}⟩`);
}

/** A token's text: one that is only spaces is seen too. */
export function spelled(text: string): string {
  return text.trim() === "" ? shown(text).replaceAll(" ", "␣") || "∅" : shown(text);
}

/** `text` as one cell of a CSV file: never a formula of a spreadsheet, never two cells. */
export function cell(value: string | number): string {
  if (typeof value === "number") return String(value);
  const plain = shown(value);
  const safe = /^\s*[=+\-@]/.test(plain) ? `'${plain}` : plain;
  return /[",\n']/.test(safe) || safe !== safe.trim() ? `"${safe.replaceAll('"', '""')}"` : safe;
}

/** `text` inside an SVG file. */
export function inXml(text: string): string {
  return shown(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");
}
