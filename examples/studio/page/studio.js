// The studio's page: submits tasks, follows their events, and shows what these say.
// What comes from outside is set as text, never as HTML. The tasks stand in the URL (?task=a,b),
// so a reload or another tab shows the same.

import { call, pathOf, Refused, Trouble } from "./backend.js";
import { Card, ENDED, WAITS } from "./card.js";

const SIDE_BY_SIDE = [0, 0.5, 0.75, 1];
const PREVIEWS = 25; // of a task, at most, where the number of steps is known
const LOOK_MS = 2000; // between two looks at the queue

const $ = (id) => document.getElementById(id);
const form = $("form");
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// ---------------------------------------------------------------- the tasks of the page

let cards = [];
let source = null;
let sending = null; // what is being submitted
let isForeign = false; // whether the form is to be filled from the tasks

/** Show the tasks that stand in the URL, by default as the form does not know them. */
function open(isFromElsewhere = true) {
  isForeign = isFromElsewhere;
  const ids = new URLSearchParams(location.search).get("task")?.split(",") ?? [];
  cards = [...new Set(ids)].map((id) => new Card(id));
  $("cards").replaceChildren(...cards.map((card) => card.node));
  $("cards").dataset.count = cards.length;
  follow();
  draw();
}

/** One stream for all tasks that have not ended; it resumes by itself after a lost connection. */
function follow() {
  source?.close();
  const ids = cards.filter((card) => !card.isOver).map((card) => card.id);
  if (ids.length === 0) return;
  const stream = new EventSource(`${pathOf(ids)}/events`);
  stream.onmessage = ({ data }) => {
    const event = JSON.parse(data);
    cards.find((card) => card.id === event.task_id)?.hear(event);
    if (cards.every((card) => card.isOver)) stream.close();
    draw();
  };
  stream.onerror = () => {
    if (stream.readyState === EventSource.CLOSED) explain(stream, ids);
  };
  source = stream;
}

/** A refused stream tells no reason, but the tasks' status does. */
async function explain(stream, ids) {
  try {
    await call("GET", pathOf(ids));
  } catch (error) {
    if (error instanceof Trouble || source !== stream) return; // `look` comes back to it
    source = null;
    const why = error.faults[0]?.what ?? error.message;
    for (const card of cards.filter((each) => !each.isOver)) card.lose(why);
    draw();
  }
}

/** Everything that depends on all tasks together. */
function draw() {
  const asked = cards[0]?.asked ?? {};
  $("asked").textContent = asked.prompt ?? "";
  if (isForeign && asked.prompt !== undefined) {
    isForeign = false;
    fill({ ...asked, seed: undefined });
  }
  const isOver = cards.length > 0 && cards.every((card) => card.isOver);
  const focused = document.activeElement === $("cancel");
  $("cancel").hidden = !sending && (cards.length === 0 || isOver);
  if (focused && $("cancel").hidden) $("prompt").focus();
  $("again").disabled = asked.prompt === undefined;
  const last = Math.max(0, ...cards.map((card) => card.pictures.length - 1));
  if (isOver && last > 0 && $("back").hidden) $("look").value = $("look").max = last;
  $("back").hidden = !isOver || last === 0;
  lookBack();
  if (cards.length && !sending) tell(summary(isOver));
}

/** Few words for all tasks, which change seldom: they are read aloud. */
function summary(isOver) {
  const made = cards.filter((card) => card.type === "succeeded").length;
  if (isOver && cards.length > 1) return `${made} of ${cards.length} pictures are done.`;
  if (isOver) return made ? "The picture is done." : ENDED[cards[0].type];
  if (cards.every((card) => card.isForgotten)) return "No worker has taken this yet.";
  const quarters = Math.floor((4 * cards.reduce((sum, card) => sum + card.done, 0)) / cards.length);
  const parts = ["Drawing.", "A quarter is drawn.", "Half is drawn.", "Three quarters are drawn."];
  if (cards.some((card) => card.done > 0)) return parts[quarters] ?? "Storing.";
  return cards.every((card) => WAITS.includes(card.type)) ? "Waiting for a worker." : "Begun.";
}

function tell(text) {
  if ($("status").textContent === text) return; // or it would be read aloud again
  $("status").textContent = text;
  document.title = `SAG studio: ${text}`;
}

/** How the pictures looked earlier; the last place is the finished picture. */
function lookBack() {
  if ($("back").hidden) return;
  const place = $("look").valueAsNumber;
  const label = cards.map(({ pictures }) => pictures[place]?.label).find(Boolean);
  $("look-value").textContent = label;
  $("look").ariaValueText = label;
}

// ---------------------------------------------------------------- the form

