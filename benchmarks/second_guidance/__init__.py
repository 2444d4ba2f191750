"""What a row of PAG or SEG costs beside SAG, and what PAG does to pictures.

A prototype for docs/adr/0009; nothing in `worker` knows it. Read `perturbed_attention` first.
"""
