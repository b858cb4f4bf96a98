// What is seen, as files: the painted photograph with its colour bar (PNG, SVG), its numbers (CSV).

import { number } from "./numbers";
import { Ground, level, lightOf, paint } from "./painting";
import { cell, inXml } from "./text";

/** All that a figure of one panel needs. */
export interface Panel {
  title: string;
  caption: string;
  notes: readonly string[];
  size: readonly [number, number];
  ground: Ground;
  /** RGBA of the photograph at the ground's size. */
  photograph: Uint8ClampedArray<ArrayBuffer>;
  pixels: Float32Array;
  /** [N] and [N, 4]; the difference of two runs lies on pixels and has none. */
  values: Float32Array | null;
  boxes: Float32Array | null;
  table: Uint8Array;
  signed: boolean;
  top: number;
  unit: string;
  ink: number;
  opacity: number;
  smooth: boolean;
}

const [MARGIN, BAR, TEXT] = [16, 90, 22];

/** Colours of the bar, [256 * 4]: those of the map before the photograph darkens it. */
export function barColours({ table }: Pick<Panel, "table">): Uint8ClampedArray<ArrayBuffer> {
  const shown = new Uint8ClampedArray(256 * 4).fill(255);
  for (let step = 0; step < 256; step++) shown.set(table.subarray(3 * step, 3 * step + 3), 4 * step);
  return shown;
}

/** Numbers beside the bar, from the top down: share of its height, and text. */
export function ticks(panel: Pick<Panel, "signed" | "top">): [number, string][] {
  const low = panel.signed ? -panel.top : 0;
  return [1, 0.75, 0.5, 0.25, 0].map((share) => [1 - share, number(low + share * (panel.top - low))]);
}

export function painted(panel: Panel): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [panel.ground.width, panel.ground.height];
  const image = new ImageData(panel.ground.width, panel.ground.height);
  paint(panel.photograph, panel.pixels, panel.ground.width, panel, image.data);
  canvas.getContext("2d")!.putImageData(image, 0, 0);
  return canvas;
}

/** Panels side by side, each with title, colour bar and caption. */
export function toPng(panels: readonly Panel[]): Promise<Blob> {
  const canvas = document.createElement("canvas");
  const widths = panels.map((panel) => panel.ground.width + BAR + MARGIN);
  canvas.width = MARGIN + widths.reduce((sum, each) => sum + each, 0);
  canvas.height = 2 * MARGIN + 2 * TEXT + Math.max(...panels.map((panel) => panel.ground.height));
  const pen = canvas.getContext("2d")!;
  pen.fillStyle = "#ffffff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  let left = MARGIN;
  panels.forEach((panel, at) => {
    const { width, height } = panel.ground;
    const top = MARGIN + TEXT;
    pen.drawImage(painted(panel), left, top);
    const bar = document.createElement("canvas");
    [bar.width, bar.height] = [256, 1];
    bar.getContext("2d")!.putImageData(new ImageData(barColours(panel), 256, 1), 0, 0);
    pen.save();
    pen.translate(left + width + 8, top + height);
    pen.rotate(-Math.PI / 2);
    pen.drawImage(bar, 0, 0, height, 14);
    pen.restore();
    pen.fillStyle = "#222222";
    pen.font = "13px sans-serif";
    pen.fillText(panel.title, left, MARGIN + 12, width + BAR);
    pen.fillText(legend(panel), left, top + height + 16, width + BAR);
    for (const [share, text] of ticks(panel)) pen.fillText(text, left + width + 27, top + 5 + share * (height - 1));
    left += widths[at];
  });
  return new Promise((done) => canvas.toBlob((blob) => done(blob!), "image/png"));
}

