// What `lp.compare` found of the two runs that stand beside each other: in words, by layer, by head.

import { Choose } from "./App";
import { pathOf, placed } from "./comparing";
import { number, percent } from "./numbers";
import { Comparison, Curves, Moved, Payload, Run } from "./payload";
import { Selection } from "./selection";
import { shown } from "./text";

interface Props {
  payload: Payload;
  run: Run;
  comparison: Comparison;
  selection: Selection;
  choose: Choose;
}

export function Changes({ payload, run, comparison, selection, choose }: Props) {
  const curves = comparison.layers.map((each) => ({ ...each, lines: linesOf(payload, each) }));
  return (
    <section class="changes" aria-label="what changed">
      <h2>What changed</h2>
      <ul class="found">
        {comparison.notes.map((note) => (
          <li dir="auto">{shown(note)}</li>
        ))}
      </ul>
      <div class="panels">
        {curves.map((each) => (
          <Chart curves={each} lines={each.lines} />
        ))}
        {comparison.heads.map((list) => list.heads.length > 0 && <Heads list={list} run={run} selection={selection} choose={choose} />)}
      </div>
      {curves.length > 0 && (
        <details class="everything">
          <summary>Numbers by layer</summary>
          {curves.map((each) => (
            <div class="scroll" tabIndex={0} role="region" aria-label={`${each.title} by layer`}>
              <table>
                <caption>{each.title}</caption>
                <thead>
                  <tr>
                    <th scope="col">hidden state</th>
                    {each.names.map((name) => (
                      <th scope="col" class="number">{`${shown(name)}, ${each.unit}`}</th>
                    ))}
                  </tr>
                </thead>
                <tbody>
                  {each.layers.map((layer, at) => (
                    <tr>
                      <th scope="row">{layer}</th>
                      {each.lines.map((line) => (
                        <td class="number">{number(line[at])}</td>
                      ))}
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          ))}
        </details>
      )}
    </section>
  );
}

function linesOf(payload: Payload, { names, layers, values }: Curves): Float32Array[] {
  const all = payload.array<Float32Array>(values)!;
  return names.map((_, line) => all.subarray(line * layers.length, (line + 1) * layers.length));
}

const [WIDTH, HEIGHT, LEFT, BELOW, ABOVE] = [240, 90, 44, 32, 8];

/** Values by layer, in lines that colour and dashes tell apart. */
function Chart({ curves: { title, unit, names, layers }, lines }: { curves: Curves; lines: readonly Float32Array[] }) {
  const top = lines.reduce((most, line) => line.reduce((high, each) => (Number.isFinite(each) ? Math.max(high, each) : high), most), 0) || 1;
  const [first, last] = [layers[0], layers[layers.length - 1]];
  const ends = lines.map((line, at) => `${names[at]} ${number(line[line.length - 1])} at the last`);
  return (
    <figure class="chart">
      <figcaption>
        <b>{title}</b> {unit}
      </figcaption>
      <svg viewBox={`${-LEFT} ${-ABOVE} ${WIDTH + LEFT + 10} ${HEIGHT + ABOVE + BELOW}`} role="img" aria-label={`${title} by hidden state ${first} to ${last}, ${unit}, up to ${number(top)}: ${ends.map(shown).join(", ")}`}>
        <path class="axis" d={`M0 0V${HEIGHT}H${WIDTH}`} />
        {[0, 0.5, 1].map((share) => (
          <text x={-5} y={HEIGHT * (1 - share) + 4} text-anchor="end">
            {number(share * top)}
          </text>
        ))}
        {[...new Set([first, Math.round((first + last) / 2), last])].map((layer) => (
          <text x={last > first ? ((layer - first) / (last - first)) * WIDTH : WIDTH / 2} y={HEIGHT + 14} text-anchor="middle">
            {layer}
          </text>
        ))}
        <text x={WIDTH / 2} y={HEIGHT + 28} text-anchor="middle">
          hidden state
        </text>
        {lines.map((line, at) => {
          const places = placed(layers, line, top, WIDTH, HEIGHT);
          return (
            <g class={`line line-${at}`}>
              <path d={pathOf(places)} />
              {places.map(
                (place, layer) =>
                  place && (
                    <circle cx={place[0]} cy={place[1]} r="2.4">
                      <title>{`${shown(names[at])}, hidden state ${layers[layer]}: ${number(line[layer])}`}</title>
                    </circle>
                  ),
              )}
            </g>
          );
        })}
      </svg>
      <p class="key">
        {names.map((name, at) => (
          <span>
            <svg viewBox="0 0 22 8" aria-hidden="true" class={`line line-${at}`}>
              <path d="M0 4H22" />
            </svg>{" "}
            {shown(name)}
          </span>
        ))}
      </p>
    </figure>
  );
}

/** Heads that moved most: a click shows what one looked at in both runs. */
function Heads({ list, run, selection, choose }: { list: Moved; run: Run; selection: Selection; choose: Choose }) {
  const chosen = (layer: number, head: number): boolean =>
    [selection.layers, selection.heads].every((span, at) => span?.[0] === [layer, head][at] && span[1] === [layer, head][at]);
  const shares = list.heads.some(([, , , one]) => one !== null);
  return (
    <figure class="moved">
      <figcaption>
        <b>Heads that {list.title}</b>
      </figcaption>
      <table>
        <thead>
          <tr>
            <th scope="col">head</th>
            <th scope="col" class="number">moved</th>
            {shares && <th scope="col" class="number">share on the picture</th>}
          </tr>
        </thead>
        <tbody>
          {list.heads.map(([layer, head, moved, one, other]) => {
            const name = `layer ${layer} head ${head}`;
            const there = run.attention?.layers?.includes(layer) && run.attention.heads.includes(head);
            const pressed = chosen(layer, head);
            const pick = (): void => choose(pressed ? { layers: null, heads: null } : { map: "attention", layers: [layer, layer], heads: [head, head] });
            return (
              <tr>
                <td>
                  {there ? (
                    <button type="button" aria-pressed={pressed} onClick={pick}>
                      {name}
                    </button>
                  ) : (
                    name
                  )}
                </td>
                <td class="number">{number(moved)}</td>
                {shares && <td class="number">{one !== null && other !== null ? `${percent(one)} → ${percent(other)}` : "–"}</td>}
              </tr>
            );
          })}
        </tbody>
      </table>
    </figure>
  );
}
