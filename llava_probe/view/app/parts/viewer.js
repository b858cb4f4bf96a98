// The page component over the run that is shown, what may be asked of a marked part, and the exports.
const find = (name) => element.querySelector(name);
const mount = find(".lp-mount");
const error = find(".lp-error");
const region = find(".lp-region");
const marked = find(".lp-marked");
const exports = find(".lp-exports");
const acts = [find(".lp-without"), find(".lp-only")];
let handle = null;
let shown = "";
let part = null;
let busy = false;

const fail = (words) => {
  error.textContent = words;
  error.hidden = !words;
};

function mark(detail) {
  part = detail?.box ? detail : null;
  const hint = "Ask without a part: hold shift and drag over the photograph, or press “Mark a region” first.";
  const sides = part && part.box.map(Math.round);
  marked.textContent = part ? `Marked: ${sides[2] - sides[0]} × ${sides[3] - sides[1]} pixels,` : hint;
  region.classList.toggle("lp-none", !part);
  for (const act of acts) act.disabled = busy || !part;
}

async function coded(blob) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(blob);
  });
}

async function got(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.blob();
}

async function show() {
  const run = props.value?.run ?? "";
  if (!run || run === shown) return;
  shown = run;
  fail("");
  try {
    const data = await coded(await got(`llava-probe/run/${run}/payload`));
    if (run !== shown) return;
    find(".lp-empty").hidden = true;
    mount.hidden = region.hidden = exports.hidden = false;
    if (props.value.again && handle) {
      handle.update(data, { select: { run: 0, beside: 1 } });
    } else {
      mark(null);
      handle?.remove();
      handle = globalThis.llavaProbe.mount(mount, data, {});
    }
  } catch (problem) {
    fail(problem.message);
  }
}

// With shift held, the browser would select the text on the way.
mount.addEventListener("mousedown", (event) => event.shiftKey && event.preventDefault());
mount.addEventListener("llava-probe-region", (event) => mark(event.detail));
document.addEventListener("lp-busy", (event) => {
  busy = event.detail;
  for (const act of acts) act.disabled = busy || !part;
});
acts.forEach((act, number) =>
  act.addEventListener("click", () => {
    const ring = Number(find(".lp-ring").value);
    const how = ["without", "only"][number];
    trigger("again", { run: shown, box: part.box, image: part.image ?? 0, ring, how });
  }),
);

const names = { page: "run.html", trace: "run.trace", figures: "figures.zip", code: "again.py", everything: "run.zip" };
for (const button of exports.querySelectorAll("button")) {
  const kind = button.dataset.kind;
  button.addEventListener("click", async () => {
    fail("");
    button.disabled = true;
    button.classList.add("lp-busy");
    try {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(await got(`llava-probe/run/${shown}/export/${kind}`));
      link.download = names[kind];
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    } catch (problem) {
      fail(problem.message);
    }
    button.disabled = false;
    button.classList.remove("lp-busy");
  });
}

watch("value", show);
show();
