"""From the bytes of a file to a photograph, or to one line that names the file."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from hiap.options import ConfigError, one_line

if TYPE_CHECKING:
    from PIL import Image

# Pillow knows forty formats more, and hands one of them (PostScript) to another program.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")
# Sides beyond this ratio are a damaged header: scaled to the size of a crop such an image would fill the memory.
LONGEST = 200
DARK = 8  # images of 16 bits that use no more than such a part of their range are probably of fewer


def photograph(read: Callable[[], bytes], name: str) -> Image.Image:
    """Decode the RGB image whose bytes ``read`` brings. Raises ``ConfigError`` that begins with ``name`` if there is
    none."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(read()), formats=FORMATS)
        if max(image.size) > LONGEST * min(image.size):
            raise ValueError(f"{image.size[0]} x {image.size[1]} pixels")
        return _eight_bits(image).convert("RGB")
    except Image.UnidentifiedImageError:  # whose words are the address of the bytes
        raise unreadable(name, f"none of {', '.join(FORMATS)}") from None
    except Exception as error:  # a damaged file makes Pillow raise nearly anything: zlib.error, struct.error, KeyError
        raise unreadable(name, f"{type(error).__name__}: {error}") from None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return an image of 16 bits a pixel in 8, which Pillow would clip to white. Raises ``ValueError`` for other wide
    pixels: what is their white is not told."""
    from PIL import Image

    wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if wide:
        pixels = np.asarray(image).astype(np.int64)
        if 255 < pixels.max() < 2**16 // DARK:
            warnings.warn(
                f"images of 16 bits with values up to {pixels.max()} are nearly black: if they are of 12 bits, say, "
                "scale them to 16 first",
                stacklevel=1,
            )
        return Image.fromarray((pixels // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}; expected 8 or 16 bits a channel")
    return image


def unreadable(name: str, reason: str) -> ConfigError:
    """Return the error of a file that is no readable image."""
    return ConfigError(f"{name}: not a readable image ({one_line(reason)})")
