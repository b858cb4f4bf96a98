// Where the question stands, and the words as they come. Whatever a model says is text here, never markup.
const find = (name) => element.querySelector(name);
const state = find(".lp-state");
const error = find(".lp-error");
const cards = find(".lp-cards");
const notes = find(".lp-notes");

const made = (kind, name, words) => {
  const one = document.createElement(kind);
  one.className = name;
  one.textContent = words;
  one.hidden = !words;
  return one;
};

let job = "";

// In a narrow window the answer stands below everything else.
function turn_to(newest) {
  if (newest && newest !== job && element.getBoundingClientRect().top > innerHeight * 0.8) {
    element.scrollIntoView({ block: "start" });
  }
  job = newest ?? "";
}

function show() {
  const value = props.value ?? {};
  turn_to(value.job);
  const busy = value.state === "waiting" || value.state === "running";
  state.textContent = value.state === "failed" ? "" : (value.sentence ?? "");
  state.hidden = !state.textContent;
  state.classList.toggle("lp-busy", busy);
  error.textContent = value.state === "failed" ? value.sentence : "";
  error.hidden = !error.textContent;
  const shown = value.cards ?? [];
  cards.replaceChildren(
    ...shown.map((card, number) => {
      const one = document.createElement("article");
      const running = value.state === "running" && number === shown.length - 1;
      one.className = running ? "lp-card lp-running" : "lp-card";
      one.append(made("h2", "lp-title", card.title), made("p", "lp-asked", card.question));
      const said = made("p", "lp-said", card.text);
      said.hidden = false;
      said.dir = "auto";
      one.append(said, made("small", "lp-note", card.note));
      return one;
    }),
  );
  notes.replaceChildren(...(value.notes ?? []).map((note) => made("li", "", note)));
  notes.hidden = !notes.children.length;
  document.dispatchEvent(new CustomEvent("lp-busy", { detail: busy }));
}

watch("value", show);
show();
