// One task on the page. What comes from outside is set as text, never as HTML.

import { inWords, lorasOf } from "./adapters.js";
import { differing, SIDE_BY_SIDE } from "./compare.js";
import { models } from "./models.js";

const PATIENCE_MS = 5000; // before a word on a task that no worker takes

const seconds = (value) => `${value.toFixed(1)} s`;

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

/** Few words for all tasks, which change seldom: they are read aloud. */
export function summary(cards) {
  const made = cards.filter((card) => card.type === "succeeded").length;
  const isOver = cards.every((card) => card.isOver);
  if (isOver && cards.length > 1) return `${made} of ${cards.length} pictures are done.`;
  if (isOver) return made ? "The picture is done." : ENDED[cards[0].type];
  if (cards.every((card) => card.isForgotten)) return "No worker has taken this yet.";
  const quarters = Math.floor((4 * cards.reduce((sum, card) => sum + card.done, 0)) / cards.length);
  const parts = ["Drawing.", "A quarter is drawn.", "Half is drawn.", "Three quarters are drawn."];
  if (cards.some((card) => card.done > 0)) return parts[quarters] ?? "Storing.";
  return cards.every((card) => WAITS.includes(card.type)) ? "Waiting for a worker." : "Begun.";
}

/** A task and its place on the page: hears its events, shows its pictures. */
export class Card {
  constructor(id) {
    this.id = id;
    this.seq = 0; // of the newest event
    this.type = null; // of the newest event
    this.done = 0; // share of the steps
    this.asked = {}; // the request, as far as it is known
    this.pictures = []; // previews, then the picture: {label, url}
    this.turns = this.shown = 0; // of the pictures: the last asked for, the last loaded
    this.since = performance.now(); // when the last event came
    this.node = document.getElementById("card").content.firstElementChild.cloneNode(true);
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
    // The last event of a task that its worker refused has no metadata.
    this.asked = { ...this.asked, ...event.result?.parameters, ...event.metadata };
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

  draw({ timings, batch, scheduler, parameters = this.asked }) {
    const { num_inference_steps, guidance_scale, image, strength, model } = this.asked;
    const seed = this.seed ?? this.asked.seed;
    const field = differing(this.asked);
    const value = this.asked[field];
    this.node.dataset.type = this.type ?? "";
    this.set("name", value === undefined ? "Picture" : `${SIDE_BY_SIDE[field].name} ${value}`);
    this.node.querySelector(".picture").alt = models.subjectOf(this.asked) ?? "";
    this.node.querySelector("progress").value = this.done;
    const facts = { Seed: seed, Steps: num_inference_steps, Guidance: guidance_scale };
    if (image) facts.Strength = strength;
    if (models.all.length > 1) facts.Model = model;
    facts.Adapters = inWords(lorasOf(parameters)) || undefined;
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
