"""CUDA without a GPU: the engine's own code on fake tensors, which know their device.

See `make cuda-dry-run`, and "On CUDA, without a GPU" in docs/engine.md.
"""
