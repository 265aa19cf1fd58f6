"""Randomness as a function of position.

Every random number of a run comes from a generator seeded by where it is used (run seed, stage, epoch, step, image),
not from a stream that depends on what was drawn before. So a run resumed at a step continues exactly, whatever the
number of workers, and no generator state needs to be stored.
"""

from __future__ import annotations

import hashlib


def derive(*parts: int | str) -> int:
    """Return a 63-bit seed for the place named by ``parts``, e.g. ``derive(seed, 'gates', stage, step)``."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def noise_seed(seed: int, noise: str, phase: int, step: int, part: int) -> int:
    """Return the seed of all noise of one forward pass (A10): ``part``, which process or which share of an accumulated
    batch it is, counts where ``noise`` is 'own'."""
    own = (part,) if part and noise == "own" else ()
    return derive(seed, "step", phase, step, *own)
