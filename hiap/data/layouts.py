"""How photographs lie at ``data.root``: in class folders, in tars (of class folders, of class tars, or WebDataset's
shards) or in parquet files; and which images they are, in an order that is the same everywhere.

Needs no torch: the launcher looks here too.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import tarfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from hiap.data import parquet
from hiap.data.image_index import Indexed, Place
from hiap.options import ConfigError

Split = Literal["train", "test"]

FOLDERS: dict[Split, str] = {"train": "train", "test": "val"}
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
# What the path of a shard says of its split. A test split is measured on only where there is none to validate on.
WORDS: dict[str, tuple[str, ...]] = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev")}
EXPECTED = (
    "data.root must hold 'train/' and 'val/' (or train.tar and val.tar) with the same class folders of images, or "
    "shards (.tar with .cls or .json labels, .parquet) whose names say train and validation"
)
FLAT = (
    "holds images and no class folders: sort them into one folder per class, as train has them; ImageNet's, in there: "
    "awk -F'[, ]' 'NR>1{print $1,$2}' LOC_val_solution.csv | while read f c; do mkdir -p $c; mv $f.JPEG $c; done"
)


def find(root: Path) -> dict[Split, Place]:
    """Find the places of the two splits. Raises ``ConfigError`` if one is missing."""
    paths = {split: root / name for split, name in FOLDERS.items()}
    if (root / "train").is_dir() and (class_folders(root / "train") or not _shards(root)):
        return {split: Place("folder", path, (path,)) for split, path in paths.items()}
    tars = {split: path.with_suffix(".tar") for split, path in paths.items()}
    if all(tar.is_file() for tar in tars.values()):
        return {split: Place("tar", tar, (tar,)) for split, tar in tars.items()}
    return _of_shards(root) or {split: Place("folder", path, (path,)) for split, path in paths.items()}


@cache
def check(root: Path, class_order: str = "auto") -> None:
    """Raise ``ConfigError`` for what a look at the names tells; once per process: a grid's runs share the folders, of
    which there are thousands."""
    places = find(root)
    if places["train"].kind == "folder":
        _check_folders(root)
        numbers(class_folders(root / "train"), class_order)
    elif places["train"].kind == "parquet":
        parquet.require()
    else:
        for place in places.values():
            if not tarfile.is_tarfile(place.files[0]):
                raise ConfigError(f"{place.files[0]} is not a tar; {EXPECTED}")


def _check_folders(root: Path) -> None:
    names: dict[str, list[str]] = {}
    for name in FOLDERS.values():
        if not (root / name).is_dir():
            raise ConfigError(f"{root / name} is missing; {EXPECTED}")
        names[name] = class_folders(root / name)
        if not names[name]:
            if any(is_image(entry) for entry in os.listdir(root / name)):
                raise ConfigError(f"{root / name} {FLAT}")
            raise ConfigError(f"{root / name} has no class folders; {EXPECTED}")
    if different := sorted(set(names["train"]) ^ set(names["val"])):
        here, there = ("train", "val") if different[0] in names["train"] else ("val", "train")
        raise ConfigError(f"class folder {different[0]!r} is in {root / here} but not in {root / there}; {EXPECTED}")
    for folder in (root / split / name for split in names for name in names[split]):
        with os.scandir(folder) as entries:
            if not any(is_image(entry.name) for entry in entries):
                raise ConfigError(f"{folder} holds no image ({', '.join(ENDINGS)}); {EXPECTED}")


def numbers(names: Sequence[str], order: str) -> np.ndarray:
    """Return the number of each class by ``data.class_order``; ``names`` are sorted as bytes. Raises ``ConfigError``
    where the names are numbers that may have been sorted in two ways, unless it says in which."""
    numeric = all(name.isascii() and name.isdigit() for name in names)
    if order == "name" or not numeric:
        if order == "number":
            bad = next(name for name in names if not (name.isascii() and name.isdigit()))
            raise ConfigError(f"data.class_order 'number': class folder {bad!r} is no number")
        return np.arange(len(names))
    by_number = sorted(range(len(names)), key=lambda i: int(names[i]))
    if order == "auto" and by_number != list(range(len(names))):
        first = [", ".join(names[i] for i in way[:3]) for way in (range(len(names)), by_number)]
        raise ConfigError(
            f"class folders are numbers, which sort as {first[0]} ... by name and {first[1]} ... by number: a network "
            "knows its classes by that order, so set data.class_order to 'name' (torchvision's) or 'number' (timm's), "
            "whichever the network to start from was trained with"
        )
    return np.argsort(by_number)


def numbers_for(names: Sequence[str], network: Mapping[str, Any], classes: int) -> list[int] | None:
    """Return the number that a network gives each class, where its ``pretrained_cfg`` names its ``classes`` and these
    are among them, in whatever case and with '_', '-' or a space between words; None where it does not say. Raises
    ``ConfigError`` where it knows some of them only, and warns where it knows as many others."""
    told = list(map(str, network.get("label_names") or ()))
    if len(told) != classes:
        return None
    known, wanted = list(map(_spelt, told)), list(map(_spelt, names))
    if len(set(known)) < len(known) or len(set(wanted)) < len(wanted):  # told apart by their spelling alone
        known, wanted = told, list(names)
    if not set(wanted) & set(known):
        if len(names) == classes and not any(name.isdecimal() for name in [*names, *told]):
            warnings.warn(
                f"the network names its classes ({', '.join(told[:3])} ...) otherwise than the folders "
                f"({', '.join(names[:3])} ...): they are taken to be in the same order",
                stacklevel=2,
            )
        return None
    if unknown := [name for name, spelt in zip(names, wanted, strict=True) if spelt not in known]:
        raise ConfigError(f"class {unknown[0]!r} is none of the network's {classes} ({', '.join(told[:3])} ...)")
    return list(map(known.index, wanted))


def _spelt(name: str) -> str:
    return re.sub(r"[-_\s]+", " ", name).strip().casefold()


def class_numbers(images: Indexed, class_order: str) -> np.ndarray:
    """Return the number of each class as ``numbers`` does, also of classes that came numbered."""
    if not images.numbered:
        return numbers(images.classes, class_order)
    if class_order != "auto":
        raise ConfigError(f"data.class_order '{class_order}': {images.place.files[0]} says each image's number itself")
    return np.arange(len(images.classes))


def check_same_classes(train: Indexed, test: Indexed) -> None:
    """Raise ``ConfigError`` if the two have not the same classes; numbered test images may lack some."""
    beyond = set(train.classes) ^ set(test.classes)
    if train.numbered and test.numbered:
        beyond = set(test.classes) - set(train.classes)
    if beyond:
        raise ConfigError(f"class {min(beyond)!r} is in only one of {train.place.path} and {test.place.path}")


def class_folders(folder: Path) -> list[str]:
    """Return the names of the classes; their sorted order numbers them, as in every published ImageNet network."""
    return sorted(entry.name for entry in os.scandir(folder) if not hidden(entry.name) and entry.is_dir())


def hidden(path: str) -> bool:
    """Tell whether it is something that a system left behind: .DS_Store, ._a.JPEG, .ipynb_checkpoints, Thumbs.db."""
    return any(part.startswith(".") or part in ("__MACOSX", "Thumbs.db", "desktop.ini") for part in path.split("/"))


def is_image(path: str) -> bool:
    """Tell whether a file's name is that of an image, and no system left it behind."""
    return path.lower().endswith(ENDINGS) and not hidden(path)


