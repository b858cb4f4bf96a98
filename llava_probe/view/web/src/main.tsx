// The page component: `llavaProbe.mount(element, payload)` draws a parcel of `view/page/` into a shadow root of its own.

import { render } from "preact";
import { App } from "./App";
import { Payload } from "./payload";
import { Box, Selection } from "./selection";
import style from "./style.css?inline";

/** What a click asks of the model, where there is one behind the page. */
export type Asked =
  | { compute: string; run: number; picture: number; tokens: readonly number[] }
  | { ask: "without" | "only"; run: number; picture: number; box: Box };

/** How the component stands where it is put. */
export interface Options {
  /** Whether the address bar holds the selection: only where the component is the page. */
  link?: boolean;
  /** Names of the methods that can still be computed. */
  offers?: readonly string[];
  /** Takes what was clicked to the model; the component waits for `update`. */
  act?: (asked: Asked) => void;
}

/** What comes with a new parcel. */
export interface Update {
  offers?: readonly string[];
  select?: Partial<Selection>;
  message?: string;
}

export interface Mounted {
  update(payload: string, change?: Update): void;
  remove(): void;
}

function mount(element: HTMLElement, payload: string, options: Options = {}): Mounted {
  const root = element.shadowRoot ?? element.attachShadow({ mode: "open" });
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(style);
  root.adoptedStyleSheets = [sheet];
  const theme = themeAround(element);
  if (theme) element.dataset.theme = theme;
  let latest = 0;
  const draw = (base64: string, change: Update): void => {
    const number = ++latest;
    options = { ...options, offers: change.offers ?? options.offers };
    Payload.unpack(base64).then(
      (unpacked) => number === latest && render(<App payload={unpacked} host={element} options={options} change={change} />, root),
      (error) => number === latest && render(<p class="refused">This page cannot be shown: {String(error.message)}</p>, root),
    );
  };
  draw(payload, {});
  return {
    update: (base64, change = {}) => draw(base64, change),
    remove: () => {
      latest = -1;
      render(null, root);
    },
  };
}

/** Light or dark, where a notebook says so by its own means; elsewhere the browser's preference holds. */
function themeAround(element: HTMLElement): "light" | "dark" | null {
  const body = element.ownerDocument.body;
  const jupyter = body.dataset.jpThemeLight;
  if (jupyter !== undefined) return jupyter === "true" ? "light" : "dark";
  if (body.classList.contains("vscode-dark") || body.classList.contains("vscode-high-contrast")) return "dark";
  if (body.classList.contains("vscode-light")) return "light";
  if (body.classList.contains("dark")) return "dark";
  return null;
}

/** Mounts `payload` in every element that carries `mark` and shows nothing yet, once it is scrolled into view. */
function mountWhenSeen(mark: string, payload: string): void {
  for (const element of document.querySelectorAll<HTMLElement>(`[data-llava-probe="${mark}"]:not([data-shown])`)) {
    element.dataset.shown = "";
    const watcher = new IntersectionObserver((seen) => {
      if (!seen.some((each) => each.isIntersecting)) return;
      watcher.disconnect();
      mount(element, payload);
    });
    watcher.observe(element);
  }
}

const component = { mount, mountWhenSeen };
export type Component = typeof component;
(globalThis as unknown as { llavaProbe: Component }).llavaProbe = component;
