// The form: its fields by their names in the request, what they hold, and what is wrong with them.

import { inWords } from "./adapters.js";
import { SIDE_BY_SIDE } from "./compare.js";
import { models } from "./models.js";
import { start } from "./start.js";

const $ = (id) => document.getElementById(id);
export const form = $("form");
const TEXTS = ["model", "prompt"]; // the other fields are numbers
const OF_MODELS = ["model", "class_labels"]; // filled by `models`

/** The fields that are filled in, by their names in the request. */
export function filled() {
  const entries = [...new FormData(form)].filter(([, value]) => value !== "");
  const asked = Object.fromEntries(
    entries.map(([name, value]) => [name, TEXTS.includes(name) ? value : Number(value)]),
  );
  if (!start.isThere) delete asked.strength;
  return { ...asked, ...models.asked };
}

/** Fill the form as it was for a task; what differs side by side and what is hidden are kept. */
export function fill(asked, differing) {
  models.fill(asked);
  for (const field of form.elements) {
    const value = asked[field.name];
    if (!field.name || field.name === differing || field.matches(":disabled")) continue;
    if (OF_MODELS.includes(field.name)) continue;
    if (field.type !== "range" || (value ?? null) !== null) field.value = value ?? "";
  }
  start.fetch(asked);
  showValues();
}

/**
 * Each fault at its field, which is made visible; `[2].seed` is that of one task of several.
 * `loras` are those of the request. A fault that comes late does not take the focus.
 */
export function complain(faults, loras = [], isLate = false) {
  for (const { where, what } of faults) {
    const path = where.replace(/^\[\d+\]\.?/, "");
    const { name, place, field } = placeOf(path, loras);
    const panel = place.closest("details");
    if (panel) panel.open = true;
    place.textContent = `${name} ${what}`;
    if (!isLate) field?.focus();
  }
}

function placeOf(path, loras) {
  const name = path.split(/[.[]/)[0];
  if (name === "loras") return { name, ...models.chosen.adapters.placeOf(path, loras) };
  const [place, field] = [$(`${name}-fault`), form.elements.namedItem(name)];
  if (place && !place.closest("[hidden]")) return { name, place, field };
  return { name, place: $(`${models.subject.id}-fault`), field: models.subject };
}

export function forgive() {
  for (const fault of form.querySelectorAll(".fault")) fault.textContent = "";
}

/** The values of sliders, and what closed panels hold. */
function showValues() {
  for (const name of ["sag_scale", "strength"])
    $(`${name}-value`).textContent = Number($(name).value).toFixed(2);
  const set = [...$("more").querySelectorAll("input")].filter(
    ({ value, placeholder }) => value !== "" && Number(value) !== Number(placeholder),
  );
  $("more-gist").textContent = set
    .map((field) => `${field.labels[0].textContent} ${field.value}`)
    .join(", ");
  $("start-gist").textContent = start.gist;
  $("adapters-gist").textContent = inWords(models.chosen?.adapters.asked ?? []);
  const strengths = $("differs").querySelector("[value=strength]");
  strengths.hidden = strengths.disabled = !start.isThere;
  if (strengths.selected && strengths.disabled) $("differs").value = "sag_scale";
}

for (const [name, { title, values }] of Object.entries(SIDE_BY_SIDE))
  $("differs").append(new Option(`${title}: ${values.join(", ")}`, name));
form.addEventListener("input", showValues);
start.addEventListener("change", showValues);
models.addEventListener("change", () => start.tell());
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
form.querySelector(".examples").addEventListener("click", ({ target }) => {
  if (target.type === "button") $("prompt").value = target.textContent;
});
$("random").addEventListener("click", () => ($("seed").value = ""));
// The browser shows what is wrong with a field only where the field can be seen.
form.addEventListener(
  "invalid",
  ({ target }) => {
    const panel = target.closest("details");
    if (panel) panel.open = true;
  },
  true,
);
showValues();
