// Layers by heads, each cell its share of attention on the picture, or how much more of it another run has: a click takes
// one, a drag a range, the corner all.

import { useMemo, useRef, useState } from "preact/hooks";
import { Choose } from "./App";
import { percent, signed } from "./numbers";
import { Payload, Run } from "./payload";
import { Range, Selection } from "./selection";
import { colourTable } from "./Photograph";
import { places, shares } from "./values";

interface Props {
  payload: Payload;
  run: Run;
  selection: Selection;
  choose: Choose;
  /** The run that this one is compared with, and its words that stand for the chosen ones. */
  against?: { run: Run; tokens: readonly number[] } | null;
}

type Cell = readonly [layer: number, head: number];

export function HeadGrid({ payload, run, selection, choose, against }: Props) {
  const { layers, heads } = run.attention!;
  const table = useRef<HTMLTableElement>(null);
  const pressed = useRef<Cell | null>(null);
  const [wanted, setFocus] = useState<Cell>([0, 0]);
  const focus: Cell = [Math.min(wanted[0], layers.length - 1), Math.min(wanted[1], heads.length - 1)];
  /** Where a range by keys began. */
  const anchor = useRef<Cell | null>(null);
  const own = useMemo(() => shares(payload, run, selection.picture, selection.tokens)!, [payload, run, selection.picture, selection.tokens]);
  const other = useMemo(() => against && sharesThere(payload, run, against, selection), [payload, run, against, selection.picture]);
  const share = other ? other.map((each, at) => each - own[at]) : own;
  const most = share.reduce((largest, each) => Math.max(largest, Math.abs(each)), 1e-9);
  const colours = colourTable(payload, other ? null : "viridis", other !== null && other !== undefined);
  const within = [new Set(places(layers, selection.layers)), new Set(places(heads, selection.heads))];
  const chosen = ([layer, head]: Cell): boolean => (selection.layers !== null || selection.heads !== null) && within[0].has(layer) && within[1].has(head);

  const take = (one: Cell, other: Cell): void => {
    const span = (numbers: readonly number[], a: number, b: number): Range => [numbers[Math.min(a, b)], numbers[Math.max(a, b)]];
    choose({ layers: span(layers, one[0], other[0]), heads: span(heads, one[1], other[1]) });
  };
  const cellAt = (event: Event): Cell | null => {
    const cell = (event.target as Element).closest<HTMLElement>("[data-cell]");
    return cell && (cell.dataset.cell!.split(",").map(Number) as unknown as Cell);
  };
  const keyed = (event: KeyboardEvent): void => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (event.key === "Escape") choose({ layers: null, heads: null });
    else if (!(event.target as Element).matches("[data-cell]")) return;
    else if (event.key === "Enter" || event.key === " ") take((anchor.current = focus), focus);
    else if (!move) return;
    else {
      const next: Cell = [Math.min(layers.length - 1, Math.max(0, focus[0] + move[0])), Math.min(heads.length - 1, Math.max(0, focus[1] + move[1]))];
      setFocus(next);
      if (!event.shiftKey) anchor.current = next;
      take((anchor.current ??= focus), next);
      requestAnimationFrame(() => table.current?.querySelector<HTMLElement>(`[data-cell="${next}"]`)?.focus());
    }
    event.preventDefault();
  };

  const colour = (value: number): { background: string; color: string } => {
    const at = 3 * Math.round(255 * (other ? (1 + value / most) / 2 : value / most));
    const rgb = [...colours.subarray(at, at + 3)];
    return { background: `rgb(${rgb.join(" ")})`, color: luminance(rgb) > 0.18 ? "#000000" : "#ffffff" };
  };
  const numbered = layers.length * heads.length <= 64;
  return (
    <section class="heads">
      <h2>
        Layers × heads{" "}
        <span class="hint">
          {other ? "change of the share on the picture in %" : "share on the picture"}, up to {percent(most)}; click, drag, arrow keys
        </span>
      </h2>
      <div class="scroll">
        <table
          ref={table}
          role="grid"
          class={layers.length > 16 || heads.length > 16 ? "many" : ""}
          style={{ "--columns": heads.length }}
          aria-label={`${other ? "change of the " : ""}share of each head's attention on the picture`}
          aria-multiselectable="true"
          onKeyDown={keyed}
          onPointerDown={(event) => {
            pressed.current = cellAt(event);
            if (pressed.current) setFocus((anchor.current = pressed.current)), take(pressed.current, pressed.current);
          }}
          onPointerOver={(event) => {
            const cell = event.buttons ? cellAt(event) : null;
            if (cell && pressed.current) take(pressed.current, cell);
          }}
          onPointerUp={() => (pressed.current = null)}
        >
          <thead>
            <tr>
              <td>
                <button type="button" aria-pressed={!selection.layers && !selection.heads} onClick={() => choose({ layers: null, heads: null })}>
                  mean
                </button>
              </td>
              {heads.map((head) => (
                <th scope="col">
                  <button type="button" aria-label={`head ${head}, all layers`} onClick={() => choose({ layers: null, heads: [head, head] })}>
                    {head}
                  </button>
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {layers.map((layer, row) => (
              <tr>
                <th scope="row">
                  <button type="button" aria-label={`layer ${layer}, all heads`} onClick={() => choose({ layers: [layer, layer], heads: null })}>
                    {layer}
                  </button>
                </th>
                {heads.map((head, column) => {
                  const value = share[row * heads.length + column];
                  const name = `layer ${layer}, head ${head}: ${other ? `${signed(100 * value)} %` : percent(value, numbered ? 0 : 1)}`;
                  const cell: Cell = [row, column];
                  return (
                    <td role="gridcell" data-cell={`${cell}`} aria-label={name} title={name} aria-selected={chosen(cell)} tabIndex={row === focus[0] && column === focus[1] ? 0 : -1} style={colour(value)}>
                      {numbered ? percent(value).replace(" %", "") : ""}
                    </td>
                  );
                })}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {run.attention!.reduced && <p class="note">{run.attention!.reduced}</p>}
    </section>
  );
}

/** [L, H] the shares of the other run, where its layers and heads are the same. */
function sharesThere(payload: Payload, run: Run, against: NonNullable<Props["against"]>, selection: Selection): Float32Array | null {
  const there = against.run.attention;
  if (!there?.layers || `${there.layers};${there.heads}` !== `${run.attention!.layers};${run.attention!.heads}`) return null;
  if (selection.tokens.length && !against.tokens.length) return null;
  return shares(payload, against.run, Math.min(selection.picture, against.run.pictures.length - 1), against.tokens);
}

/** Relative luminance of an sRGB colour, as WCAG 2 has it: black is legible above 0.18, white below. */
function luminance(rgb: readonly number[]): number {
  const [red, green, blue] = rgb.map((level) => (level <= 10 ? level / 3294.6 : ((level / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}
