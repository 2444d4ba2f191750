"""`python -m training.pixels`: everything from drawing the pictures to the model card.

A stage whose result is in the work folder is not run again, and a training that was stopped goes
on from its last checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from training import record
from training.pixels import card, classes, dataset, denoiser, evaluate, export
from training.progress import Stage
from worker.config.models import SHIPPED_PIXEL_MODEL

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Parse the command line and run all stages."""
    parser = argparse.ArgumentParser(prog="python -m training.pixels", description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / ".training/pixels", help="checkpoints")
    parser.add_argument("--out", type=Path, default=SHIPPED_PIXEL_MODEL)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    work, out = arguments.work, arguments.out
    work.mkdir(parents=True, exist_ok=True)
    run = record.begin(work, arguments.seed)
    data = dataset.load_or_draw(work, arguments.seed)
    denoiser.train(denoiser.Batches(data, arguments.seed), work)
    export.write(work, out)
    curve = record.Curve(denoiser.NAME, Stage(denoiser.NAME, work).rows())
    record.save(out, record.Record(run, dataset.PICTURES, len(classes.CLASSES), [curve]))
    evaluate.evaluate(out)
    card.write(out)


if __name__ == "__main__":
    main()
