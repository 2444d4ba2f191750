"""What differs between the kinds of models that are served. Start at `family`, then `latent`.

Knows no queue of jobs, no round, no sampler and no guidance; those know no family by name.
"""
