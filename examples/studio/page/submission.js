// From the form's fields to tasks of the backend.

import { call, pathOf, pause, Refused, Trouble } from "./backend.js";
import { SIDE_BY_SIDE } from "./compare.js";

const PREVIEWS = 25; // of a task, at most, where the number of steps is known

/** Requests by the ids of their tasks: one, or one for each value of the field that differs. */
export function tasksOf(asked, field, hasPreviews) {
  const seed = crypto.getRandomValues(new Uint32Array(1))[0];
  const every = hasPreviews && Math.ceil((asked.num_inference_steps ?? 1) / PREVIEWS);
  const differences = field ? SIDE_BY_SIDE[field].values.map((each) => ({ [field]: each })) : [{}];
  const tasks = differences.map((difference) => {
    const request = { seed, ...asked, ...difference };
    const texts = Object.entries(request).map(([name, value]) => [name, textOf(value)]);
    const metadata = Object.fromEntries(texts);
    if (field) metadata.compare = field;
    return [newId(), { ...request, preview_every: Number(every), metadata }];
  });
  return Object.fromEntries(tasks);
}

const textOf = (value) => (typeof value === "string" ? value : JSON.stringify(value));

/** Store the pictures of fields, and add their keys; those that have one are stored already. */
export async function store(blobs, keys) {
  try {
    for (const [field, blob] of Object.entries(blobs))
      keys[field] ??= (await call("POST", "inputs", blob)).key;
  } catch (error) {
    if (error instanceof Refused && error.faults.length === 0)
      error.faults = [{ where: "image", what: `is not stored: ${error.message}` }];
    throw error;
  }
}

/** The tasks with references to stored pictures. */
export function withPictures(tasks, keys) {
  const references = Object.entries(keys).map(([field, key]) => [field, { s3: key }]);
  const refer = ([id, task]) => {
    const metadata = { ...task.metadata, ...keys };
    return [id, { ...task, ...Object.fromEntries(references), metadata }];
  };
  return Object.fromEntries(Object.entries(tasks).map(refer));
}

/** Cancel what was submitted although the submission was cancelled: it was under way. */
export async function withdraw(ids) {
  for (let left = ids; left.length > 0; ) {
    try {
      await call("DELETE", pathOf(left.slice(0, 1)));
    } catch (error) {
      if (error instanceof Trouble) {
        await pause();
        continue;
      }
    }
    left = left.slice(1); // cancelled, or there is no such task
  }
}

function newId() {
  const bytes = [...crypto.getRandomValues(new Uint8Array(16))];
  return bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
