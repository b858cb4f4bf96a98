// A photograph with a map over it: painted on a canvas, pointed at through an SVG that lies on it.

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { Choose, Pointed } from "./App";
import { barColours, Panel, ticks } from "./exporting";
import { Options } from "./main";
import { number, percent } from "./numbers";
import { laidOut, paint, Places, rastered } from "./painting";
import { Payload, Picture, Run } from "./payload";
import { Box, Selection } from "./selection";
import { shown as visible } from "./text";
import { isShown, peak, Seen, Shown } from "./values";

interface Props {
  payload: Payload;
  run: Run;
  number: number;
  selection: Selection;
  choose: Choose;
  point: (pointed: Pointed | null) => void;
  shown: Seen;
  panel: Panel | null;
  act: Options["act"];
  waiting: boolean;
}

export function Photograph({ payload, run, number: runNumber, selection, choose, point, shown: found, panel, act, waiting }: Props) {
  const shown = isShown(found) ? found : null;
  const picture = run.pictures[Math.min(selection.picture, run.pictures.length - 1)];
  const places = usePlaces(payload, picture);
  const [drag, setDrag] = useState<Box | null>(null);
  const [marking, setMarking] = useState(false);
  const start = useRef<readonly [number, number] | null>(null);
  if (!picture) return null;
  if (!panel || !places) return <Plain payload={payload} picture={picture} reason={typeof found === "string" ? found : ""} />;
  const region = drag ?? selection.region;
  const boxOf = (token: number): Box => places.boxes.subarray(4 * token, 4 * token + 4) as unknown as Box;
  const sinks = selection.sinks ? [...new Set([...(shown?.marked ?? []), ...(picture.sinks ? payload.array(picture.sinks)! : [])])] : [];

  const at = (event: PointerEvent): readonly [number, number] => {
    const box = (event.currentTarget as Element).getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    return [Math.min(0.9999, Math.max(0, x)) * picture.size[0], Math.min(0.9999, Math.max(0, y)) * picture.size[1]];
  };
  const moved = (event: PointerEvent): void => {
    const place = at(event);
    if (start.current) {
      const [x, y] = start.current;
      return setDrag([Math.min(x, place[0]), Math.min(y, place[1]), Math.max(x, place[0]), Math.max(y, place[1])]);
    }
    const { width, height, owner } = panel.ground;
    const token = owner[Math.floor((place[1] / picture.size[1]) * height) * width + Math.floor((place[0] / picture.size[0]) * width)];
    point(token < 0 ? null : { run: runNumber, picture: selection.picture, tokens: [token] });
  };
  const pressed = (event: PointerEvent): void => {
    if (!marking && !event.shiftKey) return;
    event.preventDefault();
    (event.currentTarget as Element).setPointerCapture(event.pointerId);
    start.current = at(event);
  };
  const released = (): void => {
    if (drag && drag[2] - drag[0] >= 2 && drag[3] - drag[1] >= 2) choose({ region: drag.map(Math.round) as unknown as Box });
    start.current = null;
    setDrag(null);
    setMarking(false);
  };

  const typed = (text: string): void => {
    const [x0, y0, x1, y1, ...more] = text.split(/[\s,]+/).filter(Boolean).map(Number);
    if (more.length || !(x0 >= 0 && y0 >= 0 && x1 > x0 && y1 > y0 && x1 <= picture.size[0] && y1 <= picture.size[1])) return;
    choose({ region: [x0, y0, x1, y1] });
    setMarking(false);
  };

  const inRegion = region ? tokensIn(places.boxes, region).filter((token) => !shown || shown.seen.includes(token)) : [];
  return (
    <figure>
      <figcaption dir="auto">
        <b>{panel.title}</b> {panel.caption}
        {panel.notes.map((note) => (
          <span class="note">{note}</span>
        ))}
      </figcaption>
      <div class="frame">
        <div class="stack">
          <Canvas panel={panel} label={`${panel.title}: ${[panel.caption, ...panel.notes].join("; ")}`} />
          <svg
            class={marking ? "marking" : ""}
            viewBox={`0 0 ${picture.size[0]} ${picture.size[1]}`}
            preserveAspectRatio="none"
            onPointerMove={moved}
            onPointerLeave={() => !start.current && point(null)}
            onPointerDown={pressed}
            onPointerUp={released}
            aria-hidden="true"
          >
            {sinks.map((token) => {
              const [x0, y0, x1, y1] = boxOf(token);
              return <ellipse class="sink" cx={(x0 + x1) / 2} cy={(y0 + y1) / 2} rx={(x1 - x0) / 2.4} ry={(y1 - y0) / 2.4} />;
            })}
            {region && <rect class="region" x={region[0]} y={region[1]} width={region[2] - region[0]} height={region[3] - region[1]} />}
          </svg>
        </div>
        <ColourBar panel={panel} />
      </div>
      <p class="under-picture">
        <button type="button" aria-pressed={marking} onClick={() => setMarking(!marking)}>
          Mark a region
        </button>
        {marking && (
          <input
            class="box"
            aria-label="the region, x0, y0, x1, y1 in pixels of the picture"
            placeholder="drag, or x0, y0, x1, y1"
            onChange={(event) => typed(event.currentTarget.value)}
          />
        )}
        {region && (
          <>
            <span>{told(region, inRegion, shown)}</span>
            <button type="button" onClick={() => choose({ region: null })}>
              Clear
            </button>
            {act &&
              (["without", "only"] as const).map((ask) => (
                <button type="button" disabled={waiting} onClick={() => act({ ask, run: runNumber, picture: selection.picture, box: selection.region! })}>
                  {ask === "without" ? "Ask without it" : "Ask with only it"}
                </button>
              ))}
          </>
        )}
        {sinks.length > 0 && <span>ringed: {sinks.length} sinks</span>}
      </p>
    </figure>
  );
}