def scan(place: Place) -> Indexed:
    """List the images of a split. Raises ``ConfigError`` if the files are damaged or say no classes."""
    return {"folder": _scan_folder, "tar": _scan_tars, "parquet": _scan_parquet}[place.kind](place)


def are_splits(names: Sequence[str]) -> bool:
    """Tell whether what look like classes are the parts of a data set: 'training_set' and 'test_set', say."""
    words = {*WORDS["train"], *WORDS["val"], "test", "testing", "eval", "evaluation"}
    return bool(names) and all(re.split(r"[ _-]", name.lower())[0] in words for name in names)


def _natural(name: str) -> tuple[list[int | str], str]:
    """Return a key that sorts as people do and as timm's readers, which made the order of images before."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _scan_folder(place: Place) -> Indexed:
    classes = class_folders(place.path)
    found: list[str] = []
    others: list[str] = []
    for name in classes:
        with os.scandir(place.path / name) as entries:
            for entry in entries:
                taken = is_image(entry.name) and entry.is_file()  # no folder, and no link to nothing
                if taken or not hidden(entry.name):
                    (found if taken else others).append(f"{name}/{entry.name}")
    if others:
        what = f"{len(others):,} files and folders in the class folders of {place.path} are no images"
        warnings.warn(f"{what} ({', '.join(ENDINGS)}) and left out, {min(others)} for example", stacklevel=2)
    found.sort(key=_natural)
    return _named(place, found, [name.partition("/")[0] for name in found], None)


def _named(place: Place, names: list[str], folders: list[str], spots: list[tuple[int, int, int]] | None) -> Indexed:
    """Index images by the folders that they lie in, which are their classes; what lies in none ('') is no image of the
    set."""
    kept = [i for i, folder in enumerate(folders) if folder]
    if not kept:
        raise ConfigError(f"{place.path} {FLAT}" if names else f"{place.path} holds no image ({', '.join(ENDINGS)})")
    classes = sorted({folders[i] for i in kept})
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number[folders[i]] for i in kept], dtype=np.int64)
    where = None if spots is None else np.array([spots[i] for i in kept], dtype=np.int64)
    return Indexed(place, [names[i] for i in kept], labels, classes, spots=where)


def _numbered(
    place: Place, names: list[str], labels: list[int], spots: list[tuple[int, int, int]], called: Sequence[str] = ()
) -> Indexed:
    """Index images whose files say their numbers, and perhaps what the classes are ``called``."""
    if not names:
        raise ConfigError(f"{place.path}: no image in {', '.join(map(str, place.files[:3]))}")
    classes = list(called) or [str(number) for number in range(max(labels) + 1)]
    if max(labels) >= len(classes):
        raise ConfigError(f"{place.path}: class {max(labels)}, where {place.files[0]} names {len(classes)}")
    return Indexed(place, names, np.array(labels, dtype=np.int64), classes, True, np.array(spots, dtype=np.int64))


# Tars


class Member(NamedTuple):
    """File in a tar. ``folder``: the last one on its way, '' if there is none; ``inner``: its name in the innermost
    tar; ``first``: where it begins in the file, in bytes."""

    name: str
    folder: str
    inner: str
    first: int
    size: int


def _scan_tars(place: Place) -> Indexed:
    """Index tars: labels are what .cls or .json say beside an image, as in WebDataset's shards, or else its folder."""
    found: list[tuple[int, Member, int | None]] = []
    for number, file in enumerate(place.files):
        images, fields = _members(file, len(place.files) > 1)
        said = _labels(file, fields)
        if fields and not said and any(not posixpath.dirname(image.inner) for image in images):
            raise ConfigError(
                f"{file}/{fields[0].name}: says no class of the image beside it; expected its number as 'label', or a "
                "file .cls"
            )
        _require_one_each(file, images, said)
        found += [(number, image, said.get(_key(image.name))) for image in images]
    if labelled := sum(label is not None for _, _, label in found):
        if labelled < len(found):
            number, image, _ = next(entry for entry in found if entry[2] is None)
            raise ConfigError(f"{place.files[number]}/{image.name}: an image without a label (.cls or .json)")
    else:
        found = list({(number, image.name): (number, image, None) for number, image, _ in found}.values())
        _require_one_level(place, [image for _, image, _ in found])
        found.sort(key=lambda entry: _natural(entry[1].inner))
    names = [image.name for _, image, _ in found]
    spots = [(number, image.first, image.size) for number, image, _ in found]
    if labelled:
        return _numbered(place, names, [label for _, _, label in found if label is not None], spots)
    return _named(place, names, [image.folder for _, image, _ in found], spots)


