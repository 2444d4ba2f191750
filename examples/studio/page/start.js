// The picture to start from: chosen, dropped, or fetched again for an earlier task. It is shown and
// sent at the size that it is drawn in, with the mask that is painted on it.

import { call, fetchPicture, pause, Refused } from "./backend.js";
import { Painter } from "./mask.js";
import { blobOf, canvasOf, filledWith, middle, sizeFor, transparent } from "./pixels.js";

const MAX_FILE_BYTES = 64 * 2 ** 20;

const $ = (id) => document.getElementById(id);
class Start extends EventTarget {
  constructor() {
    super();
    this.source = null; // the picture as it came
    this.name = ""; // of its file
    this.share = 0; // of it that is painted
    this.turn = 0; // of the pictures that were asked for
    this.side = Number($("side").value); // longest side unless another is set
    this.painter = new Painter(
      $("canvas"),
      () => $("brush").valueAsNumber / 100,
      () => $("erase").ariaPressed === "true",
    );
    this.painter.changed = () => this.tell();
  }

  /** Whether there is one, for a model that takes it. */
  get isThere() {
    return this.source !== null && !$("start").hidden;
  }

  /** What it holds, in a few words. */
  get gist() {
    if (!this.isThere) return "";
    const parts = [this.name, `strength ${Number($("strength").value).toFixed(2)}`];
    if (this.share > 0) parts.push(`${this.percent} painted`);
    return parts.join(", ");
  }

  get percent() {
    return this.share < 0.01 ? "under 1 %" : `${Math.round(100 * this.share)} %`;
  }

  /** Take a file of the user's; anything that the browser can show. */
  async take(file) {
    const turn = ++this.turn;
    $("image-fault").textContent = "";
    $("start").open = true;
    let source;
    try {
      if (file.size > MAX_FILE_BYTES) throw new Error("too large");
      source = await createImageBitmap(file);
    } catch (error) {
      const why = file.size > MAX_FILE_BYTES ? "larger than 64 MiB" : "no picture that can be shown";
      if (turn === this.turn) $("image-fault").textContent = `${file.name} is ${why}.`;
      return;
    }
    if (turn === this.turn) this.#set(source, file.name);
  }

  /** Show what an earlier task started from, or nothing if it did from noise. */
  async fetch({ image, mask_image }) {
    const keys = [image, mask_image].filter(Boolean).map((each) => each.s3 ?? each);
    const turn = ++this.turn;
    $("image-fault").textContent = "";
    if (keys.length === 0) {
      this.remove();
      return;
    }
    try {
      const [source, mask] = await Promise.all(keys.map(fetchPicture));
      if (turn !== this.turn) return;
      $("side").value = Math.max(...sizeFor(source, Math.max(source.width, source.height)));
      this.#set(source, "the same picture", mask && transparent(mask));
      $("start").open = true;
    } catch (error) {
      if (turn !== this.turn) return;
      this.remove();
      $("image-fault").textContent = `The picture that it started from is ${error.message}.`;
      $("start").open = true;
    }
  }

  #set(source, name, mask) {
    Object.assign(this, { source, name, part: null });
    this.resize(mask);
  }

  /** Draw it at the size that is set; the mask stays where it was painted. */
  resize(mask) {
    if (!this.isThere || !$("side").validity.valid) return;
    const [width, height] = sizeFor(this.source, $("side").valueAsNumber);
    const part = middle(this.source, width, height);
    const painted = canvasOf(width, height);
    const scale = width / part.width;
    const former = mask ? part : this.part;
    if (former)
      painted
        .getContext("2d")
        .drawImage(
          mask ?? this.painter.mask,
          (former.x - part.x) * scale,
          (former.y - part.y) * scale,
          former.width * scale,
          former.height * scale,
        );
    this.part = part;
    this.painter.show(filledWith(this.source, part, width, height), painted);
    $("side-about").textContent = `It is drawn with ${width} × ${height} pixels.`;
    this.tell();
  }

  remove() {
    this.turn++;
    this.source = null;
    $("image").value = "";
    $("side").value = this.side;
    this.tell();
  }

  clear() {
    this.painter.clear();
    this.tell();
  }

  /** The files of the request's fields: the picture, and the mask if one is painted. */
  async blobs() {
    if (!this.isThere) return {};
    const image = await blobOf(this.painter.picture);
    if (this.share === 0) return { image };
    return { image, mask_image: await blobOf(this.painter.blackAndWhite()) };
  }

  /** Something has changed. */
  tell() {
    this.share = this.isThere ? this.painter.share : 0;
    for (const id of ["canvas", "exchange", "tools"]) $(id).hidden = !this.isThere;
    $("drop").hidden = this.isThere;
    $("painted").textContent = this.share > 0 ? `${this.percent} painted` : "none: all is drawn anew";
    $("clear").disabled = this.share === 0;
    this.dispatchEvent(new Event("change"));
  }

  /** Ask the backend for its defaults until it answers; without a bucket there are no pictures. */
  async ask() {
    try {
      const { side_px } = await call("GET", "inputs");
      this.side = side_px;
      if (!this.isThere) $("side").value = side_px;
    } catch (error) {
      if (!(error instanceof Refused)) {
        await pause();
        return this.ask();
      }
      $("image").disabled = true;
      $("drop").textContent = error.message;
    }
  }
}

export const start = new Start();
start.ask();

$("image").addEventListener("change", ({ target }) => {
  if (target.files.length) start.take(target.files[0]);
});
$("side").addEventListener("input", () => start.resize());
$("remove").addEventListener("click", () => {
  start.remove();
  $("image").focus();
});
$("clear").addEventListener("click", () => start.clear());
$("erase").addEventListener("click", ({ target }) => {
  target.ariaPressed = String(target.ariaPressed !== "true");
});
const showBrush = () => ($("brush-value").textContent = `${$("brush").value} %`);
$("brush").addEventListener("input", showBrush);
showBrush();

// Anywhere on the page: a picture that misses its place would replace the page.
const hasFile = ({ dataTransfer }) => dataTransfer?.types.includes("Files");
const mark = (isDragged) => document.body.classList.toggle("dragged", isDragged);
addEventListener("dragover", (event) => {
  if (!hasFile(event)) return;
  event.preventDefault();
  mark(true);
});
addEventListener("dragleave", ({ relatedTarget }) => relatedTarget ?? mark(false));
addEventListener("drop", (event) => {
  if (!hasFile(event)) return;
  event.preventDefault();
  mark(false);
  if (!$("image").matches(":disabled") && event.dataTransfer.files.length)
    start.take(event.dataTransfer.files[0]);
});