/** The fields that are filled in, by their names in the request. */
function filled() {
  const entries = [...new FormData(form)].filter(([, value]) => value !== "");
  return Object.fromEntries(
    entries.map(([name, value]) => [name, name === "prompt" ? value : Number(value)]),
  );
}

/** Submit the form, one task for each SAG scale (the form's own without any). */
async function submit(scales) {
  if (!form.reportValidity()) return;
  const asked = filled();
  asked.seed ??= crypto.getRandomValues(new Uint32Array(1))[0];
  const every = $("previews").checked && Math.ceil((asked.num_inference_steps ?? 1) / PREVIEWS);
  const tasks = (scales ?? [asked.sag_scale]).map((sag_scale) => {
    const request = { ...asked, sag_scale };
    const metadata = Object.fromEntries(Object.entries(request).map(([k, v]) => [k, String(v)]));
    return [newId(), { ...request, preview_every: Number(every), metadata }];
  });
  for (const fault of form.querySelectorAll(".fault")) fault.textContent = "";
  try {
    if (!(await send(Object.fromEntries(tasks)))) return;
    history.pushState(null, "", `?task=${tasks.map(([id]) => id).join(",")}`);
    open(false);
    $("cards").querySelector(".frame").scrollIntoView({ block: "nearest" });
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    complain(error);
  }
}

/** Submit until it is known to have worked: with the same ids that never makes a second task. */
async function send(tasks) {
  sending = tasks;
  tell("Submitting.");
  draw();
  try {
    while (sending === tasks) {
      try {
        await call("POST", "tasks", tasks);
        return sending === tasks;
      } catch (error) {
        if (!(error instanceof Trouble)) throw error;
        warn(error.message);
        await pause(LOOK_MS);
      }
    }
    return false;
  } finally {
    if (sending === tasks) sending = null;
    draw();
  }
}

/** Each fault at its field; `[2].seed` is that of one task of several. */
function complain(error) {
  tell("This was refused.");
  if (error.faults.length === 0) warn(error.message);
  for (const { where, what } of error.faults) {
    const name = where.replace(/^\[\d+\]\.?/, "");
    const place = $(`${name}-fault`) ?? $("prompt-fault");
    place.textContent = `${name} ${what}`;
    form.elements.namedItem(name)?.focus();
  }
}

async function cancel() {
  if ($("cancel").hidden) return;
  if (sending) {
    sending = null;
    tell("Not submitted.");
    draw();
    return;
  }
  const ids = cards.filter((card) => !card.isOver).map((card) => card.id);
  tell("Cancelling.");
  try {
    await call("DELETE", pathOf(ids));
  } catch (error) {
    warn(error.message);
  }
}

function newId() {
  const bytes = [...crypto.getRandomValues(new Uint8Array(16))];
  return bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Fill the form as it was for the pictures that are shown, which may have several SAG scales. */
function fill({ sag_scale, ...others }) {
  const asked = cards.length === 1 ? { ...others, sag_scale } : others;
  for (const [name, value] of Object.entries(asked))
    if (form.elements.namedItem(name)) form.elements.namedItem(name).value = value ?? "";
  showScale();
}

function showScale() {
  $("sag_scale-value").textContent = Number($("sag_scale").value).toFixed(2);
}

// ---------------------------------------------------------------- the queue, and what is wrong

function warn(text) {
  if ($("trouble").textContent !== text) $("trouble").textContent = text;
}

async function look() {
  try {
    const waiting = Object.values(await call("GET", "queue")).reduce((sum, each) => sum + each, 0);
    $("queue").textContent = waiting === 1 ? "1 task waits" : `${waiting || "No"} tasks wait`;
    warn("");
    for (const card of cards.filter((each) => each.isForgotten))
      card.remark(`${waiting} waiting. Is a worker running? sag-worker run starts one.`);
    draw();
    if (source?.readyState === EventSource.CLOSED) follow();
  } catch (error) {
    $("queue").textContent = "";
    warn(error.message);
  }
  setTimeout(look, LOOK_MS);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) cancel();
});
form.querySelector(".examples").addEventListener("click", ({ target }) => {
  if (target.type === "button") $("prompt").value = target.textContent;
});
$("compare").addEventListener("click", () => submit(SIDE_BY_SIDE));
$("cancel").addEventListener("click", cancel);
$("again").addEventListener("click", () =>
  fill({ ...cards[0].asked, seed: cards[0].seed ?? cards[0].asked.seed }),
);
$("random").addEventListener("click", () => ($("seed").value = ""));
$("sag_scale").addEventListener("input", showScale);
$("look").addEventListener("input", () => {
  lookBack();
  for (const card of cards) card.lookBack($("look").valueAsNumber);
});
addEventListener("popstate", () => open());
open();
look();
