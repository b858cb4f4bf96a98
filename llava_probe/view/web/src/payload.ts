// Unpacks what `view/page/packing.py` packed: a header, its arrays, and a later part that the first picture can do without.

export interface Ref {
  part: 0 | 1;
  at: number;
  kind: "u8" | "u16" | "i32" | "f32";
  shape: number[];
}

export interface Steps {
  steps: Ref;
  scale: Ref;
  signed: boolean;
}

export interface Layout {
  boxes: Ref;
  positions: Ref;
  tiles: Ref;
  grids: { tokens: Ref; rows: number; columns: number }[];
  frames: number[];
}

export interface Picture {
  size: [number, number];
  shown: [number, number];
  file: Ref;
  kind: string;
  layout: Layout | null;
  sinks: Ref | null;
}

export interface AttentionOfPicture {
  mean: Steps;
  shares: Steps;
  ofHeads: Steps | null;
  layers: Steps & { kept: number[] };
  heads: Steps & { kept: [number, number][] };
}

export interface Attention {
  refused?: string;
  tokens: number[];
  layers: number[];
  heads: number[];
  pictures: (AttentionOfPicture | null)[];
  reduced: string;
}

export interface OtherMap {
  name: string;
  unit: string;
  limit: string;
  picture: number;
  rows: [string, number[]][];
  values: Steps;
  marked: Ref | null;
  /** What to know of it beside its limit. */
  note: string;
}

export interface Steppings {
  probability: Ref;
  entropy: Ref;
  rank: Ref;
  sampled?: Ref;
  alternatives: [string, number][][];
}

export interface Run {
  title: string;
  question: string;
  answer: string;
  promptLength: number;
  /** Positions of the whole answer, without what ends it. */
  said: number[];
  notes: string[];
  made: [string, string][];
  interventions: string[];
  alternatives: { answer: string; score: number | null }[];
  scored: boolean;
  score: number | null;
  tokens: [number, string, string][];
  steps: Steppings | null;
  pictures: Picture[];
  attention: Attention | null;
  attentionLimit: string;
  maps: OtherMap[];
}

/** A line for each name, over hidden states by their numbers. */
export interface Curves {
  title: string;
  unit: string;
  names: string[];
  layers: number[];
  values: Ref;
}

/** Heads that moved, most first: layer, head, how far, and the share on the picture in either run. */
export interface Moved {
  title: string;
  heads: [number, number, number, number | null, number | null][];
}

/** What `lp.compare` found of two runs. */
export interface Comparison {
  a: number;
  b: number;
  /** Positions of tokens that stand for one another. */
  prompt: [number, number][];
  answer: [number | null, number | null][];
  /** [answer, 2], and [answer] of the log-probability, NaN where one of the two has no token. */
  probability: Ref | null;
  change: Ref | null;
  notes: string[];
  layers: Curves[];
  heads: Moved[];
}

export interface Header {
  format: number;
  colours: { plain: string[]; signed: string[]; tables: Ref };
  /** How much of the light the darkest parts of a photograph take. */
  ink: number;
  runs: Run[];
  comparisons: Comparison[];
}

export type Numbers = Uint8Array | Uint16Array | Int32Array | Float32Array;

const FORMAT = 2;
const VIEWS = { u8: Uint8Array, u16: Uint16Array, i32: Int32Array, f32: Float32Array };

export class Payload {
  private late: ArrayBuffer | null = null;

  private constructor(
    readonly header: Header,
    private readonly first: ArrayBuffer,
    private readonly start: number,
    readonly whole: Promise<void>,
  ) {}

  static async unpack(base64: string): Promise<Payload> {
    const bytes = decoded(base64);
    const view = new DataView(bytes.buffer);
    const [one, two] = [view.getUint32(0, true), view.getUint32(4, true)];
    const first = await inflated(bytes.subarray(8, 8 + one));
    const length = new DataView(first).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(first, 4, length))) as Header;
    if (header.format !== FORMAT) throw new Error(`made for another version of this page: format ${header.format}`);
    const later = inflated(bytes.subarray(8 + one, 8 + one + two));
    const payload: Payload = new Payload(header, first, 4 + length, later.then((part) => void (payload.late = part)));
    return payload;
  }

  /** Whether the later part is there. */
  get complete(): boolean {
    return this.late !== null;
  }

  /** An array where it lies; null while its part is still being unpacked. */
  array<T extends Numbers = Numbers>(ref: Ref): T | null {
    const buffer = ref.part === 0 ? this.first : this.late;
    if (buffer === null) return null;
    const length = ref.shape.reduce((product, side) => product * side, 1);
    return new VIEWS[ref.kind](buffer, ref.at + (ref.part === 0 ? this.start : 0), length) as T;
  }

  /** A file that lies in the parcel. */
  file(ref: Ref, type: string): Blob {
    return new Blob([this.array<Uint8Array>(ref)!.slice()], { type });
  }
}

/** Maps [..., N] that came as steps: read row by row. */
export class Maps {
  private readonly steps: Numbers;
  private readonly scale: Float32Array;
  private readonly middle: number;
  private readonly span: number;
  readonly width: number;

  private constructor(steps: Numbers, scale: Float32Array, width: number, signed: boolean, readonly rows: number) {
    const highest = steps instanceof Uint8Array ? 255 : 65535;
    this.steps = steps;
    this.scale = scale;
    this.width = width;
    this.middle = signed ? Math.floor(highest / 2) : 0;
    this.span = signed ? Math.floor(highest / 2) : highest;
  }

  static read(payload: Payload, ref: Steps): Maps | null {
    const [steps, scale] = [payload.array(ref.steps), payload.array<Float32Array>(ref.scale)];
    if (steps === null || scale === null) return null;
    return new Maps(steps, scale, ref.steps.shape[ref.steps.shape.length - 1], ref.signed, scale.length);
  }

  value(row: number, token: number): number {
    return ((this.steps[row * this.width + token] - this.middle) / this.span) * this.scale[row];
  }

  /** Adds a row to `sum`. */
  addTo(sum: Float32Array, row: number): void {
    const factor = this.scale[row] / this.span;
    const start = row * this.width;
    for (let token = 0; token < this.width; token++) sum[token] += (this.steps[start + token] - this.middle) * factor;
  }

  /** The largest magnitude of some rows, or of all. */
  largest(rows?: readonly number[]): number {
    if (rows) return rows.reduce((most, row) => Math.max(most, this.scale[row]), 0);
    return this.scale.reduce((most, each) => Math.max(most, each), 0);
  }
}

function decoded(base64: string): Uint8Array {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
  return bytes;
}

async function inflated(bytes: Uint8Array): Promise<ArrayBuffer> {
  const stream = new Blob([bytes as BlobPart]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Response(stream).arrayBuffer();
}