/** A panel without anything to point at. */
Photograph.Drawing = function Drawing({ panel, label }: { panel: Panel; label: string }) {
  return (
    <figure>
      <figcaption dir="auto">
        <b>{panel.title}</b> {panel.caption}
      </figcaption>
      <div class="frame">
        <div class="stack">
          <Canvas panel={panel} label={label} />
        </div>
        <ColourBar panel={panel} />
      </div>
    </figure>
  );
};

function Canvas({ panel, label }: { panel: Panel; label: string }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    const { width, height } = panel.ground;
    const image = new ImageData(width, height);
    paint(panel.photograph, panel.pixels, width, panel, image.data);
    canvas.current!.getContext("2d")!.putImageData(image, 0, 0);
  }, [panel]);
  return <canvas ref={canvas} width={panel.ground.width} height={panel.ground.height} role="img" aria-label={label} />;
}

function ColourBar({ panel }: { panel: Panel }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    const colours = barColours(panel);
    const image = new ImageData(1, 256);
    for (let step = 0; step < 256; step++) image.data.set(colours.subarray(4 * step, 4 * step + 4), 4 * (255 - step));
    canvas.current!.getContext("2d")!.putImageData(image, 0, 0);
  }, [panel]);
  return (
    <div class="bar">
      <canvas ref={canvas} width={1} height={256} aria-hidden="true" />
      <ol>
        {ticks(panel).map(([, text]) => (
          <li>{text}</li>
        ))}
      </ol>
      <span class="unit">{visible(panel.unit)}</span>
    </div>
  );
}

/** The photograph as it is, where there is no map of it. */
function Plain({ payload, picture, reason }: { payload: Payload; picture: Picture; reason: string }) {
  const url = useMemo(() => URL.createObjectURL(payload.file(picture.file, picture.kind)), [payload, picture]);
  return (
    <figure>
      <figcaption>{reason}</figcaption>
      <img src={url} alt="the picture" />
    </figure>
  );
}

function told(region: Box, tokens: readonly number[], shown: Shown | null): string {
  const box = region.map((side) => Math.round(side)).join(", ");
  if (!shown || !tokens.length) return `(${box}) px holds no visual token by half`;
  const sum = (each: Iterable<number>): number => [...each].reduce((total, value) => total + Math.abs(value), 0);
  const share = sum(tokens.map((token) => shown.values[token])) / (sum(shown.seen.map((token) => shown.values[token])) || 1);
  return `(${box}) px: ${tokens.length} of ${shown.seen.length} visual tokens, ${percent(share)} of this map`;
}

/** The visual tokens of which a box covers half or more. */
export function tokensIn(boxes: Float32Array, [x0, y0, x1, y1]: Box): number[] {
  return [...Array(boxes.length / 4).keys()].filter((token) => {
    const [a, b, c, d] = boxes.subarray(4 * token, 4 * token + 4);
    const common = Math.max(0, Math.min(c, x1) - Math.max(a, x0)) * Math.max(0, Math.min(d, y1) - Math.max(b, y0));
    return common >= 0.5 * (c - a) * (d - b);
  });
}

// --- what is drawn ---

function usePlaces(payload: Payload, picture: Picture | undefined): Places | null {
  return useMemo(() => {
    if (!picture?.layout) return null;
    const { boxes, tiles, grids } = picture.layout;
    return {
      boxes: payload.array<Float32Array>(boxes)!,
      tiles: payload.array<Int32Array>(tiles)!,
      grids: grids.map((grid) => ({ ...grid, tokens: payload.array(grid.tokens)! })),
    };
  }, [payload, picture]);
}