def _require_one_level(place: Place, images: list[Member]) -> None:
    """Raise ``ConfigError`` for images whose innermost folder is no class: one name below several others, or a folder
    within another that has images too."""
    above = dict[str, str]()
    for image in images:
        way = posixpath.dirname(image.inner)
        if image.folder and above.setdefault(image.folder, way) != way:
            found = f"images of class {image.folder!r} lie in {above[image.folder]!r} and in {way!r}"
            raise ConfigError(f"{place.path}: {found}; expected one folder for each class")
    ways = set(above.values())
    if inner := next((way for way in sorted(ways) if way and posixpath.dirname(way) in ways - {""}), None):
        raise ConfigError(f"{place.path}: images lie in {posixpath.dirname(inner)!r} and below it in {inner!r}; "
                          "expected one folder for each class")  # fmt: skip


def _require_one_each(file: Path, images: list[Member], said: dict[str, int]) -> None:
    """Raise ``ConfigError`` for a labelled sample of two images, such as a photograph and its mask."""
    seen = dict[str, str]()
    for image in images:
        key = _key(image.name)
        if key in said and key in seen:
            raise ConfigError(f"{file}: {seen[key]} and {image.name} are one sample; expected an image for each label")
        seen[key] = image.name


def _members(file: Path, several: bool) -> tuple[list[Member], list[Member]]:
    """Return the images of a tar, and of the tars in it, and the files that may hold labels. What lies at the top of
    one of ``several`` tars belongs to a class of the tar's name."""
    images, fields, others = list[Member](), list[Member](), list[str]()
    try:
        with file.open("rb") as stream:
            for member in _walk(stream, 0, file.stat().st_size, "", file.stem if several else ""):
                if is_image(member.name):
                    images.append(member)
                elif member.name.lower().endswith((".cls", ".json")) and not hidden(member.name):
                    fields.append(member)
                elif not hidden(member.name):
                    others.append(member.name)
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        raise ConfigError(f"{file}: not a whole tar of images ({str(error) or type(error).__name__})") from None
    if links := [image.name for image in images if image.first < 0]:
        raise ConfigError(f"{file}: {links[0]} is a link; expected files (tar --hard-dereference --dereference)")
    if others and not fields:  # beside labels a sample may hold what it likes
        what = f"{len(others):,} files in {file} are no images"
        warnings.warn(f"{what} ({', '.join(ENDINGS)}) and left out, {min(others)} for example", stacklevel=2)
    return images, fields


