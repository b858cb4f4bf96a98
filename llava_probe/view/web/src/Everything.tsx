// Everything as tables, for who cannot see the picture or wants the numbers; and with what it was made.

import { number, percent } from "./numbers";
import { Payload, Run } from "./payload";
import { Selection } from "./selection";
import { shown, spelled } from "./text";
import { isShown, show } from "./values";
import { whereIs } from "./Photograph";
import { useMemo, useState } from "preact/hooks";

const HEADS = ["position", "token", "role", "probability", "entropy", "alternatives", "largest at", "on the picture"] as const;

/** A line for each token, as it is shown and as it is saved. */
export function linesOf(payload: Payload, run: Run, selection: Selection): (string | number)[][] {
  const [probability, entropy] = run.steps ? [payload.array(run.steps.probability)!, payload.array(run.steps.entropy)!] : [null, null];
  const picture = run.pictures[selection.picture];
  const boxes = picture?.layout && payload.array<Float32Array>(picture.layout.boxes);
  const lines = run.tokens.map(([position, text, role]): (string | number)[] => {
    const step = role === "generated" ? position - run.promptLength : -1;
    const looked = role === "generated" || run.attention?.tokens?.includes(position);
    const found = looked && boxes?.length ? show(payload, run, { ...selection, scale: "each" }, selection.picture, [position]) : null;
    const map = isShown(found) && !found.notes.length ? found : null;
    const total = map?.values.reduce((sum, each) => sum + each, 0);
    return [
      position,
      spelled(text),
      role,
      probability && step >= 0 ? probability[step] : "",
      entropy && step >= 0 ? entropy[step] : "",
      step >= 0 && run.steps ? run.steps.alternatives[step].slice(0, 4).map(([other, share]) => `${spelled(other)} ${percent(share, 1)}`).join(", ") : "",
      (map && whereIs(map, picture, boxes!)) ?? "",
      map && map.unit === "share of attention" ? total! : "",
    ];
  });
  return [[...HEADS], ...lines];
}

export function Everything({ payload, run, selection }: { payload: Payload; run: Run; selection: Selection }) {
  const [open, setOpen] = useState(false);
  const { map, layers, heads, picture, tile } = selection;
  const lines = useMemo(() => (open ? linesOf(payload, run, selection).slice(1) : []), [open, payload, run, map, layers, heads, picture, tile]);
  return (
    <details class="everything" onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>Table of everything</summary>
      <div class="scroll" tabIndex={0} role="region" aria-label="table of everything">
        <table>
          <thead>
            <tr>
              {HEADS.map((head) => (
                <th scope="col">{head}</th>
              ))}
            </tr>
          </thead>
          <tbody>
            {lines.map((line) => (
              <tr>
                {line.map((value, column) => (
                  <td dir="auto" class={typeof value === "number" ? "number" : ""}>
                    {typeof value !== "number" ? value : column === 0 ? value : column === 3 || column === 7 ? percent(value, 1) : number(value)}
                  </td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </details>
  );
}

export function Facts({ run }: { run: Run }) {
  return (
    <>
      {run.alternatives.length > 0 && (
        <section class="sequences">
          <h2>
            Other answers <span class="hint">with the score of each sequence{run.score !== null ? `; that of the shown one is ${number(run.score)}` : ""}</span>
          </h2>
          <ol>
            {run.alternatives.map(({ answer, score }) => (
              <li dir="auto">
                {shown(answer)} {score !== null && <span class="hint">{number(score)}</span>}
              </li>
            ))}
          </ol>
        </section>
      )}
      {run.made.length > 0 && (
        <details class="made">
          <summary>Made with</summary>
          <dl>
            {run.made.map(([name, value]) => (
              <>
                <dt>{shown(name)}</dt>
                <dd>{shown(value)}</dd>
              </>
            ))}
          </dl>
        </details>
      )}
    </>
  );
}