/** RGBA of a picture at the size in which it is shown; null while the browser decodes it. */
function usePhotograph(payload: Payload, picture: Picture | undefined): Uint8ClampedArray<ArrayBuffer> | null {
  const [drawn, setDrawn] = useState<{ of: Picture; pixels: Uint8ClampedArray<ArrayBuffer> } | null>(null);
  useEffect(() => {
    let wanted = true;
    if (picture)
      void createImageBitmap(payload.file(picture.file, picture.kind), { colorSpaceConversion: "none" }).then((bitmap) => {
        const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
        const pen = canvas.getContext("2d", { willReadFrequently: true })!;
        pen.drawImage(bitmap, 0, 0);
        if (wanted) setDrawn({ of: picture, pixels: pen.getImageData(0, 0, bitmap.width, bitmap.height).data as Uint8ClampedArray<ArrayBuffer> });
      });
    return () => void (wanted = false);
  }, [payload, picture]);
  return drawn && drawn.of === picture ? drawn.pixels : null;
}

/** One run's panel; null where there is nothing to draw, or not yet. */
export function usePanel(payload: Payload, run: Run | null, selection: Selection, seen: Seen): Panel | null {
  const picture = run?.pictures[Math.min(selection.picture, run.pictures.length - 1)];
  const places = usePlaces(payload, picture);
  const photograph = usePhotograph(payload, picture);
  const tile = places && selection.tile !== null && places.tiles.includes(selection.tile) ? selection.tile : null;
  const ground = useMemo(() => places && picture && laidOut(places, picture.size, picture.shown, tile), [places, picture, tile]);
  return useMemo(() => {
    if (!picture || !places || !ground || !photograph || !isShown(seen)) return null;
    const shown = seen;
    const range = shown.values.some(Boolean) ? `${number(shown.signed ? -shown.top : 0)} to ${number(shown.top)}, ${shown.scale}` : "0 everywhere";
    return {
      title: `“${shown.of}”`,
      caption: `${shown.told}; ${range}`,
      notes: shown.notes,
      size: picture.size,
      ground,
      photograph,
      pixels: rastered(ground, shown.values, selection.smooth),
      values: shown.values,
      boxes: places.boxes,
      table: colourTable(payload, selection.colours, shown.signed),
      signed: shown.signed,
      top: shown.top,
      unit: shown.unit,
      ink: payload.header.ink,
      opacity: selection.opacity ?? 1,
      smooth: selection.smooth,
    };
  }, [picture, places, ground, photograph, seen]);
}

/** The second panel less the first, pixel by pixel; of a comparison on the scale that both have. */
export function useDifference(one: Panel | null, other: Panel | null, payload: Payload, selection: Selection, compared: boolean): Panel | null {
  return useMemo(() => {
    if (!one || !other || one.pixels.length !== other.pixels.length || one.ground.width !== other.ground.width) return null;
    const pixels = other.pixels.map((value, at) => value - one.pixels[at]);
    const largest = pixels.reduce((most, value) => (Number.isNaN(value) ? most : Math.max(most, Math.abs(value))), 0) || 1;
    const top = compared ? one.top : largest;
    const same = one.values!.length === other.values!.length && one.boxes!.every((side, at) => side === other.boxes![at]);
    return {
      ...one,
      title: "difference",
      caption: `the second less the first; ${number(-top)} to ${number(top)}, ${compared ? "the scale of both" : "its own scale"}`,
      notes: [...one.notes, ...other.notes],
      pixels,
      values: same ? other.values!.map((value, at) => value - one.values![at]) : null,
      boxes: same ? one.boxes : null,
      signed: true,
      top,
      table: colourTable(payload, selection.colours, true),
    };
  }, [one, other, compared]);
}

export function colourTable(payload: Payload, name: string | null, signed: boolean): Uint8Array {
  const { plain, signed: diverging, tables } = payload.header.colours;
  const [own, all] = [signed ? diverging : plain, [...plain, ...diverging]];
  const place = all.indexOf(name !== null && own.includes(name) ? name : own[0]);
  return payload.array<Uint8Array>(tables)!.subarray(768 * place, 768 * (place + 1));
}

/** Where the largest value lies, in words, for who cannot see the picture. */
export function whereIs(shown: Shown, picture: Picture, boxes: Float32Array): string | null {
  const token = peak(shown);
  if (token === null) return null;
  const [x0, y0, x1, y1] = boxes.subarray(4 * token, 4 * token + 4);
  const [x, y] = [(x0 + x1) / 2, (y0 + y1) / 2];
  const down = ["top", "middle", "bottom"][Math.min(2, Math.max(0, Math.floor((3 * y) / picture.size[1])))];
  const across = ["left", "centre", "right"][Math.min(2, Math.max(0, Math.floor((3 * x) / picture.size[0])))];
  return `(${Math.round(x)}, ${Math.round(y)}) px, ${down} ${across}`;
}
