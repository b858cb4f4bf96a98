// What is seen, taken away: as PNG, SVG or CSV, copied or saved, and as a link to this very view.

import { useState } from "preact/hooks";
import { Panel, save, tablesOf, toCsv, toPng, toSvg } from "./exporting";
import { linesOf } from "./Everything";
import { Payload, Run } from "./payload";
import { Selection, toLink } from "./selection";

interface Props {
  panels: readonly (Panel | null)[];
  run: Run;
  selection: Selection;
  payload: Payload;
  /** What a link need not tell; null where the page has no address of its own. */
  link: Selection | null;
}

export function Saving({ panels, run, selection, payload, link }: Props) {
  const [told, setTold] = useState("");
  const there = panels.filter((panel): panel is Panel => panel !== null);
  const name = `llava-probe-${selection.map === "attention" ? "attention" : run.maps[selection.map].name}`;
  const copied = (what: Promise<unknown>): void => {
    what.then(
      () => setTold("copied"),
      () => setTold("this browser does not let a page copy; save it instead"),
    );
  };
  const copyPicture = (): void => {
    if (typeof ClipboardItem === "undefined" || !navigator.clipboard?.write) return copied(Promise.reject());
    copied(navigator.clipboard.write([new ClipboardItem({ "image/png": toPng(there) })]));
  };
  return (
    <section class="saving" aria-label="take away what is seen">
      {there.length > 0 && (
        <>
          <button type="button" onClick={() => void toPng(there).then((blob) => save(blob, `${name}.png`))}>
            Save PNG
          </button>
          <button type="button" onClick={() => there.forEach((panel, at) => save(toSvg(panel), `${name}${at ? `-${at}` : ""}.svg`))}>
            Save SVG
          </button>
          <button type="button" onClick={() => tablesOf(there).forEach((table, at) => save(toCsv(table), `${name}${at ? `-${at}` : ""}.csv`))}>
            Save CSV of the map
          </button>
          <button type="button" onClick={copyPicture}>
            Copy PNG
          </button>
        </>
      )}
      <button type="button" onClick={() => save(toCsv(linesOf(payload, run, selection)), "llava-probe-tokens.csv")}>
        Save CSV of the words
      </button>
      {link && (
        <button type="button" onClick={() => copied(navigator.clipboard?.writeText(`${location.href.split("#")[0]}#${toLink(selection, link)}`) ?? Promise.reject())}>
          Copy link
        </button>
      )}
      <span role="status">{told}</span>
    </section>
  );
}
