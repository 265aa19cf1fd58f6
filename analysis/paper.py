r"""The numbers of ``paper/paper.tex``: ``python -m analysis.paper [--results results]`` writes ``paper/numbers.tex``.

The report's prose holds no number of its own. It says ``\n{study.hiap.80.top1}``, and this module computes what that is
from records, benchmarks and ``analysis.findings``; only names that the report uses are written, and one that is not
known here is an error.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from analysis import bench, claims, collect, findings, findings_runs, stats, tables
from hiap.config import Config, ConfigError
from hiap.record import atomic_write

PAPER = collect.REPOSITORY / "paper"
USED = re.compile(r"\\n\{([^}]+)\}")
Numbers = dict[str, str]


def fixed(value: float, digits: int = 2) -> str:
    """A number in TeX, with a true minus sign."""
    text = f"{value:,.{digits}f}".replace(",", "{,}")
    return f"${text}$" if value < 0 else text


def of_study(root: Path, grid: str, name: str) -> Numbers:
    """``<name>.<variant>.<kept>.top1``, ``.low``, ``.high``, ``.diff``, ``.difflow``, ``.diffhigh``; of each budget how
    many methods are decidedly ``better`` or ``worse`` than HiAP or ``undecided``, and ``methods``."""
    runs = collect.load(root, grid)
    if runs.empty:
        return {}
    rows, found = stats.study(runs), Numbers()
    found[f"{name}.runs"] = str(len(runs))
    found[f"{name}.seeds"] = str(runs["seed"].nunique())
    found[f"{name}.images"] = fixed(runs["test_images"].max(), 0)
    found[f"{name}.hours"] = fixed(runs["seconds"].sum() / 3600, 1)
    columns = {"top1": "top1", "low": "low", "high": "high"}
    columns |= {"difference": "diff", "difference_low": "difflow", "difference_high": "diffhigh"}
    for row in rows.to_dict("records"):
        kept = "free" if pd.isna(row["target"]) else f"{100 * row['target']:.0f}"
        key = f"{name}.{row['variant']}.{kept}"
        found |= {f"{key}.{short}": fixed(row[column]) for column, short in columns.items()}
        found |= {f"{key}.macs": fixed(100 - row["reduction"], 1), f"{key}.tmacs": fixed(row["train_macs"] / 1e12)}
    for target, group in rows.dropna(subset=["target", "difference"]).groupby("target"):
        decided = group[group["decided"] == True]  # noqa: E712  (a column of objects)
        better = int((decided["difference"] > 0).sum())
        counts = {"better": better, "worse": len(decided) - better, "undecided": len(group) - len(decided)}
        kept = f"{100 * float(target):.0f}"  # type: ignore[arg-type]
        found |= {f"{name}.{kept}.{k}": str(v) for k, v in {**counts, "methods": len(group)}.items()}
    return found


def of_gaps(root: Path) -> Numbers:
    """``gap.<label>.mean``, ``.low``, ``.high``: extracted minus soft top-1."""
    runs = collect.load(root, "study")
    rows = stats.spread(runs, ["gap"]) if len(runs) else pd.DataFrame()
    ends = {"mean": "gap", "low": "gap_low", "high": "gap_high"}
    return {f"gap.{r['label']}.{k}": fixed(r[c]) for r in rows.to_dict("records") for k, c in ends.items()}


def of_budget(root: Path) -> Numbers:
    runs = collect.load(root, "budget")
    if runs.empty:
        return {}
    aimed = runs.dropna(subset="target")
    landed = stats.landings(aimed)
    ruled = runs[runs["target"].isna() & (runs["method"] == "hiap")]
    misses = stats.rule_misses(root, "budget")
    hand = stats.by_hand(ruled, sorted(aimed["target"].unique()))
    return {
        "budget.runs": str(len(aimed)),
        "budget.targets": str(aimed["target"].nunique()),
        "budget.seeds": str(aimed["seed"].nunique()),
        "budget.above": str(int((aimed["macs_share"] > aimed["target"]).sum())),
        "budget.shortfall": fixed(landed["shortfall"].max(), 3),
        "budget.rule.low": fixed(misses.min(), 1),
        "budget.rule.high": fixed(misses.max(), 1),
        "budget.hand.low": fixed(hand["low"].min(), 1),
        "budget.hand.high": fixed(hand["high"].max(), 1),
    }


def of_labels(root: Path, grid: str, name: str) -> Numbers:
    """``<name>.<label>.top1`` and ``.macs`` (per cent of dense), means over seeds."""
    runs = collect.load(root, grid)
    means = runs.groupby("label")[["top1", "macs_share", "value_dims"]].mean() if len(runs) else pd.DataFrame()
    found = {f"{name}.runs": str(len(runs)), f"{name}.seeds": str(runs["seed"].nunique() if len(runs) else 0)}
    for label, row in means.iterrows():
        found |= {f"{name}.{label}.top1": fixed(row["top1"]), f"{name}.{label}.macs": fixed(100 * row["macs_share"], 1)}
    return found


def of_findings() -> Numbers:
    units, value, search = findings.units(), findings.value_dimension(), findings.search_conventions()
    parts, hits = findings.cost_parts(), search[search["hit"]]
    one, two = findings.hardening_gap(0.1), findings.hardening_gap(0.1, gates=2)
    reach = findings_runs.macro_only_reach()
    figures = findings_runs.head_pressure().set_index("figure")
    pressure, heads = figures["pressure"].to_dict(), figures["heads"].to_dict()
    ahead = findings_runs.against_two_to_one().query("ratio == '1.5:1'").set_index("gflops")["ahead"].to_dict()
    slim, better = findings_runs.vit_slim_rows().iloc[0], findings_runs.better_and_no_larger()
    told = findings_runs.rows_with_training()
    small = findings_runs.feasible_region(2.5, 12.3)["neurons"]
    fewest = findings_runs.fewest_value_dims(3.1, 15.0, "v")
    found = {
        "units.paper": fixed(units.paper / 1e9, 3),
        "units.true": fixed(units.prunable_macs / 1e9, 3),
        "units.total": fixed(units.total_macs / 1e9, 3),
        "units.params": fixed(units.params / 1e6, 2),
        "value.credited": fixed(value.credited, 0),
        "value.saved": fixed(value.saved, 0),
        "value.share": fixed(100 * value.share, 0),
        "cifar.true": fixed(sum(parts.values()) / 1e6, 1),
        "cifar.thop": fixed(findings.thop_count() / 1e6, 1),
        "cifar.attention": fixed(parts["attention"] / 1e6, 1),
        "search.tried": fixed(len(search), 0),
        "search.hits": str(len(hits)),
        "gap.one.expected": fixed(one.expected),
        "gap.one.hardened": fixed(one.hardened, 0),
        "gap.two.expected": fixed(two.expected),
        "undecided": fixed(100 * findings.undecided_share(0.5), 0),
        "macro.largest": fixed(reach["largest"].iloc[0] / 1e9, 3),
        "pressure.six": fixed(pressure[6] / 1e6, 1),
        "pressure.seven": fixed(pressure[7] / 1e6, 1),
        "heads.six": str(int(heads[6])),
        "heads.seven": str(int(heads[7])),
        "ahead.low": fixed(ahead[1.8], 1),
        "slim.formula": fixed(slim["formula"]),
        "slim.params": fixed(slim["params"]),
        "better.rows": str(int((better["hiap_gmacs"] == 3.1).sum())),
        "better.most": fixed(better["ahead"].max()),
        "told.rows": str(told["rows"].sum()),
        "told.state": str(told["state"].sum()),
        "small.neurons.low": fixed(small.min(), 0),
        "small.neurons.high": fixed(small.max(), 0),
        "fewest.dims": "none" if fewest is None else fixed(fewest, 1),
    }
    return found


def of_bench(root: Path) -> Numbers:
    rows = bench.load(root)
    main = rows[rows["report"] == "deit_small_cpu_fp32_b16"].set_index("name")
    found = {"speed.dense": fixed(main["ratio"].to_dict()["full"], 3)}
    cut = main[main["share"].notna()]
    found |= {"speed.share.low": fixed(cut["share"].min()), "speed.share.high": fixed(cut["share"].max())}
    for report, name in (("steps_deit_small_cpu", "steps.small"), ("steps_vit_tiny_cpu", "steps.tiny")):
        pair = rows[rows["report"] == report].set_index("name")
        memory = pair["memory_mib"].to_dict()
        found[f"{name}.time"] = fixed(pair["ratio"].to_dict()["gated"], 3)
        found[f"{name}.memory"] = fixed(memory["gated"] / memory["dense"], 3)
    return found


def of_claims(root: Path) -> Numbers:
    verdicts = claims.verdicts(root)
    counts = verdicts["verdict"].value_counts()
    names = ("confirmed", "contradicted", "different setting", "insufficient seeds", "not run")
    return {"claims.all": str(len(verdicts)), **{f"claims.{name}": str(counts.get(name, 0)) for name in names}}


def of_project(root: Path) -> Numbers:
    """What is committed, and the defaults of what the paper leaves open."""
    runs, config = collect.load(root), Config()
    machines = runs.groupby("device_name")["seconds"].sum() / 3600
    return {
        "runs.all": fixed(len(runs), 0),
        "runs.hours": fixed(machines.sum(), 1),
        "runs.machines": ", ".join(machines.index),
        "size.hiap": fixed(_lines("hiap"), 0),
        "size.baselines": fixed(_lines("baselines"), 0),
        "size.tests": fixed(_lines("tests"), 0),
        "default.init": fixed(config.gates.init_logit, 0),
        "default.open": fixed(float(findings.sigmoid(config.gates.init_logit))),
        "default.tau.start": fixed(config.gates.tau_start, 1),
        "default.tau.end": fixed(config.gates.tau_end, 1),
        "default.alpha": fixed(config.distill.alpha, 1),
        "default.temperature": fixed(config.distill.temperature, 0),
    }


def _lines(folder: str) -> int:
    """Lines of code, comments and docstrings included."""
    return sum(len(path.read_text().splitlines()) for path in (collect.REPOSITORY / folder).glob("*.py"))


SOURCES: tuple[Callable[[Path], Numbers], ...] = (
    lambda root: of_study(root, "study", "study"),
    lambda root: of_study(root, "study_long", "long"),
    of_gaps,
    of_budget,
    lambda root: of_labels(root, "sensitivity", "sensitivity"),
    lambda root: of_labels(root, "ratios", "ratios"),
    lambda root: of_labels(root, "a4", "a4"),
    lambda root: of_findings(),
    of_bench,
    of_claims,
    of_project,
)


def numbers(root: Path) -> Numbers:
    """Every number that the report may use, as TeX."""
    return {name: text for source in SOURCES for name, text in source(root).items()}


def used(tex: str) -> list[str]:
    """Names of numbers outside comments."""
    return sorted(set(USED.findall(re.sub(r"(?<!\\)%.*", "", tex))))


def definitions(tex: str, known: Numbers) -> str:
    r"""``numbers.tex`` for the names that ``tex`` uses. Raises ``ConfigError`` naming those that are not known."""
    if unknown := [name for name in used(tex) if name not in known]:
        raise ConfigError(f"paper.tex uses numbers that are not computed: {', '.join(unknown)}")
    lines = [f"\\expandafter\\def\\csname n.{name}\\endcsname{{{known[name]}}}" for name in used(tex)]
    return "\n".join(["% Written by python -m analysis.paper.", *lines]) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.paper", description="Write paper/numbers.tex.")
    parser.add_argument("--results", type=Path, default=collect.REPOSITORY / "results")
    options = parser.parse_args(arguments)
    try:
        text = definitions((PAPER / "paper.tex").read_text(), numbers(options.results))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    atomic_write(PAPER / "numbers.tex", text.encode())
    shown = tables.compact(stats.study(collect.load(options.results, "study")))
    atomic_write(PAPER / "study.tex", tables.latex(shown).encode())
    atomic_write(PAPER / "claims.tex", tables.latex(claims.table(claims.verdicts(options.results))).encode())
    print(f"{len(used(text)) or text.count('csname n.')} numbers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
