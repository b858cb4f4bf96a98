// What is being looked at: one small object, which a link holds too (#token=3&layer=12).

export type Range = readonly [number, number];
export type Box = readonly [number, number, number, number];

export interface Selection {
  run: number;
  beside: number | null;
  picture: number;
  /** Positions in the sequence; empty: the whole answer. */
  tokens: readonly number[];
  /** "attention", or the number of another map. */
  map: "attention" | number;
  /** The model's own numbers of layers and heads, from and to; null: all. */
  layers: Range | null;
  heads: Range | null;
  scale: "each" | "one";
  colours: string | null;
  opacity: number | null;
  smooth: boolean;
  tile: number | null;
  sinks: boolean;
  region: Box | null;
}

export const NOTHING: Selection = {
  run: 0,
  beside: null,
  picture: 0,
  tokens: [],
  map: "attention",
  layers: null,
  heads: null,
  scale: "each",
  colours: null,
  opacity: null,
  smooth: false,
  tile: null,
  sinks: true,
  region: null,
};

const list = (text: string): number[] =>
  text
    .split(",")
    .filter(Boolean)
    .map(Number)
    .filter((value) => Number.isFinite(value));

const range = (text: string): Range | null => {
  const told = /^(\d{1,6})(?:-(\d{1,6}))?$/.exec(text);
  const [from, to] = told ? [Number(told[1]), Number(told[2] ?? told[1])] : [1, 0];
  return from <= to ? [from, to] : null;
};

const spelled = (span: Range): string => (span[0] === span[1] ? `${span[0]}` : `${span[0]}-${span[1]}`);

/** A selection as the part of a link behind its #; what is as it was when the page opened is left out. */
export function toLink(selection: Selection, opening: Selection = NOTHING): string {
  const told = new URLSearchParams();
  const { run, beside, picture, tokens, map, layers, heads, scale, colours, opacity, smooth, tile, sinks, region } = selection;
  if (run) told.set("run", `${run}`);
  if (beside !== opening.beside) told.set("beside", `${beside ?? "none"}`);
  if (picture) told.set("picture", `${picture}`);
  if (tokens.length) told.set("token", tokens.join(","));
  if (map !== "attention") told.set("map", `${map}`);
  if (layers) told.set("layer", spelled(layers));
  if (heads) told.set("head", spelled(heads));
  if (scale !== "each") told.set("scale", scale);
  if (colours) told.set("colours", colours);
  if (opacity !== null) told.set("opacity", `${opacity}`);
  if (smooth) told.set("smooth", "1");
  if (tile !== null) told.set("tile", `${tile}`);
  if (!sinks) told.set("sinks", "0");
  if (region) told.set("region", region.map((side) => Math.round(side)).join(","));
  return told.toString().replaceAll("%2C", ",");
}

/** The selection that a link tells; what it tells wrongly is as when the page opened. */
export function fromLink(link: string, opening: Selection = NOTHING): Selection {
  const told = new URLSearchParams(link.replace(/^#/, ""));
  const whole = (name: string): number | null => {
    const value = told.get(name);
    return value !== null && /^\d{1,6}$/.test(value) ? Number(value) : null;
  };
  const opacity = Number(told.get("opacity") ?? "x");
  const box = list(told.get("region") ?? "");
  return {
    run: whole("run") ?? 0,
    beside: told.get("beside") === "none" ? null : (whole("beside") ?? opening.beside),
    picture: whole("picture") ?? 0,
    tokens: told.has("token") ? list(told.get("token")!).filter((each) => Number.isInteger(each) && each >= 0) : [],
    map: whole("map") ?? "attention",
    layers: range(told.get("layer") ?? "x"),
    heads: range(told.get("head") ?? "x"),
    scale: told.get("scale") === "one" ? "one" : "each",
    colours: told.get("colours"),
    opacity: opacity >= 0 && opacity <= 1 ? opacity : null,
    smooth: told.get("smooth") === "1",
    tile: whole("tile"),
    sinks: told.get("sinks") !== "0",
    region: box.length === 4 ? (box as unknown as Box) : null,
  };
}
