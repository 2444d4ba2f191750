// What the page asks of its backend (app.py), and what can come of it.

const ANSWER_MS = 5000; // for the backend to answer
const UPLOAD_MS = 60000; // for a picture to be stored
const PAUSE_MS = 2000; // before the same is asked again

const REDIS_AWAY =
  "Redis does not answer. What workers have begun goes on; this page does, too, when Redis is back.";
const BUCKET_AWAY =
  "The bucket for pictures does not answer. This page sends the picture again until it does.";
const BACKEND_AWAY =
  "The studio’s backend does not answer: has it ended? This page goes on when it is back.";

export const pathOf = (ids) => `tasks/${ids.map(encodeURIComponent).join(",")}`;

export const pause = () => new Promise((resolve) => setTimeout(resolve, PAUSE_MS));

/** Nothing can be done now, and the same may work later. */
export class Trouble extends Error {}

/** The backend will have none of it. */
export class Refused extends Error {
  constructor(told, code) {
    super(told.detail ?? `The backend failed (${code}).`);
    this.faults = told.faults ?? [];
  }
}

/** The answer as an object; raises `Trouble` or `Refused`. A body is a picture or an object. */
export async function call(method, path, body) {
  const isPicture = body instanceof Blob;
  const away = isPicture ? BUCKET_AWAY : REDIS_AWAY;
  const options = { method, signal: AbortSignal.timeout(isPicture ? UPLOAD_MS : ANSWER_MS) };
  if (body) {
    options.headers = { "Content-Type": isPicture ? body.type : "application/json" };
    options.body = isPicture ? body : JSON.stringify(body);
  }
  let reply, told;
  try {
    reply = await fetch(path, options);
    told = await reply.text();
  } catch (error) {
    throw new Trouble(error.name === "TimeoutError" ? away : BACKEND_AWAY);
  }
  if (reply.status === 503) throw new Trouble(away);
  const isJson = reply.headers.get("Content-Type") === "application/json";
  if (!reply.ok) throw new Refused(isJson ? JSON.parse(told) : {}, reply.status);
  return JSON.parse(told);
}

const KEY = /^studio\/[0-9a-f]{32}\.\w+$/; // of what the backend stored

/** A picture that was stored for an earlier task; raises an error if it can't be had. */
export async function fetchPicture(key) {
  if (!KEY.test(key)) throw new Error("not this studio's");
  const reply = await fetch(`inputs/${key}`);
  if (!reply.ok) throw new Error("not kept any more");
  return createImageBitmap(await reply.blob());
}
