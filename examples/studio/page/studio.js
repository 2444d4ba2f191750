// The studio's page: submits tasks, follows their events, and shows what these say.
// What comes from outside is set as text, never as HTML. The tasks stand in the URL (?task=a,b),
// so a reload or another tab shows the same.

const SIDE_BY_SIDE = [0, 0.5, 0.75, 1];
const PREVIEWS = 25; // of a task, at most, where the number of steps is known
const PATIENCE_MS = 5000; // before a word on a task that no worker takes
const LOOK_MS = 2000; // between two looks at the queue
const ANSWER_MS = 5000; // for the backend to answer

const REDIS_AWAY =
  "Redis does not answer. What workers have begun goes on; this page does, too, when Redis is back.";
const BACKEND_AWAY =
  "The studio’s backend does not answer: has it ended? This page goes on when it is back.";

const $ = (id) => document.getElementById(id);
const form = $("form");
const seconds = (value) => `${value.toFixed(1)} s`;
const pathOf = (ids) => `tasks/${ids.map(encodeURIComponent).join(",")}`;
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Nothing can be done now, and the same may work later. */
class Trouble extends Error {}

/** The backend will have none of it. */
class Refused extends Error {
  constructor(told, code) {
    super(told.detail ?? `The backend failed (${code}).`);
    this.faults = told.faults ?? [];
  }
}

async function call(method, path, body) {
  const options = { method, signal: AbortSignal.timeout(ANSWER_MS) };
  if (body) {
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(body);
  }
  let reply, told;
  try {
    reply = await fetch(path, options);
    told = await reply.text();
  } catch (error) {
    throw new Trouble(error.name === "TimeoutError" ? REDIS_AWAY : BACKEND_AWAY);
  }
  if (reply.status === 503) throw new Trouble(REDIS_AWAY);
  const isJson = reply.headers.get("Content-Type") === "application/json";
  if (!reply.ok) throw new Refused(isJson ? JSON.parse(told) : {}, reply.status);
  return JSON.parse(told);
}

// ---------------------------------------------------------------- one task

/** What each event says of its task, in words. */
const WORDS = {
  queued: ({ position }) => (position ? `Waiting, ${position} before it` : "Waiting for a worker"),
  started: (event) =>
    event.resumed_from_step === null
      ? `Taken by a worker on ${event.device}`
      : `Taken by a worker on ${event.device}, from step ${event.resumed_from_step} on`,
  loading: (event) => `The worker loads the model, since ${seconds(event.seconds_so_far)}`,
  progress: (event) =>
    `Step ${event.step} of ${event.total_steps}` +
    (event.eta_s === null ? "" : `, ${seconds(event.eta_s)} left`),
  uploading: () => "Storing the picture",
  requeued: (event) => `Given back to the queue: ${event.reason}`,
  succeeded: (event) => `Done in ${seconds(event.result.timings.total_s)}`,
  failed: (event) => `Failed (${event.error.code}): ${event.error.message}`,
  cancelled: (event) => `Cancelled at step ${event.step}`,
  expired: (event) => `Its deadline passed at step ${event.step}`,
};
const ENDS = ["succeeded", "failed", "cancelled", "expired", "lost"];
const ENDED = {
  failed: "It failed.",
  cancelled: "Cancelled.",
  expired: "Its deadline passed.",
  lost: "There is nothing to show.",
};
const WAITS = ["queued", "requeued"];

class Card {
  constructor(id) {
    this.id = id;
    this.seq = 0; // of the newest event
    this.type = null; // of the newest event
    this.done = 0; // share of the steps
    this.asked = {}; // the request, as far as it is known
    this.pictures = []; // previews, then the picture: {label, url}
    this.turns = this.shown = 0; // of the pictures: the last asked for, the last loaded
    this.since = performance.now(); // when the last event came
    this.node = $("card").content.firstElementChild.cloneNode(true);
    this.draw({});
  }

