"""What stands behind a result, ready to be cited: ``python -m analysis.cite ID``.

An ID is a row of a results table, ``<grid>/<label>`` such as ``study/hiap-20``, or a claim of the ledger such as
``T2-10``. With a commit of this repository behind an @ it is a permalink, ``study/hiap-20@<commit>``: the same numbers
for ever. It is answered in a checkout of that commit, and refused in any other.
"""

from __future__ import annotations

import re
import sys
from datetime import date

import pandas as pd

from analysis.claims import ledger
from analysis.records.results import REPOSITORY, Results
from analysis.stats import seeds
from analysis.studies import evidence, paired
from hiap.cli import parsers
from hiap.train.arguments import one_line_errors
from hiap.train.config import ConfigError, unknown_key
from hiap.train.record import Record, git_state
from slurm import grid as grids

REFERENCE = "arXiv:2603.12222"
ESCAPED = r"\\\1"  # what TeX takes for more than itself, with a backslash in front


def row(results: Results, name: str) -> str:
    """The text for ``<grid>/<label>``. Raises ``ConfigError`` naming the nearest id if there is none."""
    grid, _, label = name.partition("/")
    runs = evidence.load(results, grid)
    found = runs[runs["label"] == label]
    if found.empty:
        raise ConfigError(unknown_key(name, ids(results)).replace("unknown key", "no finished run"))
    for key in ("data", "measure", "test_images"):
        if found[key].nunique() > 1:
            values = " and ".join(f"{value:,}" if key == "test_images" else value for value in found[key].unique())
            raise ConfigError(f"{name}: its runs differ in {key} ({values}), so they have no mean; expected one")
    images = f"{found['measure'].iloc[0]} images"
    top1, macs = paired.accuracy(found), seeds.mean(100 * found["macs_share"])
    over = f"seeds and {images}"
    if pd.isna(top1.low):  # of one seed, or the records do not say which images were right
        top1, over = seeds.mean(found["top1"]), "seeds"
    records = {record.run_id: record for record in results.finished(grid)}
    title, copies = found["title"].iloc[0], results.root.resolve() == REPOSITORY / "results"
    lines = {
        "result": f"{title} on {_setting(records[found['run_id'].iloc[0]], copies)}",
        "top-1": _interval(top1, "%", over),
        "MACs": _interval(macs, "% of dense", "seeds"),
        "n": f"{top1.n} seeds, {found['test_images'].iloc[0]:,.0f} {images}",
        "runs": ", ".join(found.sort_values("seed")["run_id"]),
        "commits": ", ".join(_commits(found)),
        "rerun": rerun(results, grid, label, found),
    }
    note = f"{lines['result']}: top-1 {lines['top-1']} with {macs.mean:.1f} % of the dense MACs, {lines['n']}"
    return _text(name, lines, note)


def _setting(record: Record, copies: bool) -> str:
    """What a number is of: data, pixels, training images and epochs. ``copies``: CIFAR-10 is that of the published
    records."""
    config = record.config
    size, images = config.model.img_size, config.data.train_size
    data = config.data.name + (" (JPEG copies)" if copies and config.data.name == "cifar10" else "")
    shown = [data, f"{size} pixels", *([f"{images:,} training images"] if images else [])]
    return ", ".join([*shown, f"{sum(stage.epochs for stage in record.stages):g} epochs"])


def claim(results: Results, name: str) -> str:
    """The text for a claim of the ledger. Raises ``ConfigError`` naming the nearest id if there is none."""
    stated = list(ledger.load()["id"])
    if name not in stated:
        raise ConfigError(unknown_key(name, stated).replace("unknown key", "no claim"))
    entry = ledger.verdicts(results, [name]).iloc[0]
    shown = {"published": (entry["value"], entry["unit"]), "found": (entry["found"], entry["unit"])}
    lines = {"claim": f"{entry['place']}: {entry['claim']}"}
    lines |= {key: f"{value:g} {unit}".strip() for key, (value, unit) in shown.items() if _number(value)}
    if _number(entry["interval_low"]):
        lines["interval"] = f"[{entry['interval_low']:g}, {entry['interval_high']:g}], n = {entry['n']:.0f}"
    lines |= {"verdict": str(entry["verdict"]), "evidence": str(entry["evidence"])}
    lines |= {key: ", ".join(entry[key].split()) for key in ("runs", "commits") if entry[key]}
    return _text(name, lines, f"{lines['claim']} Verdict: {lines['verdict']}")


def _commits(runs: pd.DataFrame) -> list[str]:
    """Each once; 'dirty' behind one whose tracked code had been changed."""
    dirty = runs.groupby(runs["commit"].str[:10])["dirty"].any()
    return [f"{commit}{' (dirty: the code differed from it)' if is_so else ''}" for commit, is_so in dirty.items()]


def rerun(results: Results, grid: str, label: str, runs: pd.DataFrame) -> str:
    """A command that makes the runs again: the grid's, or, of a grid that was given by a path, the first run's own."""
    if (grids.GRIDS / f"{grid}.yaml").is_file():
        return f"hiap launch --grid {grid} --only {label}"
    from hiap.train.journal import command_of  # here: it waits for torch

    first = runs.sort_values("seed")["run_id"].iloc[0]
    config = next(record for record in results.finished(grid) if record.run_id == first).config
    return command_of(config.model_copy(update={"run": config.run.model_copy(update={"grid": "manual"})}))


def ids(results: Results) -> list[str]:
    """Every ``<grid>/<label>`` that has a finished run."""
    runs = results.runs()
    return sorted({f"{grid}/{label}" for grid, label in zip(runs["grid"], runs["label"], strict=True)})


def check(commit: str) -> None:
    """Raises ``ConfigError`` unless ``commit`` is what is checked out, or begins so."""
    here = git_state()[0]
    if commit and not here.startswith(commit):
        raise ConfigError(f"@{commit}: the commit here is {here[:10] or 'unknown'}; git checkout {commit} first")


def bibtex(name: str, link: str, note: str) -> str:
    text = f"{link}. {note}. Reproduces {REFERENCE}."
    lines = [
        f"@misc{{hiap-reproduction-{name.replace('/', '-')},",
        "  title = {An open reproduction of {HiAP}},",
        "  author = {{The HiAP reproduction contributors}},",
        f"  year = {{{date.today().year}}},",
        f"  note = {{{re.sub(r'([%_&#$])', ESCAPED, text)}}},",
        "}",
    ]
    return "\n".join(lines)


def _text(name: str, lines: dict[str, str], note: str) -> str:
    commit, dirty = git_state()  # '' without git
    link = f"{name}@{commit[:10]}" if commit else name
    shown = {"id": link + (" (dirty: the code here differs from it)" if dirty else ""), **lines}
    return "\n".join([*(f"{title:<10}{value}" for title, value in shown.items()), "", bibtex(name, link, note)])


def _interval(found: seeds.Interval, unit: str, over: str) -> str:
    how = "bootstrap" if found.n >= seeds.ENOUGH else "bootstrap, at least Student's,"
    ends = f" [{found.low:.2f}, {found.high:.2f}] (95 %, {how} over {over})" if found.n > 1 else ""
    return f"{found.mean:.2f} {unit}{ends}"


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not pd.isna(value)


@one_line_errors
def main(arguments: list[str] | None = None) -> int | None:
    options = parsers.cite().parse_args(arguments)
    name, _, commit = options.id.partition("@")
    check(commit)
    print((row if "/" in name else claim)(Results(options.results), name))
    return None


if __name__ == "__main__":
    sys.exit(main())
