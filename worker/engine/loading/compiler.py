"""The compiler that torch calls with `SAG_COMPILE`. Loads no torch."""

from __future__ import annotations

import os
import shutil

#: What to do without one.
FIX = "install it (the image: build argument COMPILER=1), or unset SAG_COMPILE"


def missing_compiler(device: str) -> str | None:
    """What torch would not find when it compiles for `device`, such as `cpu`; None if it would.

    On the CPU Inductor writes C++, on a GPU Triton writes C. Both read these variables.
    """
    if device == "cpu":
        compilers, what = [os.environ.get("CXX", "g++")], "C++ compiler (g++, or what CXX names)"
    else:
        named = os.environ.get("CC")
        compilers = [named] if named else ["gcc", "clang"]
        what = "C compiler (gcc, clang, or what CC names)"
    if any(map(shutil.which, compilers)):
        return None
    return f"SAG_COMPILE needs a {what}, and none is on PATH"


def require_compiler(device: str) -> None:
    """Raise `ValueError` where torch could not compile."""
    if missing := missing_compiler(device):
        raise ValueError(f"{missing}: {FIX}")
