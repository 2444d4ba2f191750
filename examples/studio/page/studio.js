// The studio's page: submits tasks, follows their events, and shows what these say.
// What comes from outside is set as text, never as HTML. The tasks stand in the URL (?task=a,b),
// so a reload or another tab shows the same.

import { lorasOf } from "./adapters.js";
import { call, pathOf, pause, Refused, Trouble } from "./backend.js";
import { Card, summary } from "./card.js";
import { differing } from "./compare.js";
import { complain, fill, filled, forgive, form } from "./form.js";
import { models } from "./models.js";
import { start } from "./start.js";
import { store, tasksOf, withdraw, withPictures } from "./submission.js";

const LOOK_MS = 2000; // between two looks at the queue

const $ = (id) => document.getElementById(id);

// ---------------------------------------------------------------- the tasks of the page

let cards = [];
let source = null;
let sending = null; // what is being submitted
let unsent = ""; // why that takes long
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
    const card = cards.find(({ id }) => id === event.task_id);
    card?.hear(event);
    if (cards.every(({ isOver }) => isOver)) stream.close();
    draw();
    if (event.type === "failed" && !isForeign && card.asked.model === models.chosen.name)
      complain(event.error.details.faults ?? [], lorasOf(card.asked), true);
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
  const subject = models.subjectOf(asked);
  $("asked").textContent = subject ?? "";
  if (isForeign && subject !== undefined) {
    isForeign = false;
    refill({ ...asked, seed: undefined });
  }
  const isOver = cards.length > 0 && cards.every((card) => card.isOver);
  const focused = document.activeElement === $("cancel");
  $("cancel").hidden = !sending && (cards.length === 0 || isOver);
  if (focused && $("cancel").hidden) models.subject.focus();
  $("again").disabled = subject === undefined;
  const last = Math.max(0, ...cards.map((card) => card.pictures.length - 1));
  if (isOver && last > 0 && $("back").hidden) $("look").value = $("look").max = last;
  $("back").hidden = !isOver || last === 0;
  lookBack();
  if (cards.length && !sending) tell(summary(cards));
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

// ---------------------------------------------------------------- submitting and cancelling

/** Submit the form: one task, or one for each value of the field that differs. */
async function submit(field) {
  if (!form.reportValidity()) return;
  if (!models.chosen) tell("Waiting for the backend.");
  await models.loaded;
  forgive();
  const asked = filled();
  if (field?.startsWith("sag_") && field !== "sag_scale" && asked.sag_scale === 0) {
    complain([{ where: "sag_scale", what: "is 0: without SAG all would be the same" }]);
    return;
  }
  const tasks = tasksOf(asked, field, $("previews").checked);
  try {
    if (!(await send(tasks, await start.blobs()))) return;
    history.pushState(null, "", `?task=${Object.keys(tasks).join(",")}`);
    open(false);
    $("cards").querySelector(".frame").scrollIntoView({ block: "nearest" });
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    tell("This was refused.");
    if (error.faults.length === 0) warn(error.message);
    complain(error.faults, asked.loras);
  }
}

/** Submit until it is known to have worked: with the same ids that never makes a second task. */
async function send(tasks, blobs) {
  sending = tasks;
  tell("Submitting.");
  draw();
  const keys = {};
  let mayBeSent = false;
  try {
    while (sending === tasks) {
      try {
        await store(blobs, keys);
        if (sending !== tasks) return false;
        mayBeSent = true;
        await call("POST", "tasks", withPictures(tasks, keys));
        return sending === tasks;
      } catch (error) {
        if (!(error instanceof Trouble)) throw error;
        unsent = error.message;
        warn(unsent);
        await pause();
      }
    }
    return false;
  } finally {
    if (sending === tasks) sending = null;
    else if (mayBeSent) await withdraw(Object.keys(tasks));
    unsent = "";
    draw();
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

/** Fill the form as it was for the pictures that are shown, of which one field may differ. */
function refill(asked) {
  fill(asked, cards.length > 1 ? differing(asked) : null);
  if (asked.compare) $("differs").value = differing(asked);
}

// ---------------------------------------------------------------- the queue, and what is wrong

function warn(text) {
  if ($("trouble").textContent !== text) $("trouble").textContent = text;
}

async function look() {
  try {
    const waiting = Object.values(await call("GET", "queue")).reduce((sum, each) => sum + each, 0);
    $("queue").textContent = waiting === 1 ? "1 task waits" : `${waiting || "No"} tasks wait`;
    warn(unsent);
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
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) cancel();
});
$("compare").addEventListener("click", () => submit($("differs").value));
$("cancel").addEventListener("click", cancel);
$("again").addEventListener("click", () =>
  refill({ ...cards[0].asked, seed: cards[0].seed ?? cards[0].asked.seed }),
);
$("look").addEventListener("input", () => {
  lookBack();
  for (const card of cards) card.lookBack($("look").valueAsNumber);
});
look();
await models.loaded;
addEventListener("popstate", () => open());
open();
