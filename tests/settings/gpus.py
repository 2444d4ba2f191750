"""GPUs of a machine, and the environment of the worker on each."""

from __future__ import annotations

from tests.settings.nvml import Device

TWO = (Device("GPU-aaaa"), Device("GPU-bbbb", free_mib=12))
FIRST = {"CUDA_VISIBLE_DEVICES": "GPU-aaaa", "SAG_DEVICE": "cuda:0"}
SECOND = {"CUDA_VISIBLE_DEVICES": "GPU-bbbb", "SAG_DEVICE": "cuda:0"}
CPU = {"cpu": {"SAG_DEVICE": "cpu"}}
