// The models that the workers serve: the choice among them, and what each of them takes.

import { Adapters } from "./adapters.js";
import { call, pause } from "./backend.js";

const DEFAULT = "default"; // the model of a request that names none

const $ = (id) => document.getElementById(id);

/** The class of a task's picture as its metadata or its parameters say it; null is none. */
function labelOf({ class_labels }) {
  const label = [class_labels].flat()[0];
  return label === "null" ? null : label;
}

/** The field for the class: a list of names, or a number where there are none. */
function classField(classes) {
  const names = classes || []; // none at all: no class is the only choice
  const isList = Array.isArray(names);
  const field = document.createElement(isList ? "select" : "input");
  if (isList) {
    const options = names.map((name, label) => new Option(name, label, label === 0, label === 0));
    field.append(new Option("No class", ""), ...options);
  } else {
    const bounds = { type: "number", min: 0, max: names - 1, inputMode: "numeric" };
    Object.assign(field, { ...bounds, placeholder: `none, or 0 to ${names - 1}` });
  }
  Object.assign(field, { id: "class_labels", name: "class_labels" });
  field.setAttribute("aria-describedby", "class_labels-fault");
  return field;
}

class Models extends EventTarget {
  constructor() {
    super();
    this.all = []; // in the order of the settings
    this.loaded = this.#load();
  }

  async #load() {
    for (const { name, classes, adapters } of await answer("models")) {
      const field = classes === null ? null : classField(classes);
      this.all.push({ name, classes, field, adapters: new Adapters(adapters) });
      $("model").append(new Option(`${name}: from a ${field ? "class" : "prompt"}`, name));
    }
    $("choice").hidden = this.all.length === 1;
    this.#show();
    $("model").addEventListener("change", () => this.#show());
  }

  get chosen() {
    return this.#named($("model").value);
  }

  /** Whether the chosen model draws classes and not prompts. */
  get drawsClasses() {
    return Boolean(this.chosen?.field);
  }

  /** The field for what is to be drawn. */
  get subject() {
    return this.chosen?.field ?? $("prompt");
  }

  #named(name) {
    return this.all.find((model) => model.name === (name ?? DEFAULT));
  }

  /** Show what the chosen model takes. The rest is hidden, and disabled: so it is not sent. */
  #show() {
    const { field, adapters } = this.chosen;
    $("from-prompt").hidden = $("prompt").disabled = this.drawsClasses;
    $("from-class").hidden = !this.drawsClasses;
    $("class").replaceChildren(...(field ? [field] : []));
    $("start").hidden = $("start-fields").disabled = this.drawsClasses;
    adapters.show();
    this.dispatchEvent(new Event("change"));
  }

  /** The model's own fields of the request, beside those that the form has by their names. */
  get asked() {
    const loras = this.chosen.adapters.asked;
    return {
      ...(this.drawsClasses && this.subject.value === "" ? { class_labels: null } : {}),
      ...(loras.length ? { loras } : {}),
    };
  }

  /** Choose the model of a task, if the page has it, with the task's class and adapters. */
  fill(asked) {
    const model = this.#named(asked.model);
    if (model) $("model").value = model.name;
    this.#show();
    const { field, adapters } = this.chosen;
    if (field) field.value = labelOf(asked) ?? "";
    if (field?.selectedIndex === -1) field.value = ""; // there is no such class
    adapters.fill(asked);
  }

  /** What a task draws, in words; undefined where that is not known. */
  subjectOf(asked) {
    if ((asked.prompt ?? null) !== null) return String(asked.prompt);
    const label = labelOf(asked);
    if (label === undefined) return undefined;
    const { classes = null } = this.#named(asked.model) ?? {};
    if (label === null) return classes === null ? "" : "no class";
    return (Array.isArray(classes) && classes[Number(label)]) || `class ${label}`;
  }
}

/** What the backend answers, when it does. */
async function answer(path) {
  for (;;) {
    try {
      return await call("GET", path);
    } catch {
      await pause();
    }
  }
}

export const models = new Models();