def _walk(stream: BinaryIO, start: int, end: int, outer: str, folder: str) -> Iterator[Member]:
    """Yield the files of the tar in the bytes from ``start`` to ``end``, which is called ``outer`` and whose top is in
    ``folder``. Only headers are read: images are skipped."""
    stream.seek(start)
    tar = tarfile.TarFile(fileobj=stream)
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # else it keeps all: a gigabyte for a million
        inner = posixpath.normpath(member.name).lstrip("/")
        first, size = member.offset_data, member.size
        if (member.islnk() or member.issym()) and is_image(inner):
            yield Member(posixpath.join(outer, inner), "", inner, -1, 0)
            continue
        if not member.isreg() or member.issparse():
            continue
        if first + size > end:
            raise tarfile.ReadError("unexpected end of data")
        if inner.lower().endswith(".tar"):
            name = posixpath.splitext(inner)[0]
            yield from _walk(stream, first, first + size, name, posixpath.basename(name))
        else:
            above = posixpath.basename(posixpath.dirname(inner)) or folder
            yield Member(posixpath.join(outer, inner), above, inner, first, size)
    stream.seek(tar.offset)
    if stream.read(tarfile.BLOCKSIZE).strip(b"\0") or tar.offset + tarfile.BLOCKSIZE > end:
        raise tarfile.ReadError("no end mark: cut short, or damaged in the middle")


