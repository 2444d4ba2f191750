"""`python -m benchmarks.cuda_dry_run`: run the engine on a simulated CUDA device.

Prints what each kind of call asks of the device, as Markdown. Ends with status 1 where the engine
mixes devices, waits where it must not, computes in float64, or fails a job.
"""

from __future__ import annotations

import argparse
import sys

import diffusers
import transformers

from benchmarks.cuda_dry_run import dry_run, models, report


def main() -> None:
    """Run, print, and tell by the exit status whether anything was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_dry_run", description=__doc__)
    parser.add_argument(
        "--model",
        choices=models.MODELS,
        nargs="+",
        default=["sd15", "sd15-inpainting", "sdxl"],
        help="models to run, one after the other",
    )
    parser.add_argument("--lines", action="store_true", help="kernels of a round by line")
    arguments = parser.parse_args()
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    faults: list[str] = []
    for name in arguments.model:
        found = dry_run.run(name)
        print(report.markdown(found, lines=arguments.lines), end="\n\n", flush=True)
        faults += [f"{name}: {each}" for each in report.faults(found)]
    if faults:
        print(f"{len(faults)} faults:", *faults, sep="\n", file=sys.stderr)
        sys.exit(1)
    print("no fault")


if __name__ == "__main__":
    main()
