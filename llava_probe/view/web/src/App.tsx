// The whole component: what is chosen is one `Selection`, everything else follows from it and the payload.

import { useCallback, useEffect, useMemo, useState } from "preact/hooks";
import { Changes } from "./Changes";
import { links as linksOf } from "./comparing";
import { Controls } from "./Controls";
import { Everything, Facts } from "./Everything";
import { HeadGrid } from "./HeadGrid";
import { linked } from "./linking";
import { Asked, Options, Update } from "./main";
import { Comparison, Payload, Run } from "./payload";
import { Photograph, tokensIn, useDifference, usePanel } from "./Photograph";
import { Saving } from "./Saving";
import { Box, fromLink, NOTHING, Selection, toLink } from "./selection";
import { shown } from "./text";
import { Details, Tokens } from "./Tokens";
import { isShown, lookedAt, sameMap, Seen, show, together } from "./values";

export type Choose = (change: Partial<Selection>) => void;

/** A visual token under the pointer, of a picture of a run. */
export interface Pointed {
  run: number;
  picture: number;
  tokens: readonly number[];
}

interface Props {
  payload: Payload;
  host: HTMLElement;
  options: Options;
  change: Update;
}

export function App({ payload, host, options, change }: Props) {
  const opening = useMemo(() => opened(payload), [payload]);
  const [selection, setSelection] = useState<Selection>(() => (options.link ? fromLink(location.hash, opening) : opening));
  const [pointed, setPointed] = useState<Pointed | null>(null);
  const [complete, setComplete] = useState(payload.complete);
  const chosen = useMemo(() => within(payload, selection), [payload, selection]);
  const choose = useCallback<Choose>((change) => setSelection((before) => ({ ...before, ...change })), []);

  const [waiting, setWaiting] = useState(false);
  const act = useMemo(
    () =>
      options.act &&
      ((asked: Asked): void => {
        setWaiting(true);
        options.act!(asked);
      }),
    [options.act],
  );

  useEffect(() => {
    setWaiting(false);
    if (change.select) choose(change.select);
  }, [change]);
  useEffect(() => void payload.whole.then(() => setComplete(true)), [payload]);
  useEffect(() => {
    if (!options.link) return;
    const read = (): void => setSelection(fromLink(location.hash, opening));
    addEventListener("hashchange", read);
    return () => removeEventListener("hashchange", read);
  }, []);
  useEffect(() => {
    const link = toLink(chosen, opening);
    if (options.link && link !== location.hash.slice(1)) history.replaceState(null, "", link ? `#${link}` : location.pathname + location.search);
    const { tokens, layers, heads, map, picture } = chosen;
    tell(host, "llava-probe-state", { tokens, layers, heads, map, picture });
  }, [chosen]);
  useEffect(() => {
    tell(host, "llava-probe-region", chosen.region && { trace: chosen.run, image: chosen.picture, box: chosen.region });
  }, [chosen.region, chosen.run, chosen.picture]);

  const run = payload.header.runs[chosen.run];
  const beside = chosen.beside === null ? null : payload.header.runs[chosen.beside];
  const comparison = payload.header.comparisons.find(({ a, b }) => a === chosen.run && b === chosen.beside) ?? null;
  const besideTokens = useMemo(() => (beside ? counterparts(run, beside, comparison, chosen.tokens) : []), [run, beside, comparison, chosen.tokens]);
  const [first, second] = useMemo((): [Seen, Seen] => {
    const one = show(payload, run, chosen, chosen.picture, chosen.tokens);
    if (!beside) return [one, null];
    const picture = Math.min(chosen.picture, beside.pictures.length - 1);
    const map = sameMap(run, beside, chosen.map, picture);
    const lost = chosen.tokens.length - besideTokens.length;
    if (chosen.tokens.length && !besideTokens.length) return [one, "no word there stands for the chosen one"];
    if (map === "attention" && chosen.map !== "attention") return [one, "that run has no map of this method and picture"];
    const two = show(payload, beside, { ...chosen, map }, picture, besideTokens);
    if (isShown(two) && lost > 0) two.notes.push(`${lost} of the chosen words have no counterpart there`);
    together(one, two);
    return [one, two];
  }, [payload, complete, run, beside, chosen, besideTokens]);
  const panel = usePanel(payload, run, chosen, first);
  const other = usePanel(payload, beside, chosen, second);
  const difference = useDifference(panel, other, payload, chosen, comparison !== null);
  const place = useMemo(() => pointed ?? marked(payload, chosen), [pointed, payload, chosen]);
  const lit = useMemo(() => {
    const found = place && lookedAt(payload, payload.header.runs[place.run], chosen, place.picture, place.tokens);
    return found?.size ? found : null;
  }, [place, chosen, payload, complete]);

  const against = useMemo(
    () => beside && comparison && { comparison, run: beside, tokens: besideTokens, lit: place?.run === chosen.beside ? lit : null },
    [beside, comparison, besideTokens, place, lit],
  );
  const under = beside?.interventions.map((each) => `under ${each}`) ?? [];
  const others = beside ? [...(["question", "title"] as const).flatMap((name) => (beside[name] === run[name] ? [] : beside[name])), ...under] : [];
  const pictures = { payload, selection: chosen, choose, point: setPointed, act, waiting };
  return (
    <div class="page">
      <header>
        <h1 dir="auto">{shown(run.question) || "Maps"}</h1>
        <p class="by">
          {shown(run.title)}
          {run.scored && run.promptLength > 0 ? " · this answer was given, not generated" : ""}
        </p>
        {run.notes.map((note) => (
          <p class="note">{shown(note)}</p>
        ))}
      </header>
      <Controls payload={payload} run={run} selection={chosen} choose={choose} offers={options.offers ?? []} act={act} waiting={waiting} />
      <p class="message" role="status">{waiting ? "the model is at work …" : shown(change.message ?? "")}</p>
      <div class="columns">
        <div class="pictures">
          <Photograph {...pictures} number={chosen.run} run={run} shown={first} panel={panel} />
          {beside && <Photograph {...pictures} number={chosen.beside!} run={beside} shown={second} panel={other} />}
          {difference && <Photograph.Drawing panel={difference} label={`difference: ${shown(beside!.answer)} less ${shown(run.answer)}`} />}
          {beside && !difference && <p class="note">No difference is drawn: it takes two maps, of pictures of one size.</p>}
        </div>
        <div class="words">
          <Tokens payload={payload} run={run} tokens={chosen.tokens} choose={choose} lit={place?.run === chosen.run ? lit : null} title={against ? `below: ${shown(others.join(", ")) || "the second answer"}` : undefined} against={against} />
          {beside && !against && <Tokens payload={payload} run={beside} tokens={besideTokens} lit={place?.run === chosen.beside ? lit : null} title={shown([beside.question, ...under].join(", "))} />}
          <Details payload={payload} run={run} selection={chosen} shown={first} against={against} />
          {chosen.map === "attention" && run.attention?.pictures?.[chosen.picture] && <HeadGrid payload={payload} run={run} selection={chosen} choose={choose} against={against} />}
        </div>
        {comparison && <Changes payload={payload} run={run} comparison={comparison} selection={chosen} choose={choose} />}
      </div>
      <Saving panels={[panel, other, difference]} run={run} selection={chosen} payload={payload} link={options.link ? opening : null} />
      <Everything payload={payload} run={run} selection={chosen} />
      <Facts run={run} />
    </div>
  );
}