  get isOver() {
    return ENDS.includes(this.type);
  }

  get isForgotten() {
    return WAITS.includes(this.type) && performance.now() - this.since > PATIENCE_MS;
  }

  set(part, text) {
    this.node.querySelector(`.${part}`).textContent = text;
  }

  /** Take notice of an event; one that came before changes nothing. */
  hear(event) {
    if (event.seq <= this.seq) return;
    const { seq, type } = event;
    this.remark("");
    Object.assign(this, { seq, type, since: performance.now() });
    this.asked = { ...event.result?.parameters, ...event.metadata };
    if (type === "progress") {
      this.done = event.step / event.total_steps;
      if (event.preview) {
        this.pictures.push({ label: `step ${event.step}`, url: event.preview });
        this.show(event.preview);
      }
    }
    if (type === "succeeded") this.finish(event.result);
    this.set("state", WORDS[type]?.(event) ?? type);
    this.draw(event.result ?? {});
  }

  finish({ images: [image], truncated }) {
    this.done = 1;
    this.seed = image.seed;
    if (image.url === null) {
      this.remark(`The worker makes no links (SAG_PRESIGN_S is 0). The file is ${image.key}.`);
      return;
    }
    this.pictures.push({ label: "finished", url: image.url });
    this.show(image.url).then((shown) => {
      if (shown) this.node.dataset.finished = "";
      else this.remark("The picture can’t be loaded: its link has run out, or S3 is away.");
      if (shown && truncated.length)
        this.remark(`Too long for the model, without effect: ${truncated.join(", ")}`);
    });
  }

  /** Show a picture once it is loaded, unless a later one was loaded before. */
  async show(url) {
    const turn = ++this.turns;
    const next = new Image();
    next.src = url;
    try {
      await next.decode();
    } catch {
      return false;
    }
    if (turn > this.shown) {
      this.shown = turn;
      const picture = this.node.querySelector(".picture");
      picture.src = url;
      picture.hidden = false;
      // A tiny picture is shown as the pixels that it is; previews are enlarged already.
      picture.classList.toggle("tiny", next.naturalWidth < 128);
    }
    return true;
  }

  lookBack(place) {
    const picture = this.pictures[place] ?? this.pictures.at(-1);
    if (picture) this.show(picture.url);
  }

  /** There is no such task. */
  lose(why) {
    this.type = "lost";
    this.set("state", why);
    this.draw({});
  }

  remark(text) {
    this.set("remark", text);
  }

  draw({ timings, batch, scheduler }) {
    const { prompt = "", sag_scale, num_inference_steps, guidance_scale } = this.asked;
    const seed = this.seed ?? this.asked.seed;
    this.node.dataset.type = this.type ?? "";
    this.set("name", sag_scale === undefined ? "Picture" : `SAG ${sag_scale}`);
    this.node.querySelector(".picture").alt = String(prompt);
    this.node.querySelector("progress").value = this.done;
    const facts = { Seed: seed, Steps: num_inference_steps, Guidance: guidance_scale };
    if (timings) {
      const { queued_s, load_s, encode_s, denoise_s, decode_s, upload_s } = timings;
      Object.assign(facts, {
        Sampler: scheduler,
        Batch: `${batch.toFixed(1)} tasks a step`,
        Waited: seconds(queued_s + load_s),
        Denoised: seconds(encode_s + denoise_s),
        Decoded: seconds(decode_s),
        Stored: seconds(upload_s),
      });
    }
    const rows = Object.entries(facts).filter(([, value]) => value !== undefined);
    this.node.querySelector(".facts").replaceChildren(...rows.map(row));
  }
}

function row([name, value]) {
  const [line, term, detail] = ["div", "dt", "dd"].map((tag) => document.createElement(tag));
  line.className = name.toLowerCase();
  term.textContent = name;
  detail.textContent = value;
  line.append(term, detail);
  return line;
}

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
