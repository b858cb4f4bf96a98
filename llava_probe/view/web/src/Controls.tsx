// What is shown, and how: the maps there are as tabs, the runs, the pictures, and the ways of drawing.

import { Choose } from "./App";
import { Options } from "./main";
import { Payload, Run } from "./payload";
import { Selection } from "./selection";
import { shown } from "./text";
import { sameMap } from "./values";

interface Props {
  payload: Payload;
  run: Run;
  selection: Selection;
  choose: Choose;
  offers: readonly string[];
  act: Options["act"];
  waiting: boolean;
}

export function Controls({ payload, run, selection, choose, offers, act, waiting }: Props) {
  const runs = payload.header.runs;
  const picture = run.pictures[selection.picture];
  const tiles = picture?.layout ? [...new Set(payload.array(picture.layout.tiles)!)].sort((a, b) => a - b) : [];
  const smoothable = (picture?.layout?.grids.length ?? 0) > 0;
  const map = selection.map === "attention" ? null : run.maps[selection.map];
  const names = payload.header.colours[map?.values.signed ? "signed" : "plain"];
  const label = (number: number): string => {
    const { question, answer, interventions } = runs[number];
    return `${number + 1}: ${shown(question).slice(0, 60)} → ${shown(answer).slice(0, 30)}${interventions.length ? " (changed)" : ""}`;
  };
  const tabs: ["attention" | number, string][] = [
    ...(run.attention ? [["attention", "attention"] as ["attention", string]] : []),
    ...run.maps.map((_, at): [number, string] => [at, tabName(run, at)]),
  ];
  const open = (map: Selection["map"]): void => choose(map === "attention" ? { map } : { map, picture: run.maps[map].picture });
  const turnTo = (number: number): void => {
    const map = sameMap(run, runs[number], selection.map, 0);
    const beside = payload.header.comparisons.find(({ a }) => a === number)?.b ?? null;
    choose({ run: number, tokens: [], beside, picture: 0, region: null, map });
  };
  const turned = (event: KeyboardEvent): void => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = (tabs.findIndex(([key]) => key === selection.map) + step + tabs.length) % tabs.length;
    open(tabs[next][0]);
    (event.currentTarget as Element).querySelectorAll<HTMLElement>("[role=tab]")[next].focus();
  };
  return (
    <nav class="controls" aria-label="what is shown">
      {runs.length > 1 && (
        <p>
          <label>
            Show{" "}
            <select value={selection.run} onChange={(event) => turnTo(Number(event.currentTarget.value))}>
              {runs.map((_, number) => (
                <option value={number}>{label(number)}</option>
              ))}
            </select>
          </label>{" "}
          <label>
            beside{" "}
            <select value={selection.beside ?? ""} onChange={(event) => choose({ beside: event.currentTarget.value === "" ? null : Number(event.currentTarget.value) })}>
              <option value="">nothing</option>
              {runs.map((_, number) => number !== selection.run && <option value={number}>{label(number)}</option>)}
            </select>
          </label>
        </p>
      )}
      {tabs.length > 1 || act ? (
        <div class="tabs">
          <div class="tabs" role="tablist" aria-label="method" onKeyDown={turned}>
          {tabs.map(([key, name]) => (
            <button type="button" role="tab" aria-selected={selection.map === key} tabIndex={selection.map === key ? 0 : -1} onClick={() => open(key)}>
              {name}
            </button>
          ))}
          </div>
          {act && offers.length > 0 && (
            <select
              class="offers"
              aria-label="compute another method"
              disabled={waiting}
              value=""
              onChange={(event) => act({ compute: event.currentTarget.value, run: selection.run, picture: selection.picture, tokens: selection.tokens })}
            >
              <option value="">compute …</option>
              {offers.map((name) => (
                <option value={name}>{shown(name.replaceAll("_", " "))}</option>
              ))}
            </select>
          )}
        </div>
      ) : null}
      <p class="limit">{map ? map.limit : run.attention ? run.attentionLimit : ""}</p>
      {run.pictures.length > 1 && <Pictures run={run} selection={selection} choose={choose} />}
      <details class="drawing">
        <summary>Drawing</summary>
        <p>
          <label>
            Opacity{" "}
            <input type="range" min="0" max="1" step="0.02" value={selection.opacity ?? 1} onInput={(event) => choose({ opacity: Number(event.currentTarget.value) })} />
          </label>
          <label>
            Colours{" "}
            <select value={names.includes(selection.colours ?? "") ? selection.colours! : names[0]} onChange={(event) => choose({ colours: event.currentTarget.value })}>
              {names.map((name) => (
                <option>{name}</option>
              ))}
            </select>
          </label>
          <label>
            Scale{" "}
            <select value={selection.scale} onChange={(event) => choose({ scale: event.currentTarget.value as Selection["scale"] })}>
              <option value="each">of this map</option>
              <option value="one">one for all</option>
            </select>
          </label>
          {smoothable && (
            <label>
              <input type="checkbox" checked={selection.smooth} onChange={(event) => choose({ smooth: event.currentTarget.checked })} /> smooth, not by patch
            </label>
          )}
          {tiles.length > 1 && (
            <label>
              Tiles{" "}
              <select value={selection.tile ?? ""} onChange={(event) => choose({ tile: event.currentTarget.value === "" ? null : Number(event.currentTarget.value) })}>
                <option value="">all, the finest on top</option>
                {tiles.map((tile) => (
                  <option value={tile}>{tile === 0 ? "whole picture" : `tile ${tile}`}</option>
                ))}
              </select>
            </label>
          )}
          <label>
            <input type="checkbox" checked={selection.sinks} onChange={(event) => choose({ sinks: event.currentTarget.checked })} /> ring sinks
          </label>
        </p>
      </details>
    </nav>
  );
}

/** A map's name, with its picture or its words where another has the same. */
function tabName(run: Run, at: number): string {
  const map = run.maps[at];
  const alike = run.maps.filter((each) => each.name === map.name);
  const name = shown(map.name.replaceAll("_", " "));
  if (alike.length === 1) return name;
  if (alike.every((each) => each === map || each.picture !== map.picture)) return `${name}, picture ${map.picture}`;
  return `${name}, ${shown(map.rows[0]?.[0] ?? "").slice(0, 24)}`;
}

/** Which of several pictures: a slider over the frames of a video, else a list. */
function Pictures({ run, selection, choose }: { run: Run; selection: Selection; choose: Choose }) {
  const filmed = run.pictures.some((picture) => picture.layout?.frames.length);
  const last = run.pictures.length - 1;
  const name = filmed ? "Frame" : "Picture";
  const turn = (picture: number): void => choose({ picture, region: null, map: sameMap(run, run, selection.map, picture) });
  return (
    <p>
      <label>
        {name}{" "}
        {filmed ? (
          <input type="range" min="0" max={last} value={selection.picture} onInput={(event) => turn(Number(event.currentTarget.value))} />
        ) : (
          <select value={selection.picture} onChange={(event) => turn(Number(event.currentTarget.value))}>
            {run.pictures.map((_, number) => (
              <option value={number}>{number}</option>
            ))}
          </select>
        )}{" "}
        {filmed && `${selection.picture} of 0–${last}`}
      </label>
    </p>
  );
}