/** What is seen at first: two runs that were compared stand beside each other. */
function opened(payload: Payload): Selection {
  return { ...NOTHING, beside: payload.header.comparisons.find(({ a }) => a === 0)?.b ?? null };
}

/** The visual tokens of a marked region, whose words stay lit. */
function marked(payload: Payload, { run, picture, region }: Selection): Pointed | null {
  const layout = payload.header.runs[run].pictures[picture]?.layout;
  const tokens = layout && region ? tokensIn(payload.array<Float32Array>(layout.boxes)!, region) : [];
  return tokens.length ? { run, picture, tokens } : null;
}

/** A selection as far as a payload has what it names. */
function within(payload: Payload, selection: Selection): Selection {
  const runs = payload.header.runs;
  const number = selection.run < runs.length ? selection.run : 0;
  const run = runs[number];
  const positions = new Set(run.tokens.map(([position]) => position));
  const map = selection.map === "attention" || selection.map < run.maps.length ? selection.map : "attention";
  const there = (numbers: readonly number[] | undefined, span: readonly [number, number] | null) =>
    span && numbers?.some((each) => each >= span[0] && each <= span[1]) ? span : null;
  return {
    ...selection,
    run: number,
    beside: selection.beside !== null && selection.beside < runs.length && selection.beside !== number ? selection.beside : null,
    picture: selection.picture < run.pictures.length ? selection.picture : 0,
    tokens: selection.tokens.filter((position) => positions.has(position)),
    map: map === "attention" && !run.attention?.pictures && run.maps.length ? 0 : map,
    region: selection.region && clipped(selection.region, run.pictures[selection.picture]?.size),
    layers: there(run.attention?.layers, selection.layers),
    heads: there(run.attention?.heads, selection.heads),
  };
}

/** A box as far as it lies on a picture; null where it does not. */
function clipped([x0, y0, x1, y1]: Box, size: readonly [number, number] | undefined): Box | null {
  const box: Box = [Math.max(0, x0), Math.max(0, y0), Math.min(size?.[0] ?? 0, x1), Math.min(size?.[1] ?? 0, y1)];
  return box[2] > box[0] && box[3] > box[1] ? box : null;
}

/** The tokens of one run that stand for those chosen in another: as they were compared, else linked word by word. */
function counterparts(run: Run, beside: Run, comparison: Comparison | null, tokens: readonly number[]): number[] {
  const links = comparison ? linksOf(comparison) : new Map<number, number>();
  for (const said of comparison ? [] : [true, false]) {
    const [own, other] = [run, beside].map((each) => each.tokens.filter(([, , role]) => (role === "generated") === said));
    linked(own.map(([, text]) => text), other.map(([, text]) => text)).forEach((link, at) => {
      if (link !== null && (said || own[at][1] === other[link][1])) links.set(own[at][0], other[link][0]);
    });
  }
  return tokens.flatMap((position) => links.get(position) ?? []);
}

function tell(host: HTMLElement, name: string, detail: unknown): void {
  host.dispatchEvent(new CustomEvent(name, { detail, bubbles: true, composed: true }));
}
