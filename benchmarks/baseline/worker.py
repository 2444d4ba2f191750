"""The worker that people write by hand: Celery's prefork pool around upstream's pipeline.

Written as well as its kind can be: the model is loaded once in each process, before the first task;
no task is taken that can't start; a task is acknowledged when it has ended.
"""

from __future__ import annotations

import io
import os
from functools import cache
from typing import TYPE_CHECKING, Any

import boto3
import torch
from celery import Celery
from celery.signals import worker_process_init
from diffusers import StableDiffusionSAGPipeline

if TYPE_CHECKING:
    from collections.abc import Mapping

app = Celery("baseline", broker=os.environ["BROKER_URL"], backend=os.environ["RESULT_URL"])
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    worker_proc_alive_timeout=600,  # the pipeline is loaded before the process says that it is up
)


@cache
def pipeline() -> Any:  # noqa: ANN401  # a diffusers pipeline
    """The pipeline on its device."""
    device = os.environ["DEVICE"]
    loaded = StableDiffusionSAGPipeline.from_pretrained(
        os.environ["MODEL"],
        dtype=torch.float32 if device == "cpu" else torch.float16,
        safety_checker=None,
        requires_safety_checker=False,
    ).to(device)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@cache
def s3() -> Any:  # noqa: ANN401  # boto3 clients have no type
    """The client for uploads; its keys come from boto3's own chain."""
    return boto3.client("s3", endpoint_url=os.environ["S3_ENDPOINT_URL"])


@worker_process_init.connect
def load(**_: object) -> None:
    """Have everything ready before the first task."""
    pipeline()
    s3()


@app.task(name="generate", bind=True)
def generate(self: Any, request: Mapping[str, Any]) -> str:  # noqa: ANN401  # Celery's task
    """Make one picture, store it, and give its key."""
    arguments = dict(request)
    generator = torch.Generator("cpu").manual_seed(arguments.pop("seed"))
    image = pipeline()(**arguments, generator=generator).images[0]
    file = io.BytesIO()
    image.save(file, "PNG")
    key = f"baseline/{self.request.id}.png"
    s3().put_object(
        Bucket=os.environ["S3_BUCKET"], Key=key, Body=file.getvalue(), ContentType="image/png"
    )
    return key
