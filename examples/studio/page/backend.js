// What the page asks of its backend (app.py), and what can come of it.

const ANSWER_MS = 5000; // for the backend to answer

const REDIS_AWAY =
  "Redis does not answer. What workers have begun goes on; this page does, too, when Redis is back.";
const BACKEND_AWAY =
  "The studio’s backend does not answer: has it ended? This page goes on when it is back.";

export const pathOf = (ids) => `tasks/${ids.map(encodeURIComponent).join(",")}`;

/** Nothing can be done now, and the same may work later. */
export class Trouble extends Error {}

/** The backend will have none of it. */
export class Refused extends Error {
  constructor(told, code) {
    super(told.detail ?? `The backend failed (${code}).`);
    this.faults = told.faults ?? [];
  }
}

/** The answer as an object; raises `Trouble` or `Refused`. */
export async function call(method, path, body) {
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
