"""Pixel-space models, ADM and IDDPM: a UNet without text, class-conditional or unconditional."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers.image_processor import VaeImageProcessor

from api_contracts.errors import FieldError
from worker.engine.denoising.sag_attention import MID_BLOCK_OF_PIXELS
from worker.engine.families import unsupported
from worker.engine.families.conditioning import Conditioning, EncoderInput, PromptInputs
from worker.engine.families.family import Family
from worker.engine.loading.pipelines import build
from worker.engine.pipeline import native_size
from worker.engine.sampling.samplers import LEARNED_VARIANCE
from worker.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from worker.config.models import ModelSpec
    from worker.engine.jobs.job import Job
    from worker.engine.loaded_model import LoadedModel
    from worker.engine.pipeline import Pipeline

#: diffusers' name of the classes, one number for a row.
LABELS = "class_labels"


class NoAutoencoder(torch.nn.Module):
    """In the place of an autoencoder: the latents of a pixel-space model are the pixels."""

    def __init__(self, channels: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = SimpleNamespace(latent_channels=channels)
        #: Precision of everything but the UNet.
        self.dtype = dtype

    def encode(self, pixels: torch.Tensor) -> SimpleNamespace:
        """The pixels, (n, c, h, w), as those of `AutoencoderTiny`."""
        return SimpleNamespace(latents=pixels)

    def decode(self, pixels: torch.Tensor, *, return_dict: bool = False) -> tuple[torch.Tensor]:  # noqa: ARG002  # diffusers' signature
        """The pixels, (n, c, h, w)."""
        return (pixels,)


class PixelPipeline(diffusers.DiffusionPipeline):
    """The parts of a `DDPMPipeline` or `DDIMPipeline`, and what the engine asks of a pipeline."""

    vae_scale_factor = 1

    def __init__(
        self,
        unet: Any,  # noqa: ANN401  # diffusers' own
        scheduler: Any,  # noqa: ANN401  # as above
        vae: NoAutoencoder,
        null_class: int | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)
        #: The label that stands for no class; None where the model was not trained with one.
        self.null_class = null_class


class Pixel(Family):
    """The latents are the pixels, and a row's conditioning is the label of a class or nothing."""

    name, title = "pixels", "pixel-space"
    networks = ("unet",)
    encoders = ()
    sag_layer = MID_BLOCK_OF_PIXELS
    #: The authors' kernel is 31 x 31 whatever the sigma.
    blur_radius = 15
    lacks = frozenset({"lora", "adapters", "textual_inversion", "vae_slicing", "vae_tiling"})

    def pipeline(self, source: str, spec: ModelSpec, **options: Any) -> Pipeline:  # noqa: ANN401  # diffusers' own
        """A `PixelPipeline` of the parts of diffusers' own."""
        loaded = build(diffusers.DiffusionPipeline, source, spec, **options)
        vae = NoAutoencoder(loaded.unet.config.in_channels, options["dtype"]["default"])
        return PixelPipeline(loaded.unet, loaded.scheduler, vae, spec.null_class)

    def faults(self, pipe: Pipeline) -> Iterator[str]:
        """Inputs that no request has, outputs that no sampler takes.

        And a null_class that the model does not have.
        """
        config, scheduler = pipe.unet.config, pipe.scheduler.config
        if type(pipe.unet) is not diffusers.UNet2DModel:
            yield f"has a {type(pipe.unet).__name__}, which is not served"
            return
        if config.class_embed_type is not None or config.time_embedding_type != "positional":
            yield "has embeddings of classes or timesteps that are not served"
        if config.sample_size is None or any(
            side % self.multiple_px(pipe) for side in native_size(pipe)
        ):
            yield f"has a size of {config.sample_size}, which its UNet can't halve"
        if config.in_channels != 3:  # noqa: PLR2004  # red, green and blue
            yield f"makes pictures of {config.in_channels} channels, which are not served"
        if config.out_channels not in {config.in_channels, 2 * config.in_channels}:
            yield f"has a UNet of {config.in_channels} and {config.out_channels} channels"
        variance = scheduler.get("variance_type")
        if variance == "learned":  # diffusers takes the root of what is a logarithm
            yield "comes with a scheduler of variance_type 'learned', which is not served"
        if variance == LEARNED_VARIANCE and config.out_channels == config.in_channels:
            yield "comes with a scheduler of learned variance for a UNet that gives none"
        count = config.num_class_embeds or 0
        if pipe.null_class is not None and pipe.null_class >= count:
            yield f"has no class {pipe.null_class} (null_class): it has {count}"

    def check(self, pipe: Pipeline, job: Job) -> PromptInputs:
        """The label of each image, and that of no class for classifier-free guidance."""
        # Beside a prompt, guidance_scale may be the default for prompts, so only the prompt is
        # reported.
        faults = [*unsupported.faults(job, unsupported.OF_LATENTS, self.title)]
        if faults := faults or [*self._faults_of_labels(pipe, job)]:
            raise BadRequestError(*faults)
        count, null = pipe.unet.config.num_class_embeds, pipe.null_class
        if not count:
            return PromptInputs(({},), None)
        labels = job.class_labels or (null,)
        positive = tuple({LABELS: torch.tensor(label)} for label in labels)
        if job.guidance_scale <= 1:
            return PromptInputs(positive, None)
        return PromptInputs(positive, ({LABELS: torch.tensor(null)},) * len(labels))

    def _faults_of_labels(self, pipe: Pipeline, job: Job) -> Iterator[FieldError]:
        count, null = pipe.unet.config.num_class_embeds or 0, pipe.null_class
        if job.class_labels and not count:
            what = "has no meaning for a model without classes"
            yield FieldError(where=LABELS, what=what, limit="null")
        if count and not job.class_labels and null is None:
            what = "is missing: the model makes pictures of a class"
            yield FieldError(where=LABELS, what=what, limit=f"0 to {count - 1}")
        for index, label in enumerate(job.class_labels if count else ()):
            if label >= count or label == null:
                what = f"is {label}, " + ("which stands for none" if label == null else "too large")
                where = f"{LABELS}[{index}]" if len(job.class_labels) > 1 else LABELS
                yield FieldError(where=where, what=what, limit=_limit(count, null))
        if job.guidance_scale > 1 and (null is None or not job.class_labels):
            why = (
                "without class_labels" if not job.class_labels else "for a model without null_class"
            )
            what = f"is {job.guidance_scale:g}, which has no meaning {why}"
            yield FieldError(where="guidance_scale", what=what, limit="<= 1")

    def truncated(self, pipe: Pipeline, job: Job) -> tuple[str, ...]:  # noqa: ARG002  # of families with texts
        """Nothing: there are no texts."""
        return ()

    def encode(
        self,
        model: LoadedModel,  # noqa: ARG002  # of families with texts
        texts: Sequence[EncoderInput],  # noqa: ARG002  # as above
    ) -> dict[EncoderInput, Conditioning]:
        """Nothing: there are no texts."""
        return {}

    def of_size(
        self,
        pipe: Pipeline,  # noqa: ARG002  # of families that are conditioned on it
        job: Job,  # noqa: ARG002  # as above
        height_px: int,  # noqa: ARG002  # as above
        width_px: int,  # noqa: ARG002  # as above
    ) -> Conditioning:
        """Nothing: these models are not conditioned on a size."""
        return {}

    def blank(self, pipe: Pipeline) -> Conditioning:
        """The first class, or nothing."""
        return {LABELS: torch.tensor(0)} if pipe.unet.config.num_class_embeds else {}

    def arguments(self, rows: Conditioning) -> dict[str, Any]:
        """The labels, or nothing."""
        return dict(rows)

    def tokens(self, pipe: Pipeline) -> int:  # noqa: ARG002  # of families with texts
        """None: there are no texts."""
        return 0

    def multiple_px(self, pipe: Pipeline) -> int:
        """The UNet halves the sides between its blocks, and adds the halves up again."""
        return 2 ** (len(pipe.unet.config.block_out_channels) - 1)  # type: ignore[no-any-return]  # diffusers has no types

    def clip_range(self, pipe: Pipeline) -> float | None:
        """That of the model's own scheduler, which clips x0."""
        config = pipe.scheduler.config
        return float(config.clip_sample_range) if config.get("clip_sample") else None

    def to_autoencoder(self, pipe: Pipeline, latents: torch.Tensor) -> torch.Tensor:  # noqa: ARG002  # of families with one
        """The pixels."""
        return latents

    def from_autoencoder(self, pipe: Pipeline, latents: torch.Tensor) -> torch.Tensor:  # noqa: ARG002  # of families with one
        """The pixels."""
        return latents


def _limit(count: int, null: int | None) -> str:
    """The labels that a request may have."""
    if null == count - 1:
        return f"0 to {count - 2}"
    return f"0 to {count - 1}" + ("" if null is None else f" without {null}")
