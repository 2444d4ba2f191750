"""A task's files: the inputs that it refers to, and its pictures with their manifest."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from api_contracts.result import GenerationResult, ImageResult, Timings

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.engine.job import Job, JobResult, Picture
    from worker.execution.resolved_request import ResolvedRequest
    from worker.record.task_record import Claim
    from worker.storage import Storage


class Artifacts:
    """Fetches what a job needs and stores what it gives."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def fetch(self, order: ResolvedRequest) -> Job:
        """The engine's job, with the objects that the request refers to."""
        references = {
            name: getattr(order.complete, name)
            for name in ("latents", "prompt_embeds", "negative_prompt_embeds")
        }
        inputs = {
            name: self._storage.get_input(reference.s3, name)
            for name, reference in references.items()
            if reference is not None
        }
        return order.job(inputs)

    def store(
        self,
        claim: Claim,
        order: ResolvedRequest,
        made: JobResult,
        begun_s: float,
        is_ours: Callable[[], bool],
    ) -> GenerationResult:
        """Encode and upload every picture, one at a time, the manifest last.

        `begun_s` is the time of the claim on the monotonic clock. Raises `SupersededError` when
        `is_ours` returns False.
        """
        storing_s = time.monotonic()
        images = [
            self._store_one(order, made, number, picture, is_ours)
            for number, picture in enumerate(made.pictures)
        ]
        queued_s = claim.claimed_at_s - claim.submitted_at_s
        ended_s = time.monotonic()
        result = GenerationResult(
            images=images,
            manifest_key=self._storage.key(claim.task_id, "manifest.json"),
            timings=Timings(
                queued_s=round(queued_s + made.timing.wait_s, 4),
                load_s=round(made.timing.load_s, 4),
                encode_s=round(made.timing.encode_s, 4),
                denoise_s=round(made.timing.denoise_s, 4),
                decode_s=round(made.timing.decode_s, 4),
                upload_s=round(ended_s - storing_s, 4),
                total_s=round(queued_s + ended_s - begun_s, 4),
            ),
            batch=made.batch,
            model=order.request.model,
            scheduler=made.scheduler,
            parameters=_used(order, made),
            truncated=list(made.truncated),
            versions=made.versions,
        )
        manifest = result.model_dump(mode="json") | {"task_id": claim.task_id}
        for image in manifest["images"]:
            del image["url"]  # it runs out; the manifest stays
        data = json.dumps(manifest, indent=1, sort_keys=True).encode()
        self._storage.put(result.manifest_key, data, "application/json", is_ours)
        return result

    def _store_one(
        self,
        order: ResolvedRequest,
        made: JobResult,
        number: int,
        picture: Picture,
        is_ours: Callable[[], bool],
    ) -> ImageResult:
        from worker.execution import image_files  # noqa: PLC0415  # numpy and Pillow, with the first picture

        output_type = order.complete.output_type
        ending, content_type = image_files.FORMATS[output_type]
        origin = {
            "request": order.origin,
            "parameters": _used(order, made),
            "index": number,
            "seed": picture.seed,
            "versions": made.versions,
        }
        data = image_files.encode(picture, output_type, origin)
        key = self._storage.key(order.task_id, f"{number}.{ending}")
        return ImageResult(
            key=key,
            sha256=self._storage.put(key, data, content_type, is_ours),
            url=self._storage.presign(key),
            bytes=len(data),
            width=picture.width,
            height=picture.height,
            seed=picture.seed,
            nsfw_content_detected=picture.nsfw_content_detected,
        )


def _used(order: ResolvedRequest, made: JobResult) -> dict[str, Any]:
    """The parameters with what only the model knew: its own size and scheduler."""
    first = made.pictures[0]
    own = {"height": first.height, "width": first.width, "scheduler": made.scheduler}
    return order.parameters | own
