"""Questions that reviewers of pruning papers ask (ShrinkBench, and surveys after it), answered from the records.

An answer is 'yes' only where records have it; what a protocol plans and nobody has run yet is 'in part' or 'not yet'.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from analysis.records import names
from analysis.records.results import Results
from analysis.studies import evidence, knobs
from hiap.train.record import Record
from slurm import grid

# (Data, network) pairs of results/PROTOCOL.md, each with the grids that fill it.
PAIRS = {"Fashion-MNIST": ("evidence",), "CIFAR-10": ("cifar10", "cifar10_cut", "cifar10_first")}
PAIRS |= {"Imagenette": ("imagenette", "imagenette_cut"), "CIFAR-10 from scratch": ("table3",)}
SIMPLE, RECENT = (
    ("random", "l1", "uniform", "magnitude"),
    ("taylor", "vit_slim", "cofi", "peer", "obs", "amp", "snapvit"),
)
SHUFFLED = ("same_sizes", "hiap_uniform")
POINTS, ENOUGH = 5, 3  # budgets; seeds


def table(results: Results, claims: pd.DataFrame) -> str:
    """Markdown, a row a question: what is asked, whether it is met, and what there is. ``claims``: the ledger."""
    return names.table([("Asked", "Met", "What there is"), (":---",) * 3, *rows(results, claims)])


def rows(results: Results, claims: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(question, 'yes' | 'in part' | 'not yet', what there is) of every row."""
    runs = {name: [r for g in grids for r in results.finished(g)] for name, grids in PAIRS.items()}
    done = {name: len(runs[name]) for name in PAIRS}
    planned = {name: sum(map(_planned, grids)) for name, grids in PAIRS.items()}
    whole = [name for name in PAIRS if done[name] >= planned[name]]
    counts = names.listed([f"{name} {done[name]} of {planned[name]} runs" for name in PAIRS])
    trained = {name: list(filter(_is_trained, found)) for name, found in runs.items()}
    points = {name: (len(_targets(trained[name])), len(_targets(runs[name]))) for name in PAIRS}
    everything = [record for found in runs.values() for record in found]
    methods = {record.config.name for record in everything}
    scratch = [r for r in everything if r.config.model.scratch]
    shuffled = [r for r in everything if r.config.name in SHUFFLED]
    seeds = {name: max(map(_seeds, map(results.finished, grids))) for name, grids in PAIRS.items()}
    edges = evidence.tuned(evidence.load(results, evidence.TUNING), results.finished(evidence.TUNING))
    edges = edges[edges["taken"] & (edges["edge"] != "")]
    tuning = knobs.of_grid(results)
    tuning = tuning[tuning["taken"]]
    open_rows = claims[claims["verdict"] == "not run"]
    return [
        (
            "Three (data, network) pairs or more, none a toy",
            _met(len(whole), 3),
            f"{counts} ([protocol](../results/PROTOCOL.md))",
        ),
        (
            "Five operating points or more, into collapse",
            _met(max(n for n, _ in points.values()), POINTS),
            names.listed(
                [f"{name} {n} ({both} counting cuts without training)" for name, (n, both) in points.items() if both]
            )
            + " budgets of trained networks ([what to use](what_to_use.md))",
        ),
        ("Compression and speed, the dense network beside each", "yes", "[speed and export](export.md)"),
        (
            "Mean and spread over seeds",
            _met(sum(n >= ENOUGH for n in seeds.values()), len(PAIRS)),
            names.listed([f"{name} {n}" for name, n in seeds.items() if n] or ["none yet"])
            + " seeds at most in a study of trained networks, intervals over seeds and images ([results](results.md))",
        ),
        (
            "Random, magnitude and recent baselines",
            "yes" if methods & {*SIMPLE} and methods & {*RECENT} else "in part",
            f"{len(methods & {*SIMPLE, *RECENT})} methods run ([baselines](baselines.md))",
        ),
        (
            "The pruned shape from scratch, at equal epochs and at equal training MACs",
            _met(len(scratch), 6),
            f"{len(scratch)} runs; grid `cifar10`, labels `scratch`",
        ),
        (
            "Shuffled and re-initialised masks",
            _met(len(shuffled), 9),
            f"{len(shuffled)} runs; grid `cifar10`, labels `same_sizes`, `hiap_uniform`",
        ),
        (
            "One dense start, equal retraining, rates tuned inside their range",
            "yes" if edges.empty and len(tuning) and not tuning["edge"].any() else "in part",
            f"one start and equal retraining; {len(edges)} of the first pair's tuned methods end on an edge "
            f"([tuned](../results/tables/evidence_tuned.csv)), {tuning.loc[tuning['edge'], 'method'].nunique()} of the "
            f"second's {tuning['method'].nunique()} ([tuned](what_to_use.md))",
        ),
        (
            "A command for each claim",
            "yes" if (open_rows["command"].fillna("") != "").all() else "in part",
            f"{len(open_rows)} claims not run have theirs ([ledger](../results/claims.csv)); hours in the report",
        ),
        (
            "Log and network behind each row",
            "in part",
            "`hiap cite` prints a row's record, command and commit; networks are made anew, not published",
        ),
        (
            "The limits beside the claim",
            "yes",
            "column *On what* ([results](results.md)), [open points](open_points.md)",
        ),
    ]


def _planned(name: str) -> int:
    """How many runs a grid has."""
    planned = grid.load(grid.find(name))
    return sum(len(values.get("seeds", planned.seeds)) for values in planned.runs.values())


def _targets(records: Iterable[Record]) -> set[float]:
    """The budgets, as shares of the dense MACs, of runs without a search for one."""
    return {float(r.config.budget.target_macs) for r in records if isinstance(r.config.budget.target_macs, float)}


def _seeds(records: Iterable[Record]) -> int:
    return len({record.seed for record in records if _is_trained(record)})


def _is_trained(record: Record) -> bool:
    return bool(record.config.optim.epochs) and record.config.method != "dense"


def _met(found: int, wanted: int) -> str:
    return "yes" if found >= wanted else "in part" if found else "not yet"
