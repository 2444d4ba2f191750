"""What Stable Diffusion 1, 2 and XL share: encoders of CLIP, and latents of an autoencoder."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from diffusers import AsymmetricAutoencoderKL

from worker.engine import safetensors_io
from worker.engine.denoising.sag_attention import MID_BLOCK
from worker.engine.families import unsupported
from worker.engine.families.conditioning import (
    TEXT,
    Conditioning,
    EncoderInput,
    PromptInputs,
    check_range,
)
from worker.engine.families.family import Family
from worker.engine.jobs.job import refusal
from worker.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from worker.engine.jobs.job import Job
    from worker.engine.loaded_model import LoadedModel
    from worker.engine.pipeline import Pipeline


class LatentFamily(Family):
    """A UNet over latents, texts by one or two encoders of CLIP."""

    sag_layer = MID_BLOCK
    lacks = frozenset({"null_class"})
    #: Whether the model is conditioned on sizes, and has a second text encoder.
    takes_sizes: ClassVar[bool] = False

    def faults(self, pipe: Pipeline) -> Iterator[str]:
        """Missing weights, parts that do not fit together, inputs that no request has."""
        # What a file does not have is left on torch's device without data.
        for part in self.networks:
            for name, parameter in getattr(pipe, part).named_parameters():
                if parameter.is_meta:
                    yield f"lacks weights, such as {part} {name}"
                    break
        for tokenizer, encoder in self.encoders:
            words, vocabulary = getattr(pipe, tokenizer), getattr(pipe, encoder).config.vocab_size
            if len(words) > vocabulary:
                yield f"has a {tokenizer} of {len(words)} tokens for an encoder of {vocabulary}"
            if len(words) <= len(words.all_special_tokens):
                yield f"has a {tokenizer} without words: its folder lacks a file"
        yield from self._unet_faults(pipe)
        if isinstance(pipe.vae, AsymmetricAutoencoderKL):
            yield "has an AsymmetricAutoencoderKL, which decodes with a mask and is not served"

    def _unet_faults(self, pipe: Pipeline) -> Iterator[str]:
        """Why the UNet does not fit the other parts, or is not served."""
        config, channels = pipe.unet.config, pipe.vae.config.latent_channels
        width = self.width(pipe)
        if width != config.cross_attention_dim:
            yield (f"has text encoders of width {width} for a UNet of {config.cross_attention_dim}")
        # Of a model for inpainting: latents, mask and masked picture.
        if (
            config.in_channels not in (channels, 2 * channels + 1)
            or channels != config.out_channels
        ):
            yield (
                f"has a VAE of {channels} channels for a UNet of {config.in_channels} and"
                f" {config.out_channels}"
            )
        if config.class_embed_type is not None:
            yield "has inputs beside the text, which are not served"
        if config.time_cond_proj_dim is not None:
            yield "takes the guidance scale as an input; load its LoRA on the model it came from"

    def width(self, pipe: Pipeline) -> int:
        """Width of the text embeddings."""
        return sum(getattr(pipe, encoder).config.hidden_size for _, encoder in self.encoders)

    def check(self, pipe: Pipeline, job: Job) -> PromptInputs:
        """Validate the prompts, or the embeddings that the job contains instead."""
        self._refuse_unsupported(job)
        if not job.prompts and job.prompt_embeds is None:
            what = f"is missing: a {self.title} model needs it, or `prompt_embeds`"
            raise refusal("prompt", what, "one of the two")
        given = self.given(pipe, job, "")
        negative = self.given(pipe, job, "negative_")
        count = len(job.prompts) or len(given or ())
        if len(job.negative_prompts) not in (0, 1, count):
            what = f"has {len(job.negative_prompts)} entries for {count} prompts"
            raise refusal("negative_prompt", what, "as many as prompts")
        self._check_lengths(pipe, job, given, negative)
        layers: int = pipe.text_encoder.config.num_hidden_layers
        if job.clip_skip is not None and job.clip_skip >= layers:
            raise refusal("clip_skip", f"is {job.clip_skip} of {layers} layers", f"< {layers}")
        if job.clip_skip is not None and given is not None:
            raise refusal("clip_skip", "has no effect on prompt_embeds", "null")
        positive = given or self.texts(job)
        if job.guidance_scale <= 1:
            return PromptInputs(positive, None)
        tokens = None if given is None else given[0][TEXT].shape[0]
        return PromptInputs(positive, negative or self.negative_texts(pipe, job, count, tokens))

    def _refuse_unsupported(self, job: Job) -> None:
        """Refuse what only models of two encoders, or of pixels, take."""
        fields = unsupported.OF_PIXELS | ({} if self.takes_sizes else unsupported.OF_TWO_ENCODERS)
        if faults := [*unsupported.faults(job, fields, self.title)]:
            raise BadRequestError(*faults)

    def _check_lengths(
        self,
        pipe: Pipeline,
        job: Job,
        given: Sequence[Conditioning] | None,
        negative: Sequence[Conditioning] | None,
    ) -> None:
        """Positive and negative embeddings share a UNet call: they must have the same length."""
        count, longest = len(job.prompts) or len(given or ()), pipe.tokenizer.model_max_length
        own = longest if given is None else given[0][TEXT].shape[0]
        if negative is None:
            is_encoded = job.guidance_scale > 1 and not self.has_zeros(pipe, job)
            if is_encoded and own > longest:
                what = f"has {own} tokens and no negative_prompt_embeds beside it"
                raise refusal("prompt_embeds", what, f"<= {longest}")
            return
        rows, tokens = len(negative), negative[0][TEXT].shape[0]
        if (rows, tokens) != (count, own):
            limit = f"as many as the prompts: {count} of {own}"
            raise refusal("negative_prompt_embeds", f"has {rows} rows of {tokens} tokens", limit)

    def has_zeros(self, pipe: Pipeline, job: Job) -> bool:  # noqa: ARG002  # of families that use zeros
        """Whether zeros, of any length, stand for a negative prompt that the job does not have."""
        return False

    def texts(self, job: Job) -> tuple[EncoderInput, ...]:
        """The prompts, to encode."""
        return tuple(
            EncoderInput(text, None, job.clip_skip, job.lora_scale, job.adapters)
            for text in job.prompts
        )

    def negative_texts(
        self,
        pipe: Pipeline,  # noqa: ARG002  # for families whose configuration decides
        job: Job,
        count: int,
        tokens: int | None,
    ) -> tuple[EncoderInput | Conditioning, ...]:
        """The negative prompt of each prompt, padded to `tokens`."""
        texts = job.negative_prompts or ("",)
        texts = texts * count if len(texts) == 1 else texts
        # diffusers ignores `clip_skip` for the negative prompt.
        return tuple(
            EncoderInput(text, None, None, job.lora_scale, job.adapters, tokens) for text in texts
        )

    def given(self, pipe: Pipeline, job: Job, prefix: str) -> tuple[Conditioning, ...] | None:
        """The embeddings of each prompt that the job contains; None if it contains texts.

        `prefix` is before the names of the job's fields.
        """
        where = f"{prefix}prompt_embeds"
        shape = ("n", "tokens", self.width(pipe))
        embeds = safetensors_io.read(getattr(job, where), where, shape)
        if embeds is None:
            return None
        check_range(where, embeds, pipe.unet.dtype)
        return tuple({TEXT: each} for each in embeds)

    def truncated(self, pipe: Pipeline, job: Job) -> tuple[str, ...]:
        """The ends of the prompts that exceed the first encoder's length."""
        used = (*job.prompts, *(job.negative_prompts if job.guidance_scale > 1 else ()))
        return tuple(filter(None, (cut_off(pipe, pipe.tokenizer, text) for text in used)))

    def encode(
        self, model: LoadedModel, texts: Sequence[EncoderInput]
    ) -> dict[EncoderInput, Conditioning]:
        """One call of each encoder for each LoRA scale and length."""
        found: dict[EncoderInput, Conditioning] = {}
        groups: dict[tuple[float | None, int | None], list[EncoderInput]] = {}
        for text in dict.fromkeys(texts):
            groups.setdefault((text.lora_scale, text.tokens), []).append(text)
        for group in groups.values():
            found |= zip(group, self.encode_group(model, group), strict=True)
        return found

    @abstractmethod
    def encode_group(self, model: LoadedModel, texts: Sequence[EncoderInput]) -> list[Conditioning]:
        """The conditioning of texts of one LoRA scale and length."""

    def of_size(
        self,
        pipe: Pipeline,  # noqa: ARG002  # for families that are conditioned on it
        job: Job,  # noqa: ARG002  # as above
        height_px: int,  # noqa: ARG002  # as above
        width_px: int,  # noqa: ARG002  # as above
    ) -> Conditioning:
        """Nothing: these models are not conditioned on a size."""
        return {}

    def arguments(self, rows: Conditioning) -> dict[str, Any]:
        """The text embeddings."""
        return {TEXT: rows[TEXT]}

    def tokens(self, pipe: Pipeline) -> int:
        """The first tokenizer's."""
        return pipe.tokenizer.model_max_length  # type: ignore[no-any-return]  # transformers has no types

    def multiple_px(self, pipe: Pipeline) -> int:
        """What the autoencoder divides by."""
        return pipe.vae_scale_factor  # type: ignore[no-any-return]  # diffusers has no types

    def clip_range(self, pipe: Pipeline) -> float | None:  # noqa: ARG002  # of families whose latents have a range
        """None: latents have no range."""
        return None

    def to_autoencoder(self, pipe: Pipeline, latents: torch.Tensor) -> torch.Tensor:
        """Divided by the autoencoder's factor."""
        return latents / pipe.vae.config.scaling_factor  # type: ignore[no-any-return]  # diffusers has no types

    def from_autoencoder(self, pipe: Pipeline, latents: torch.Tensor) -> torch.Tensor:
        """Times the autoencoder's factor."""
        return latents * pipe.vae.config.scaling_factor  # type: ignore[no-any-return]  # diffusers has no types


def cut_off(pipe: Pipeline, tokenizer: Any, text: str) -> str:  # noqa: ANN401  # transformers'
    """The end of a text that a tokenizer truncates."""
    text = pipe.maybe_convert_prompt(text, tokenizer)
    ids = tokenizer(text, truncation=False).input_ids
    cut: str = tokenizer.decode(ids[tokenizer.model_max_length - 1 : -1])
    # A token may be a part of a character; what is left of it is no text.
    return cut.lstrip("\N{REPLACEMENT CHARACTER}").strip()
