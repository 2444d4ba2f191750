"""diffusers' schedulers: by wire name, one for each image, and their noise levels. See `samplers`.

Knows no model, no job and no guidance.
"""
