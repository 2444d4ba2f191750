"""Trains the bundled pixel-space model, `tiny-shapes-pixels`. Start at `__main__`.

Its pictures are the shapes of `training.shapes` at half the size; it knows classes and no words.
"""
