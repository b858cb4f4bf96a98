// The words: prompt and answer, each token a choice; doubtful ones stand out; under the pointer's place they light up. In a
// comparison the other answer's words stand under them, and what stands out is how much surer or less sure it was of each.

import { useMemo, useRef } from "preact/hooks";
import { Choose } from "./App";
import { fullChange, shade } from "./comparing";
import { number, percent, signed } from "./numbers";
import { Comparison, Payload, Run } from "./payload";
import { Selection } from "./selection";
import { shown as visible, spelled } from "./text";
import { isShown, Seen } from "./values";
import { whereIs } from "./Photograph";

interface Props {
  payload: Payload;
  run: Run;
  tokens: readonly number[];
  choose?: Choose;
  /** How much each token looked at the place under the pointer, by position. */
  lit: Map<number, number> | null;
  title?: string;
  against?: Against | null;
}

/** The run that stands under another in a comparison. */
export interface Against {
  comparison: Comparison;
  run: Run;
  tokens: readonly number[];
  lit: Map<number, number> | null;
}

export function Tokens({ payload, run, tokens, choose, lit, title, against }: Props) {
  const list = useRef<HTMLDivElement>(null);
  /** Where a choice by keys began, and where it has come to. */
  const span = useRef<readonly [number, number] | null>(null);
  const probability = useMemo(() => run.steps && payload.array<Float32Array>(run.steps.probability), [payload, run]);
  const kept = useMemo(() => new Set([...(run.attention?.tokens ?? []), ...run.maps.flatMap((map) => map.rows.flatMap(([, span]) => span))]), [run]);
  const light = (lit: Map<number, number>, position: number): string =>
    (Math.abs(lit.get(position) ?? 0) / Math.max(1e-12, ...[...lit.values()].map(Math.abs))).toFixed(3);
  const changes = against?.comparison.change ? payload.array<Float32Array>(against.comparison.change) : null;
  const full = changes ? fullChange(changes) : 1;
  const generated = run.tokens.filter(([, , role]) => role === "generated");
  const choices = run.tokens.filter(([position, , role]) => role === "generated" || kept.has(position)).map(([position]) => position);

  const pick = (position: number, add: boolean): void => {
    if (!choose) return;
    span.current = [position, position];
    const others = tokens.filter((each) => each !== position);
    choose({ tokens: !add ? [position] : others.length < tokens.length ? others : [...tokens, position].sort((a, b) => a - b) });
  };
  const pressed = (event: KeyboardEvent): void => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -1e9, End: 1e9 }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" || event.key === "a") choose?.({ tokens: [] });
    else if (step === undefined) return;
    else {
      const start = choices.indexOf(generated[0]?.[0] ?? choices[0]);
      const from = tokens.length ? choices.indexOf(span.current?.[1] ?? tokens[tokens.length - 1]) : step > 0 ? start - 1 : choices.length;
      const next = choices[Math.min(choices.length - 1, Math.max(0, from + step))];
      const anchor = event.shiftKey && tokens.length ? (span.current?.[0] ?? tokens[0]) : next;
      span.current = [anchor, next];
      const [low, high] = [anchor, next].map((position) => choices.indexOf(position)).sort((a, b) => a - b);
      choose?.({ tokens: choices.slice(low, high + 1) });
      requestAnimationFrame(() => list.current?.querySelector<HTMLElement>(`[data-position="${next}"]`)?.focus());
    }
    event.preventDefault();
  };

  const word = ([position, text, role]: Run["tokens"][number], below = "") => {
    const step = role === "generated" ? position - run.promptLength : -1;
    const sure = step >= 0 && probability ? probability[step] : null;
    const style = lit ? { "--light": light(lit, position) } : sure !== null ? { "--doubt": (1 - sure).toFixed(3) } : undefined;
    const chosen = tokens.includes(position);
    const classes = ["token", role, lit ? "lit" : "", sure !== null && sure < 0.5 ? "doubtful" : "", chosen ? "chosen" : ""].join(" ");
    const said = `${spelled(text)}${sure !== null ? `, ${percent(sure, 1)}` : ""}${below}`;
    const written = below ? spelled(text) : withEnds(text);
    if (!choose || !(role === "generated" || kept.has(position))) return <span class={classes} style={style} title={said}>{written}</span>;
    const reachable = position === (tokens.find((each) => choices.includes(each)) ?? generated[0]?.[0] ?? choices[0]);
    return (
      <button type="button" role="option" class={classes} style={style} title={said} aria-label={said} aria-selected={chosen} tabIndex={reachable ? 0 : -1} data-position={position} onClick={(event) => pick(position, event.shiftKey)}>
        {written}
      </button>
    );
  };
  const pair = ({ comparison, run: other, tokens: there, lit }: Against) => {
    const [above, under] = [run, other].map((each) => new Map(each.tokens.map((token) => [token[0], token])));
    const sure = comparison.probability && payload.array<Float32Array>(comparison.probability);
    return comparison.answer.map(([one, two], row) => {
      const { way, share } = shade(changes ? changes[row] : NaN, full);
      const text = two === null ? null : spelled(under.get(two)![1]);
      const told = text === null ? "no word below" : `below ${text}${sure ? `, ${percent(sure[2 * row + 1], 1)}` : ""}`;
      const change = way ? `; log-probability ${signed(changes![row])}` : "";
      const classes = ["token generated", lit ? "lit" : "", two !== null && there.includes(two) ? "chosen" : ""].join(" ");
      return (
        <>
          <span class={`pair ${way}`} style={{ "--change": share.toFixed(3) }} role="presentation">
            {one === null ? <span class="token none">–</span> : word(above.get(one)!, `; ${told}${change}`)}
            {two === null ? <span class="token none">–</span> : <span class={classes} style={lit ? { "--light": light(lit, two) } : undefined} title={`${told}${change}`}>{text}</span>}
          </span>
          {one !== null && above.get(one)![1].includes("\n") && <br />}
        </>
      );
    });
  };
  return (
    <section class="tokens" aria-label="prompt and answer">
      {title && <h2 dir="auto">{title}</h2>}
      <div ref={list} role={choose ? "listbox" : undefined} aria-multiselectable={choose ? true : undefined} aria-label={choose ? "tokens: arrow keys choose, shift adds, escape takes the whole answer" : undefined} onKeyDown={choose && pressed}>
        <div class="prompt" dir="auto" role="presentation">{run.tokens.filter(([, , role]) => role !== "generated").map((token) => word(token))}</div>
        <div class="answer" dir="auto" role="presentation">{against ? pair(against) : generated.map((token) => word(token))}</div>
      </div>
      {choose && (
        <p class="under-tokens">
          <button type="button" aria-pressed={tokens.length === 0} onClick={() => choose({ tokens: [] })}>
            Whole answer
          </button>
          <span class="hint">{changes ? `blue: surer below, amber: less sure, full colour at ${number(full)} nats · ` : probability ? "amber: doubtful · " : run.promptLength ? "no logits were kept · " : ""}click or ← →, shift adds</span>
        </p>
      )}
    </section>
  );
}

