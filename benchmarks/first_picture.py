"""The script that one writes by hand: load a model with diffusers, draw one picture, save it.

The other side of `coldstart`, run as a program with a task and two paths.
"""

from __future__ import annotations

import json
import sys

import torch
from diffusers import StableDiffusionPipeline


def main(model: str, out: str, request: str) -> None:
    """`request` is JSON with the fields that the pipeline takes, and a seed."""
    fields = json.loads(request)
    pipe = StableDiffusionPipeline.from_pretrained(
        model, safety_checker=None, requires_safety_checker=False, use_safetensors=True
    )
    fields["generator"] = torch.Generator().manual_seed(fields.pop("seed"))
    pipe(**fields).images[0].save(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
