"""`python -m training`: everything from drawing the pictures to the model card.

A stage whose result is in the work folder is not run again, and a training that was stopped goes
on from its last checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from training import card, denoiser, evaluate, export, record, tokenizer, vae
from training.dataset import Dataset, load_or_draw
from worker.config.models import SHIPPED_MODEL

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Parse the command line and run all stages."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / ".training", help="checkpoints")
    parser.add_argument("--out", type=Path, default=SHIPPED_MODEL)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true", help="don't compile the UNet")
    arguments = parser.parse_args()
    work, out = arguments.work, arguments.out
    work.mkdir(parents=True, exist_ok=True)
    run = record.begin(work, arguments.seed)
    train(work, arguments.seed, compiled=not arguments.no_compile)
    export.write(export.from_work(work), out)
    record.write(work, run, out)
    evaluate.evaluate(out)
    card.write(out)


def train(work: Path, seed: int, *, compiled: bool) -> None:
    """Leave finished checkpoints of the autoencoder and the denoiser in `work`."""
    dataset = load_or_draw(work, seed)
    latents = encoded(dataset, work, seed)
    words = tokenizer.train(dataset.captions)
    token_ids = denoiser.tokens(words, dataset.captions)
    batches = denoiser.Batches(latents, token_ids, denoiser.tokens(words, [""]), seed)
    denoiser.train(batches, words, work, compiled=compiled)


def encoded(dataset: Dataset, work: Path, seed: int) -> torch.Tensor:
    """The latents of all pictures, by the trained autoencoder, which is saved in `work`/vae."""
    file, folder = work / "latents.pt", work / "vae"
    if file.exists() and (folder / AutoencoderKL.config_name).exists():
        latents: torch.Tensor = torch.load(file, weights_only=True)
        return latents
    autoencoder = vae.train(dataset.pixels, work, seed)
    latents = vae.encode_all(autoencoder, dataset.pixels)
    autoencoder.save_pretrained(folder)
    torch.save(latents, file)
    return latents


if __name__ == "__main__":
    main()
