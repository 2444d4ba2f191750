"""A task's files in S3: inputs that its request refers to, images and their manifest."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from api_contracts.result import GenerationResult, ImageResult, Timings
from worker.execution.resolved_request import PICTURES, TENSORS
from worker.job_control import STOP_CHECK_PERIOD_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker.engine.jobs.job import GeneratedImage, Job, JobResult
    from worker.execution.input_images import InputImage
    from worker.execution.resolved_request import ResolvedRequest
    from worker.job_control import Control
    from worker.record.claim import Claim
    from worker.storage import Storage


class Artifacts:
    """Downloads inputs and uploads results."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        #: One task at a time: its files have up to 128 MiB, a picture takes up to 1 GiB meanwhile,
        #: and every slot may have such a task.
        self._decoding = threading.Lock()

    def fetch(self, resolved: ResolvedRequest, control: Control) -> Job:
        """The engine's job, with the input files; raises `InputNotFoundError`, `BadRequestError`.

        Downloads and decodes pictures on the caller's thread, once no other task does; raises
        `JobStopped` when it is stopped before.
        """
        if not resolved.references:
            return resolved.job({})
        with control.stage("fetch"):
            tensors = self._files(resolved, TENSORS)
            if resolved.complete.image is None:
                return resolved.job(tensors)
            with self._alone(control):
                return resolved.job(tensors, self._picture(resolved))

    def _picture(self, resolved: ResolvedRequest) -> InputImage:
        from worker.execution import input_images  # noqa: PLC0415  # Pillow, with the first picture

        request, files = resolved.complete, self._files(resolved, PICTURES)
        limit_px = resolved.limits.max_side_px
        return input_images.prepare(files, request.height, request.width, limit_px)

    def _files(self, resolved: ResolvedRequest, fields: tuple[str, ...]) -> dict[str, bytes]:
        references = resolved.references
        return {
            name: self._storage.get_input(references[name], name)
            for name in fields
            if name in references
        }

    @contextmanager
    def _alone(self, control: Control) -> Iterator[None]:
        while not self._decoding.acquire(timeout=STOP_CHECK_PERIOD_S):
            control.obey(0)
        try:
            yield
        finally:
            self._decoding.release()

    def store(
        self,
        claim: Claim,
        resolved: ResolvedRequest,
        output: JobResult,
        began_s: float,
        is_current: Callable[[], bool],
    ) -> GenerationResult:
        """Encode and upload every image, one at a time, then the manifest.

        `began_s` is the start of the attempt on the monotonic clock. Raises `SupersededError` when
        `is_current` returns False: another worker has claimed the task.
        """
        storing_s = time.monotonic()
        images = [
            self._store_one(resolved, output, number, image, is_current)
            for number, image in enumerate(output.images)
        ]
        ended_s = time.monotonic()
        result = GenerationResult(
            images=images,
            manifest_key=self._storage.key(claim.task_id, "manifest.json"),
            timings=Timings(
                queued_s=round(claim.queued_s + output.timing.wait_s, 4),
                load_s=round(output.timing.load_s, 4),
                encode_s=round(output.timing.encode_s, 4),
                denoise_s=round(output.timing.denoise_s, 4),
                decode_s=round(output.timing.decode_s, 4),
                upload_s=round(ended_s - storing_s, 4),
                total_s=round(claim.queued_s + ended_s - began_s, 4),
            ),
            batch=output.batch,
            model=resolved.request.model,
            scheduler=output.scheduler,
            parameters=_parameters_used(resolved, output),
            truncated=list(output.truncated),
            versions=output.versions,
            dtype=output.dtype,
        )
        manifest = result.model_dump(mode="json") | {"task_id": claim.task_id}
        for image in manifest["images"]:
            del image["url"]  # it expires; the manifest does not
        data = json.dumps(manifest, indent=1, sort_keys=True).encode()
        self._storage.put(result.manifest_key, data, "application/json", is_current)
        return result

    def _store_one(
        self,
        resolved: ResolvedRequest,
        output: JobResult,
        number: int,
        image: GeneratedImage,
        is_current: Callable[[], bool],
    ) -> ImageResult:
        from worker.execution import image_files  # noqa: PLC0415  # numpy and Pillow, with the first image

        output_type = resolved.complete.output_type
        ending, content_type = image_files.FORMATS[output_type]
        origin = {
            "request": resolved.origin,
            "parameters": _parameters_used(resolved, output),
            "index": number,
            "seed": image.seed,
            "versions": output.versions,
            "dtype": output.dtype,
        }
        data = image_files.encode(image, output_type, origin)
        key = self._storage.key(resolved.task_id, f"{number}.{ending}")
        return ImageResult(
            key=key,
            sha256=self._storage.put(key, data, content_type, is_current),
            url=self._storage.presign(key),
            bytes=len(data),
            width=image.width,
            height=image.height,
            seed=image.seed,
            nsfw_content_detected=image.nsfw_content_detected,
        )


def _parameters_used(resolved: ResolvedRequest, output: JobResult) -> dict[str, Any]:
    """The request's parameters, with the size and the scheduler that were used."""
    first = output.images[0]
    own = {"height": first.height, "width": first.width, "scheduler": output.scheduler}
    return resolved.parameters | own