def _key(name: str) -> str:
    """Return what the files of one sample of a shard have in common: their path up to the first dot of the name."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.partition(".")[0])


def _labels(file: Path, fields: list[Member]) -> dict[str, int]:
    """Return the label of each sample that has one; what .cls says goes before .json."""
    found: dict[str, int] = {}
    with file.open("rb") as stream:
        for field in sorted(fields, key=lambda field: field.name.lower().endswith(".cls")):
            stream.seek(field.first)
            content = stream.read(field.size)
            try:
                if (label := _label(content, field.name.lower().endswith(".json"))) is not None:
                    found[_key(field.name)] = label
            except (ValueError, TypeError):
                raise ConfigError(f"{file}/{field.name}: expected a class number, not {content[:30]!r}") from None
    return found


def _label(content: bytes, in_json: bool) -> int | None:
    """Return a label; None if the content is about something else. Raises ``ValueError`` for what is no number of a
    class."""
    value: Any = content
    if in_json:
        entry = json.loads(content)
        value = entry.get("label") if isinstance(entry, dict) else None
        if value is None:
            return None
    label = int(value)
    if label < 0 or isinstance(value, float | bool):
        raise ValueError
    return label


# Shards


def _of_shards(root: Path) -> dict[Split, Place] | None:
    """Return the shards of both splits, of whichever kind has both; None where there are none at all."""
    shards = _shards(root)
    if not shards:
        return None
    for kind in ("tar", "parquet"):
        train, val, test = (
            tuple(file for file in shards if file.suffix == f".{kind}" and _says(file, root) == split)
            for split in ("train", "val", "test")
        )
        if train and (val or test):
            for files in (train, val or test):
                _require_all(files)
                _require_one_folder(files)
            return {"train": Place(kind, root / "train", train), "test": Place(kind, root / "val", val or test)}  # type: ignore[arg-type]
    have = sorted({_says(file, root) for file in shards} - {""})
    raise ConfigError(f"{shards[0]}: shards of {' and '.join(have) or 'no named split'} alone; {EXPECTED}")


def _require_all(files: Sequence[Path]) -> None:
    """Raise ``ConfigError`` if one is missing of files that say how many there are: 'train-00000-of-00005'."""
    sets: dict[tuple[str, int], dict[int, Path]] = {}  # by what stands before the number, and how many there are
    for file in files:
        if found := re.search(r"-(\d+)-of-(\d+)\b", file.name):
            before, number, count = str(file.with_name(file.name[: found.start()])), int(found[1]), int(found[2])
            sets.setdefault((before, count), {})[number] = file
    for (_, count), there in sets.items():
        first = 0 if 0 in there else 1
        if missing := sorted(set(range(first, first + count)) - set(there)):
            file = next(iter(there.values()))
            raise ConfigError(f"{file}: {len(missing)} of its {count} shards are missing, number {missing[0]} first")


def _require_one_folder(files: Sequence[Path]) -> None:
    """Raise ``ConfigError`` for shards of a split in several folders, which may be one set in several sizes: each image
    would count as often."""
    folders = sorted({file.parent for file in files})
    if len(folders) > 1:
        raise ConfigError(
            f"{folders[0]} and {folders[1]} both hold {files[0].suffix} shards of one split; set data.root to one of "
            "them, or put all shards of a set into one folder"
        )


def _shards(root: Path) -> list[Path]:
    """Return the tars and parquet files in the folder and in those within it."""
    folders = [root, *sorted(Path(entry) for entry in os.scandir(root) if not hidden(entry.name) and entry.is_dir())]
    found = [Path(entry) for folder in folders for entry in os.scandir(folder) if not hidden(entry.name)]
    return sorted(path for path in found if path.suffix in (".tar", ".parquet"))


def _says(file: Path, root: Path) -> str:
    words = re.split("[^a-z]+", str(file.relative_to(root)).lower())
    for split, said in WORDS.items():
        if set(words) & set(said):
            return split
    return "test" if "test" in words else ""


def _scan_parquet(place: Place) -> Indexed:
    names, labels, spots = list[str](), list[int](), list[tuple[int, int, int]]()
    called = parquet.class_names(place.files[0])
    for number, file in enumerate(place.files):
        if parquet.class_names(file) != called:
            raise ConfigError(f"{file}: names other classes than {place.files[0]}")
        for name, label, group, row in parquet.rows(file):
            names.append(name)
            labels.append(label)
            spots.append((number, group, row))
    return _numbered(place, names, labels, spots, called)
