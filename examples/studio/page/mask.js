// Painting a mask on a picture, by pointer, touch or keyboard.

import { canvasOf } from "./pixels.js";

const VIEW_PX = 768; // longest side of what is shown of a small picture: its outlines are sharp
const STRIPE_PX = 24; // seen on every colour
const TINT = 0.72; // how much the mask covers

/** Shows a picture with its mask on a canvas, and changes the mask. */
export class Painter {
  /** `brush()` gives the brush's diameter as a share of the longer side, `isEraser()` what it does. */
  constructor(view, brush, isEraser) {
    Object.assign(this, { view, brush, isEraser });
    this.changed = () => {}; // called after each stroke
    this.place = null; // of the brush, in pixels of the picture
    this.isStroke = false;
    this.isWaiting = false; // for the next frame
    const hear = (type, heard) => view.addEventListener(type, heard.bind(this));
    hear("pointerdown", this.#down);
    hear("pointermove", this.#move);
    for (const type of ["pointerup", "pointercancel"]) hear(type, this.#up);
    for (const type of ["pointerleave", "blur"]) hear(type, this.#leave);
    hear("keydown", this.#key);
    hear("focus", this.#focus);
  }

  /** Show a picture with a mask of its size, white where it is painted and else transparent. */
  show(picture, mask) {
    Object.assign(this, { picture, mask, place: null });
    const times = Math.max(1, Math.round(VIEW_PX / Math.max(picture.width, picture.height)));
    this.view.width = picture.width * times;
    this.view.height = picture.height * times;
    this.draw();
  }

  clear() {
    this.mask.getContext("2d").clearRect(0, 0, this.mask.width, this.mask.height);
    this.draw();
  }

  /** Share of the picture that is painted. */
  get share() {
    const { width, height } = this.mask;
    const { data } = this.mask.getContext("2d").getImageData(0, 0, width, height);
    let count = 0;
    for (let place = 3; place < data.length; place += 4) count += data[place] > 127;
    return count / (width * height);
  }

  /** The mask as workers take it: white is painted, black is not. */
  blackAndWhite() {
    const canvas = canvasOf(this.mask.width, this.mask.height);
    const context = canvas.getContext("2d");
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(this.mask, 0, 0);
    return canvas;
  }

  get #size() {
    return Math.max(1, this.brush() * Math.max(this.mask.width, this.mask.height));
  }

  /** Paint from the brush's place to another. */
  #stroke({ x, y }) {
    const context = this.mask.getContext("2d");
    const from = this.place ?? { x, y };
    context.globalCompositeOperation = this.isEraser() ? "destination-out" : "source-over";
    context.lineWidth = this.#size;
    context.strokeStyle = context.fillStyle = "#fff";
    context.beginPath();
    context.moveTo(from.x, from.y);
    context.lineTo(x, y);
    context.stroke();
    context.beginPath(); // a line without a length has no round ends
    context.arc(x, y, this.#size / 2, 0, 2 * Math.PI);
    context.fill();
  }

  #at({ clientX, clientY }) {
    const { left, top, width, height } = this.view.getBoundingClientRect();
    return {
      x: ((clientX - left) / width) * this.mask.width,
      y: ((clientY - top) / height) * this.mask.height,
    };
  }

  #down(event) {
    if (event.button !== 0 || !event.isPrimary) return; // a second finger paints nothing
    event.preventDefault(); // selects no text
    this.view.focus({ preventScroll: true });
    this.view.setPointerCapture(event.pointerId);
    this.isStroke = true;
    this.place = null;
    this.#go([this.#at(event)]);
  }

  #move(event) {
    if (!event.isPrimary) return;
    const events = event.getCoalescedEvents?.() ?? [];
    this.#go((events.length ? events : [event]).map((each) => this.#at(each)));
  }

  #go(places) {
    for (const place of places) {
      if (this.isStroke) this.#stroke(place);
      this.place = place;
    }
    this.draw();
  }

  #up() {
    if (!this.isStroke) return;
    this.isStroke = false;
    this.changed();
  }

  #leave() {
    this.place = null;
    this.draw();
  }

  #focus() {
    this.place ??= { x: this.mask.width / 2, y: this.mask.height / 2 };
    this.draw();
  }

  #key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (!(event.key in steps) && event.key !== " ") return;
    event.preventDefault(); // the page does not scroll
    const [right, down] = steps[event.key] ?? [0, 0];
    const step = Math.max(1, this.#size / 3);
    const { width, height } = this.mask;
    this.#focus();
    const within = (value, most) => Math.min(most, Math.max(0, value));
    const place = {
      x: within(this.place.x + right * step, width),
      y: within(this.place.y + down * step, height),
    };
    const isPainted = event.key === " " || event.shiftKey;
    if (isPainted) this.#stroke(place);
    this.place = place;
    this.draw();
    if (isPainted) this.changed();
  }

  /** Draw the picture, the mask and the brush in the next frame. */
  draw() {
    if (this.isWaiting || !this.picture) return;
    this.isWaiting = true;
    requestAnimationFrame(() => {
      this.isWaiting = false;
      this.#drawNow();
    });
  }

  #drawNow() {
    const { width, height } = this.view;
    const context = this.view.getContext("2d");
    context.imageSmoothingEnabled = false; // a pixel is shown as one
    context.drawImage(this.picture, 0, 0, width, height);
    context.globalAlpha = TINT;
    context.drawImage(this.#striped(width, height), 0, 0);
    context.globalAlpha = 1;
    if (!this.place) return;
    const times = width / this.mask.width;
    context.beginPath();
    context.arc(this.place.x * times, this.place.y * times, (this.#size * times) / 2, 0, 2 * Math.PI);
    for (const [colour, line] of [["#000", 5], ["#fff", 2.5]]) {
      context.strokeStyle = colour;
      context.lineWidth = line;
      context.stroke();
    }
  }

  /** The mask in stripes of the page's accent. */
  #striped(width, height) {
    const canvas = canvasOf(width, height);
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(this.mask, 0, 0, width, height);
    context.globalCompositeOperation = "source-in";
    const style = getComputedStyle(this.view);
    context.fillStyle = style.getPropertyValue("--accent");
    context.fillRect(0, 0, width, height);
    context.globalCompositeOperation = "source-atop";
    context.strokeStyle = style.getPropertyValue("--on-accent");
    context.lineWidth = STRIPE_PX / 4;
    context.beginPath();
    for (let x = -height; x < width; x += STRIPE_PX) {
      context.moveTo(x, height);
      context.lineTo(x + height, 0);
    }
    context.stroke();
    return canvas;
  }
}