/** One panel as vectors: a rectangle for each visual token of a grid, texts as texts. */
export function toSvg(panel: Panel): Blob {
  const { width, height } = panel.ground;
  const [across, down] = [width / panel.size[0], height / panel.size[1]];
  const vectors = panel.values !== null && panel.boxes !== null && !panel.smooth && panel.opacity === 1 && panel.ground.grids.length === 1;
  const cells = [...(vectors ? panel.values! : [])].map((value, token) => {
    const [x0, y0, x1, y1] = panel.boxes!.subarray(4 * token, 4 * token + 4);
    const at = 3 * level(value, panel);
    const [x, y, w, h] = [x0 * across, y0 * down, (x1 - x0) * across, (y1 - y0) * down].map((side) => side.toFixed(2));
    return `<rect x="${x}" y="${y}" width="${w}" height="${h}" fill="rgb(${panel.table.slice(at, at + 3).join(",")})"/>`;
  });
  const over = vectors ? inked(panel) : painted(panel).toDataURL("image/png");
  const parts = [...cells, `<image href="${over}" width="${width}" height="${height}"/>`];
  const bar = barColours(panel);
  const steps = [...Array(64).keys()].map((step) => {
    const at = 4 * Math.min(255, step * 4 + 2);
    const y = height - ((step + 1) * height) / 64;
    return `<rect x="${width + 8}" y="${y.toFixed(2)}" width="14" height="${(height / 64 + 0.5).toFixed(2)}" fill="rgb(${bar.slice(at, at + 3).join(",")})"/>`;
  });
  const numbers = ticks(panel).map(([share, text]) => `<text x="${width + 27}" y="${(5 + share * (height - 1)).toFixed(1)}">${inXml(text)}</text>`);
  const whole = [width + BAR + 2 * MARGIN, height + 2 * MARGIN + 2 * TEXT];
  const svg =
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="${-MARGIN} ${-MARGIN - TEXT} ${whole[0]} ${whole[1]}" width="${whole[0]}" height="${whole[1]}" font-family="sans-serif" font-size="13">` +
    `<rect x="${-MARGIN}" y="${-MARGIN - TEXT}" width="100%" height="100%" fill="#ffffff"/><text y="-8">${inXml(panel.title)}</text>` +
    `<clipPath id="picture"><rect width="${width}" height="${height}"/></clipPath><g clip-path="url(#picture)">${parts.join("")}</g>` +
    `${steps.join("")}${numbers.join("")}<text y="${height + 18}">${inXml(legend(panel))}</text></svg>`;
  return new Blob([svg], { type: "image/svg+xml" });
}

/** The photograph as ink alone: black, as opaque as it darkens; where nothing was seen as it is painted. A data URL. */
function inked(panel: Panel): string {
  const canvas = painted(panel);
  const pen = canvas.getContext("2d")!;
  const image = pen.getImageData(0, 0, canvas.width, canvas.height);
  panel.pixels.forEach((value, at) => {
    if (!Number.isNaN(value)) image.data.set([0, 0, 0, 255 * (1 - lightOf(panel.photograph, 4 * at, panel.ink))], 4 * at);
  });
  pen.putImageData(image, 0, 0);
  return canvas.toDataURL("image/png");
}

export function toCsv(rows: readonly (readonly (string | number)[])[]): Blob {
  return new Blob([rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n"], { type: "text/csv;charset=utf-8" });
}

/** What stands under a saved panel: all that is to be known of it. */
export function legend(panel: Panel): string {
  return [panel.caption, ...panel.notes].join("; ");
}

/** Tables of some panels, those of the same visual tokens in one: a line for each with its box in pixels of the original. */
export function tablesOf(panels: readonly Panel[]): (string | number)[][][] {
  const tables: { boxes: Float32Array; lines: (string | number)[][] }[] = [];
  for (const { boxes, values, title, unit, ...panel } of panels) {
    if (!boxes || !values) continue;
    let table = tables.find((each) => each.boxes.length === boxes.length && each.boxes.every((side, at) => side === boxes[at]));
    if (!table) {
      const rows = [...values.keys()].map((token) => [token, ...boxes.subarray(4 * token, 4 * token + 4)]);
      tables.push((table = { boxes, lines: [["visual_token", "x0", "y0", "x1", "y1"], ...rows] }));
    }
    table.lines[0].push(`${unit}, ${title}: ${legend({ ...panel, boxes, values, title, unit })}`);
    values.forEach((value, token) => table!.lines[token + 1].push(value));
  }
  return tables.map(({ lines }) => lines);
}

export function save(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
