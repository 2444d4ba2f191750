// The adapters of a model (LoRA): which of them a picture is made with, and how much each weighs.

const $ = (id) => document.getElementById(id);

/** `loras` of a task, as its metadata (JSON) or its parameters say it. */
export function lorasOf({ loras }) {
  try {
    const found = typeof loras === "string" ? JSON.parse(loras) : loras;
    return Array.isArray(found) ? found.filter((each) => typeof each?.name === "string") : [];
  } catch {
    return []; // the metadata is another program's
  }
}

/** Names and scales in a few words; a scale that is the model's own is left out. */
export const inWords = (loras) =>
  loras.map(({ name, scale }) => `${name} ${scale ?? ""}`.trim()).join(", ");

/** The adapters of one model and their rows on the page, which keep what is chosen. */
export class Adapters {
  constructor(names) {
    this.rows = new Map(names.map((name) => [name, new Row(name)]));
  }

  /** Show these in place of another model's, without the faults of an earlier request. */
  show() {
    for (const { fault } of this.rows.values()) fault.textContent = "";
    $("adapters").hidden = this.rows.size === 0;
    $("adapter-rows").replaceChildren(...[...this.rows.values()].map(({ node }) => node));
  }

  /** `loras` of the request. */
  get asked() {
    return [...this.rows]
      .filter(([, row]) => row.use.checked)
      .map(([name, { scale }]) => (scale.value ? { name, scale: Number(scale.value) } : { name }));
  }

  fill(asked) {
    const scales = new Map(lorasOf(asked).map(({ name, scale }) => [name, scale ?? ""]));
    for (const [name, row] of this.rows) row.fill(scales.has(name), scales.get(name) ?? "");
  }

  /** Where a fault of `loras` belongs: to one adapter, or to all of them. */
  placeOf(where, loras) {
    const [, number, part] = where.match(/^loras\[(\d+)\]\.?(\w*)/) ?? [];
    const row = this.rows.get(loras[number]?.name);
    if (!row) return { place: $("loras-fault"), field: $("adapters").querySelector("input") };
    return { place: row.fault, field: part === "scale" ? row.scale : row.use };
  }
}

class Row {
  constructor(name) {
    this.node = $("adapter").content.firstElementChild.cloneNode(true);
    [this.use, this.scale] = this.node.querySelectorAll("input");
    this.fault = this.node.querySelector(".fault");
    this.fault.id = `adapter-${name}-fault`;
    this.node.querySelector(".name").textContent = name;
    this.scale.ariaLabel = `Scale of ${name}`;
    for (const field of [this.use, this.scale])
      field.setAttribute("aria-describedby", this.fault.id);
    this.use.addEventListener("change", () => (this.scale.disabled = !this.use.checked));
  }

  fill(isUsed, scale) {
    this.use.checked = isUsed;
    this.scale.disabled = !isUsed;
    this.scale.value = scale;
  }
}