/** A token's text in a line of text: line ends are seen, and end the line. */
function withEnds(text: string) {
  const parts = text.split("\n");
  const shown = parts.map((part) => visible(part));
  if (text.trim() === "") return spelled(text);
  return shown.flatMap((part, at) => (at ? ["⏎", <br />, part] : [part]));
}

/** The chosen token's numbers, what else it nearly was, and where it looked; told to screen readers as it changes. */
export function Details({ payload, run, selection, shown: found, against }: { payload: Payload; run: Run; selection: Selection; shown: Seen; against?: Against | null }) {
  const shown = isShown(found) ? found : null;
  const position = selection.tokens[selection.tokens.length - 1];
  const step = position === undefined ? -1 : position - run.promptLength;
  const picture = run.pictures[selection.picture];
  const boxes = picture?.layout && payload.array<Float32Array>(picture.layout.boxes);
  const steps = step >= 0 ? run.steps : null;
  const read = (name: "probability" | "entropy" | "rank" | "sampled"): number | null => (steps?.[name] ? payload.array(steps[name]!)![step] : null);
  const [sure, entropy, rank, sampled] = [read("probability"), read("entropy"), read("rank"), read("sampled")];
  const largest = shown && boxes && boxes.length ? whereIs(shown, picture, boxes) : null;
  const alike = shown && boxes && boxes.length && largest === null;
  const total = shown && !shown.signed && shown.unit === "share of attention" ? shown.values.reduce((sum, each) => sum + each, 0) : null;
  return (
    <section class="details" aria-live="polite">
      <p>
        {sure !== null && (
          <>
            <b>{percent(sure, 2)}</b> probable, entropy {number(entropy!)} nats{rank ? `, ${rank} likelier` : ""}
            {sampled !== null && Math.abs(sampled - sure) > 0.001 ? `, drawn with ${percent(sampled, 2)}` : ""}.{" "}
          </>
        )}
        {largest && <>Largest at {largest}{total !== null ? `; ${percent(total, 1)} on the picture` : ""}.</>}
        {alike && <>The same everywhere on the picture{total !== null ? `, ${percent(total, 1)} together` : ""}.</>}
      </p>
      {against && position !== undefined && <p>{changeOf(payload, against, position)}</p>}
      {steps && (
        <ol class="alternatives" aria-label="what it nearly said">
          {steps.alternatives[step].map(([text, probability]) => (
            <li style={{ "--share": probability }}>
              <span dir="auto">{spelled(text)}</span> <span>{percent(probability, probability < 0.01 ? 2 : 1)}</span>
            </li>
          ))}
        </ol>
      )}
    </section>
  );
}

/** What became of one generated token, in words. */
function changeOf(payload: Payload, { comparison, run }: Against, position: number): string {
  const row = comparison.answer.findIndex(([one]) => one === position);
  const there = row < 0 ? null : comparison.answer[row][1];
  if (there === null) return row < 0 ? "" : "The second answer has no word for it.";
  const [sure, change] = [comparison.probability, comparison.change].map((ref) => ref && payload.array<Float32Array>(ref));
  const text = spelled(run.tokens.find(([each]) => each === there)![1]);
  return `In the second answer “${text.trim()}”${sure && change ? `, ${percent(sure[2 * row + 1], 2)} probable: ${signed(change[row])} nats of log-probability` : ""}.`;
}
