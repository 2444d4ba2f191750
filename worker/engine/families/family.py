"""The interface of a family: what a kind of models does in its own way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from worker.config.models import ModelSpec
    from worker.engine.families.conditioning import Conditioning, EncoderInput, PromptInputs
    from worker.engine.jobs.job import Job
    from worker.engine.loaded_model import LoadedModel
    from worker.engine.pipeline import Pipeline


class Family(ABC):
    """One kind of models. Has no state; a model is an argument."""

    #: As in `loading.model_json`.
    name: ClassVar[str]
    #: What stands before "model" in errors.
    title: ClassVar[str]
    #: Networks that take turns on the device with offload, the UNet among them.
    networks: ClassVar[tuple[str, ...]]

    #: Tokenizer and text encoder, one pair for each part of a text.
    encoders: ClassVar[tuple[tuple[str, str], ...]]
    #: The self-attention that SAG reads unless the settings name another.
    sag_layer: ClassVar[str]
    #: Radius of SAG's blur kernel, in cells; None is 4 sigma.
    blur_radius: ClassVar[int | None] = None
    #: Settings of a model that this family does not have.
    lacks: ClassVar[frozenset[str]] = frozenset()

    def unsupported(self, spec: ModelSpec) -> list[str]:
        """Settings that a model has and the family does not."""
        fields = type(spec).model_fields
        return [each for each in sorted(self.lacks) if getattr(spec, each) != fields[each].default]

    @abstractmethod
    def pipeline(self, source: str, spec: ModelSpec, **options: Any) -> Pipeline:  # noqa: ANN401  # diffusers' own
        """Have diffusers build the pipeline, see `loading.pipelines`; raises what it raises."""

    @abstractmethod
    def faults(self, pipe: Pipeline) -> Iterator[str]:
        """Why a pipeline is not served, each as the end of a sentence about the model."""

    @abstractmethod
    def check(self, pipe: Pipeline, job: Job) -> PromptInputs:
        """Validate what the family makes of the job's prompts; raises `BadRequestError`."""

    @abstractmethod
    def truncated(self, pipe: Pipeline, job: Job) -> tuple[str, ...]:
        """The ends of the prompts that exceed the encoders' length and have no effect."""

    @abstractmethod
    def encode(
        self, model: LoadedModel, texts: Sequence[EncoderInput]
    ) -> dict[EncoderInput, Conditioning]:
        """The conditioning of each text, in as few calls of the encoders as possible."""

    @abstractmethod
    def of_size(self, pipe: Pipeline, job: Job, height_px: int, width_px: int) -> Conditioning:
        """What every row gets beside the texts, from the size of the image."""

    @abstractmethod
    def blank(self, pipe: Pipeline) -> Conditioning:
        """The conditioning of a row, all zeros, to measure a call with."""

    @abstractmethod
    def arguments(self, rows: Conditioning) -> dict[str, Any]:
        """Arguments of the UNet for the stacked conditioning of all rows."""

    @abstractmethod
    def tokens(self, pipe: Pipeline) -> int:
        """Usual length of the text embeddings; 0 where there are none."""

    @abstractmethod
    def multiple_px(self, pipe: Pipeline) -> int:
        """Height and width in pixels are multiples of it."""

    @abstractmethod
    def clip_range(self, pipe: Pipeline) -> float | None:
        """SAG blurs x0 clipped to this range, -range … range; None does not clip it."""

    @abstractmethod
    def to_autoencoder(self, pipe: Pipeline, latents: torch.Tensor) -> torch.Tensor:
        """Denoised latents in the scale of the autoencoder, to decode."""

    @abstractmethod
    def from_autoencoder(self, pipe: Pipeline, latents: torch.Tensor) -> torch.Tensor:
        """Encoded latents in the scale that the UNet was trained with."""
