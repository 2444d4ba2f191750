"""What the tests of the GPU check share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.gpu_check import setting

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.gpu_check.setting import Setting


@pytest.fixture
def given(tmp_path: Path) -> Setting:
    """The rehearsal's setting."""
    return setting.rehearsal(tmp_path)
