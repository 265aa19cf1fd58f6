"""Whatever is wrong with an image file, it is named with its path and counted, and the run goes on."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_data import batches, own_cache  # noqa: F401

from hiap.data import decode
from hiap.data import loader as data
from hiap.train.config import ConfigError, DataConfig

KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MUTATED = 510


def encoded(kind: str, rng: np.random.Generator) -> bytes:
    """A small picture in one of a format's ways of writing it."""
    sides = rng.integers(4, 24, 2)
    image = Image.fromarray(rng.integers(0, 256, (*sides, 3), dtype=np.uint8))
    image = (
        image.convert({"JPEG": "L", "GIF": "P"}.get(kind, "P" if kind != "WEBP" else "RGB"))
        if rng.random() < 0.3
        else image
    )
    options = {"TIFF": {"compression": ["raw", "tiff_lzw", "jpeg", "tiff_deflate", "group4"][rng.integers(4)]},
               "WEBP": {"lossless": bool(rng.integers(2))}, "JPEG": {"progressive": bool(rng.integers(2))}}  # fmt: skip
    if options.get(kind, {}).get("compression") == "jpeg":  # type: ignore[attr-defined]
        image = image.convert("RGB")
    file = io.BytesIO()
    image.save(file, kind, **options.get(kind, {}))
    return file.getvalue()


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """With bytes changed, mostly in the head, or a part cut out, doubled or put in."""
    found = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(len(found)) if rng.random() < 0.4 else rng.integers(min(64, len(found))))
        length = int(rng.integers(1, 9))
        match rng.integers(6):
            case 0:
                found[place] ^= 1 << int(rng.integers(8))
            case 1:
                found[place : place + length] = rng.bytes(length)
            case 2:
                found[place : place + 4] = [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\1\0\0"][
                    rng.integers(4)
                ]
            case 3:
                del found[place : place + 4 * length]
            case 4:
                found[place:place] = found[place : place + 4 * length]
            case 5:
                del found[max(place, 8) :]
        if not found:
            break
    return bytes(found) or b"\0"


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(size: tuple[int, int], depth: int, colour: int, *more: bytes, pixels: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (9, 99, 200)).save(file, "JPEG")
    return file.getvalue()


CONSTRUCTED = {
    "a text of 3 MB": png((8, 8), 8, 0, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 << 20)))),
    "20,000 x 20,000 pixels of one bit": png((20_000, 20_000), 1, 0, pixels=zlib.compress(bytes(20_000 * 2501))),
    "a colour type that is none": png((8, 8), 8, 5, pixels=zlib.compress(bytes(72))),
    "no zlib stream": png((8, 8), 8, 0, pixels=b"x" * 72),
    "a broken length": png((8, 8), 8, 0)[:33] + b"\xff\xff\xff\xffIDAT",
    "no pixel": png((0, 8), 8, 0),
    "a line": jpeg((8, 4000)),
    "half of it": jpeg((64, 64))[:400],
    "nothing": b"",
    "words": b"404 not found",
    "a program for the printer": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(%pipe%true) (r) file\n",
    "a TIFF without its directory": b"II*\0\xff\xff\xff\x7f",
    "a GIF of its head": b"GIF89a",
}


def write_set(root: Path, files: dict[str, bytes]) -> DataConfig:
    """Class a has a good image and ``files``; class b good ones."""
    for split in ("train", "val"):
        for name in "ab":
            (root / split / name).mkdir(parents=True)
            (root / split / name / "good.jpg").write_bytes(jpeg((16, 16)))
    for name, content in files.items():
        (root / "train" / "a" / name).write_bytes(content)
    return DataConfig(name="folder", root=str(root), max_corrupt=len(files), augment="basic")


def error_of(source: data._Images, index: int) -> str:
    try:
        return "" if source[index][0].mode == "RGB" else "not of three colours"
    except ConfigError as error:
        return str(error)


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore")
def test_no_mutated_image_ends_a_run_or_hangs_it_and_each_bad_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(15)
    files = {}
    for i in range(MUTATED):
        kind = KINDS[i % len(KINDS)]
        files[f"{i}.{kind.lower()}"] = mutated(encoded(kind, rng), rng)
    config = write_set(tmp_path, files)
    seen = sum(len(labels) for _, labels in batches(config, batch_size=32))
    assert seen == (MUTATED + 3) // 32 * 32
    list(data.in_order(config, 32, 64))  # those that the last batch left out
    source = data._source(config, "train")
    names = {source.name(i) for i in data.corrupt(config)}
    told = capsys.readouterr().err
    assert all(f"{name}: not a readable image; the next one takes its place" in told for name in names)
    errors = {source.name(i): error for i in range(len(source)) if (error := error_of(source, i))}
    assert set(errors) == names
    assert all(error.startswith(f"{name}: not a readable image (") for name, error in errors.items())
    assert not any("\n" in error for error in errors.values())
    of_kind = {kind: sum(name.endswith(kind.lower()) for name in names) for kind in KINDS}
    assert all(10 < n < MUTATED // len(KINDS) for n in of_kind.values()), "of each format some are broken and some not"


@pytest.mark.parametrize("what", CONSTRUCTED)
@pytest.mark.timeout(60)
def test_what_pillow_raises_of_its_own_is_named_too(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_set(tmp_path, {"bad.jpg": CONSTRUCTED[what]})
    path = tmp_path / "train" / "a" / "bad.jpg"
    assert sum(len(labels) for _, labels in batches(config, batch_size=3)) == 3
    assert data.corrupt(config) == {0}
    assert f"{path}: not a readable image" in capsys.readouterr().err
    path.rename(tmp_path / "val" / "a" / "bad.jpg")
    data._imagenet.cache_clear()
    for workers in (0, 1):
        with pytest.raises(ConfigError, match=r"val/a/bad\.jpg: not a readable image") as caught:
            list(data.test_batches(config, 32, batch_size=4, workers=workers))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [MemoryError(), RecursionError("deep"), KeyError("x"), struct.error("short"), EOFError()]
)
def test_any_error_of_a_reader_is_named(error: Exception) -> None:
    def read() -> bytes:
        raise error

    with pytest.raises(ConfigError, match=rf"^a/b\.jpg: not a readable image \({type(error).__name__}"):
        decode.photograph(read, "a/b.jpg")


def test_what_only_a_transform_finds_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_set(tmp_path, {})

    def transform(image: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr(data, "_transform", lambda *_, **__: transform)
    with pytest.raises(ConfigError, match=r"val/a/good\.jpg: not a readable image \(MemoryError"):
        list(data.test_batches(config, 32, batch_size=4))
