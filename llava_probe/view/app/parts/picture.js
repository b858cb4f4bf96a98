// The picture that is asked about: chosen, dropped, pasted, or one of the examples. The value is its name on the server.
const find = (name) => element.querySelector(name);
const drop = find(".lp-drop");
const preview = find(".lp-preview");
const file = find(".lp-file");
const error = find(".lp-error");
const told = find(".lp-told");
const examples = find(".lp-examples");
const suggested = find(".lp-suggested");
let newest = 0;

const say = (place, words) => {
  place.textContent = words;
  place.hidden = !words;
};

// What is sent is a picture's bytes and nothing else: neither its name nor where it lay.
async function take(query, body) {
  const mine = ++newest;
  say(error, "");
  say(told, "Opening …");
  try {
    if (body && body.size > props.megabytes * 1e6) {
      throw new Error(`this file is larger than the ${props.megabytes} MB that are taken; send a smaller one`);
    }
    const headers = body ? { "content-type": "application/octet-stream" } : {};
    const answer = await fetch("llava-probe/picture" + query, { method: "POST", body, headers });
    if (!answer.ok) throw new Error((await answer.text()).trim() || "this picture was refused");
    const found = await answer.json();
    if (mine !== newest) return false;
    preview.src = found.preview;
    preview.hidden = false;
    drop.classList.add("lp-has");
    drop.setAttribute("aria-label", "Choose another picture");
    say(told, `${found.width} × ${found.height} pixels`);
    props.value = found.token;
    return true;
  } catch (problem) {
    if (mine !== newest) return false;
    say(told, "");
    say(error, problem instanceof TypeError ? "the app does not answer; is it still running?" : problem.message);
    return false;
  }
}

function own(body) {
  for (const each of examples.children) each.setAttribute("aria-pressed", "false");
  suggested.hidden = true;
  return take("", body);
}

const picture_of = (items) => [...(items ?? [])].find((each) => each.type.startsWith("image/")) ?? items?.[0];

drop.addEventListener("click", () => file.click());
file.addEventListener("change", () => {
  if (file.files[0]) own(file.files[0]);
  file.value = "";
});
for (const name of ["dragover", "dragenter"]) {
  document.addEventListener(name, (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    drop.classList.add("lp-over");
  });
}
document.addEventListener("dragleave", (event) => event.relatedTarget || drop.classList.remove("lp-over"));
document.addEventListener("drop", (event) => {
  drop.classList.remove("lp-over");
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  own(picture_of(event.dataTransfer.files));
});
document.addEventListener("paste", (event) => {
  const pasted = [...(event.clipboardData?.files ?? [])];
  if (!pasted.length) return;
  event.preventDefault();
  own(picture_of(pasted));
});

for (const example of props.examples) {
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-pressed", "false");
  button.setAttribute("aria-label", `Example ${example.number}`);
  const image = document.createElement("img");
  image.src = `llava-probe/example/${example.number}`;
  image.alt = "";
  button.append(image);
  button.addEventListener("click", async () => {
    if (!(await take(`?example=${example.number}`))) return;
    for (const each of examples.children) each.setAttribute("aria-pressed", String(each === button));
    suggested.replaceChildren(
      ...example.questions.map((question) => {
        const chip = document.createElement("button");
        chip.type = "button";
        chip.textContent = question;
        chip.addEventListener("click", () => trigger("suggested", { question }));
        return chip;
      }),
    );
    suggested.hidden = false;
  });
  examples.append(button);
}
