// Submits one picture as a Celery task and follows its events to the end.
import { randomUUID } from "node:crypto";
import celery from "celery-node";
import { createClient } from "redis";
import type { Event } from "./contract/event.js";
import type { GenerationRequest } from "./contract/request.js";

const url = process.env.SAG_BROKER_URL ?? "redis://127.0.0.1:6379/0";
const namespace = process.env.SAG_NAMESPACE ?? "sag";
const request: GenerationRequest = {
  prompt: process.argv[2] ?? "a large red star on a blue background",
  metadata: { from: "node" },
};

// The list of priority 5: without the last three characters it would be priority 0, before all.
const tasks = celery.createClient(url, url, "generate.default\u0006\u00165");
const taskId = randomUUID();
tasks.sendTask("sag.generate", [], { request } as never, taskId);

const redis = await createClient({ url }).connect();
const stream = `${namespace}:{${taskId}}:events`;
let end: Event | undefined;
for (let last = "0-0"; end === undefined; ) {
  const [news] = (await redis.xRead({ key: stream, id: last }, { BLOCK: 5000 })) ?? [];
  for (const { id, message } of news?.messages ?? []) {
    last = id;
    const event = JSON.parse(message.event) as Event;
    switch (event.type) {
      case "progress":
        console.log(`${event.step} of ${event.total_steps}`);
        break;
      case "succeeded":
      case "failed":
      case "cancelled":
      case "expired":
        end = event;
    }
  }
}
if (end.type === "succeeded") {
  for (const image of end.result.images) console.log(image.url ?? image.key);
} else {
  console.error(end.type === "failed" ? end.error.message : end.type);
  process.exitCode = 1;
}
await redis.close();
await tasks.disconnect();
