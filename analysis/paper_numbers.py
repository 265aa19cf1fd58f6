r"""Every number that ``paper/paper.tex`` may use, as TeX, by name: from records, benchmarks and ``analysis.findings``.

``analysis.paper`` writes those that it does use.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from analysis import bench, calibrate, claims, collect, findings, findings_runs, open_points, pull, speed_limit, stats
from hiap.train.config import Config

Numbers = dict[str, str]
DECIDED = ("confirmed", "contradicted")
GAP_LOGIT, GAP_UNITS = 0.1, 10  # the example of finding 4
TEN = 10  # epochs within which, says the text, heads have closed


def fixed(value: float, digits: int = 2) -> str:
    """A number in TeX, with a true minus sign, which zero has none of."""
    text = f"{round(value, digits) + 0.0:,.{digits}f}".replace(",", "{,}")
    return f"${text}$" if text.startswith("-") else text


def of_study(root: Path, grid: str, name: str) -> Numbers:
    """``<name>.<variant>.<kept>.top1``, ``.low``, ``.high``, ``.diff``, ``.difflow``, ``.diffhigh``, ``.macs``,
    ``.tmacs``; ``kept`` is the target in per cent, or 'free'."""
    runs = collect.load(root, grid)
    if runs.empty:
        return {}
    rows, found = stats.study(runs), Numbers()
    found[f"{name}.runs"] = str(len(runs))
    found[f"{name}.seeds"] = str(runs["seed"].nunique())
    found[f"{name}.images"] = fixed(runs["test_images"].max(), 0)
    found[f"{name}.targets"] = str(runs["target"].nunique())
    columns = {"top1": "top1", "low": "low", "high": "high"}
    columns |= {"difference": "diff", "difference_low": "difflow", "difference_high": "diffhigh"}
    for row in rows.to_dict("records"):
        key = f"{name}.{row['variant']}.{_kept(row['target'])}"
        found |= {f"{key}.{short}": fixed(row[column]) for column, short in columns.items()}
        found |= {f"{key}.macs": fixed(100 - row["reduction"], 1), f"{key}.tmacs": fixed(row["train_macs"] / 1e12)}
    return found | _standing(rows, name) | _controls(runs, rows, name)


def _kept(target: float) -> str:
    return "free" if pd.isna(target) else f"{100 * target:.0f}"


def _standing(rows: pd.DataFrame, name: str) -> Numbers:
    """Of each budget (``kept.<kept>``), how many ``methods`` are compared with HiAP, and how many of them are decidedly
    ``better`` or ``worse`` or ``undecided``."""
    found = Numbers()
    for target, group in rows.dropna(subset=["target", "difference"]).groupby("target"):
        decided = group[group["decided"] == True]  # noqa: E712  (a column of objects)
        better = int((decided["difference"] > 0).sum())
        counts = {"better": better, "worse": len(decided) - better, "undecided": len(group) - len(decided)}
        kept = _kept(float(target))  # type: ignore[arg-type]
        found |= {f"{name}.{kept}.{k}": str(v) for k, v in {**counts, "methods": len(group)}.items()}
        found[f"kept.{kept}"] = kept
    return found


def _controls(runs: pd.DataFrame, rows: pd.DataFrame, name: str) -> Numbers:
    """HiAP with a target minus each network from which nothing was removed (``<name>.over.<control>.<kept>``):
    ``diff``, ``difflow``, ``diffhigh``, and in words whether it is decided."""
    found = Numbers()
    scores = {str(label): group.set_index("seed")["top1"] for label, group in runs.groupby("label")}
    for row in rows[rows["variant"] == stats.REFERENCE].to_dict("records"):
        for control in [label for label in scores if label.startswith("dense")]:
            against = stats.compare(scores[row["label"]], scores[control])
            ends = {
                "diff": against.difference.mean,
                "difflow": against.difference.low,
                "diffhigh": against.difference.high,
            }
            key = f"{name}.over.{control}.{_kept(row['target'])}"
            side = "above" if against.difference.mean > 0 else "below"
            found |= {f"{key}.{short}": fixed(value) for short, value in ends.items()}
            found[f"{key}.words"] = f"decidedly {side}" if against.decided else "not decidedly above or below"
    return found


def of_single_phase(root: Path) -> Numbers:
    """``_standing`` of the longer recipes beside HiAP's single phase of the study's epochs."""
    longer, short = collect.load(root, "study_long"), collect.load(root, "study")
    return _standing(stats.against_single_phase(longer, short), "single") if len(longer) and len(short) else {}


def of_gaps(root: Path) -> Numbers:
    """``gap.<label>.mean``, ``.low``, ``.high``: extracted minus soft top-1."""
    runs = collect.load(root, "study")
    rows = stats.mean_per_label(runs, ["gap"]) if len(runs) else pd.DataFrame()
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
    first = ruled[ruled["seed"] == ruled["seed"].min()]["macs_share"]
    within = sorted(aimed.loc[aimed["target"].between(first.min(), first.max()), "target"].unique())
    hand = stats.by_hand(ruled, within)
    return {
        "budget.runs": str(len(aimed)),
        "budget.targets": str(aimed["target"].nunique()),
        "budget.seeds": str(aimed["seed"].nunique()),
        "budget.above": str(int((aimed["macs_share"] > aimed["target"]).sum())),
        "budget.shortfall": fixed(landed["shortfall"].max(), 3),
        "budget.rule.low": fixed(misses.min(), 1),
        "budget.rule.high": fixed(misses.max(), 1),
        "budget.strengths": str(ruled["label"].nunique()),
        "budget.hand.targets": str(len(within)),
        "budget.hand.tuned": fixed(hand["tuned"].abs().max(), 1),
        "budget.hand.low": fixed(hand["low"].min(), 1),
        "budget.hand.high": fixed(hand["high"].max(), 1),
    }


def of_labels(root: Path, grid: str) -> Numbers:
    """``<grid>.<label>.top1`` and ``.macs`` (per cent of dense), means over seeds."""
    runs = collect.load(root, grid)
    means = runs.groupby("label")[["top1", "macs_share"]].mean() if len(runs) else pd.DataFrame()
    found = {f"{grid}.runs": str(len(runs)), f"{grid}.seeds": str(runs["seed"].nunique() if len(runs) else 0)}
    for label, row in means.iterrows():
        found |= {f"{grid}.{label}.top1": fixed(row["top1"]), f"{grid}.{label}.macs": fixed(100 * row["macs_share"], 1)}
    return found


def of_open_points(root: Path) -> Numbers:
    """``open.<label>.diff``, ``.difflow``, ``.diffhigh``: top-1 of a reading against the default, paired by seed; and
    how many of the floors' readings (A7) leave the default's networks as they are."""
    rows, found = open_points.measured(root), Numbers()
    ends = {"difference": "diff", "difference_low": "difflow", "difference_high": "diffhigh"}
    for row in rows.to_dict("records"):
        found |= {f"open.{row['label']}.{short}": fixed(row[column]) for column, short in ends.items()}
    runs = collect.load(root, "sensitivity")
    sizes = {label: group.set_index("seed")["macs"].sort_index() for label, group in runs.groupby("label")}
    floors = [label for label in sizes if str(label).startswith("A7-")]
    same = sum(sizes[label].equals(sizes["default"]) for label in floors)
    measured = rows["point"].nunique()
    empty, gated = open_points.emptied_layers(root)
    return found | {
        "open.points": str(len(open_points.POINTS)),
        "open.measured": str(measured),
        "a4.seeds": str(collect.load(root, "a4")["seed"].nunique()),
        "open.floors": str(len(floors)),
        "open.floors.same": str(same),
        "open.emptied": str(empty),
        "open.gated": str(gated),
    }


def of_ratios(root: Path) -> Numbers:
    """Of each ratio at its strongest price (``ratios.<series>.strength``): ``macs`` in per cent of dense, ``top1``, and
    the means of ``heads`` and of ``neurons`` that are left, in per cent of the dense network's."""
    runs = collect.load(root, "ratios")
    runs = runs[runs["method"] == "hiap"]
    if runs.empty:
        return {}
    parts = runs["label"].str.rpartition("-")
    runs = runs.assign(series=parts[0], strength=parts[2].astype(float))
    record = collect.gated_records(root, "ratios")[0]
    full = {unit: len(record.shape or []) * count for unit, count in collect.dense_units(record).items()}
    found = {"ratios.strengths": str(runs["strength"].nunique()), "ratios.seeds": str(runs["seed"].nunique())}
    for series, group in runs.groupby("series"):
        mine = group[group["strength"] == group["strength"].max()]
        shares = {unit: 100 * mine[unit].mean() / full[unit] for unit in ("heads", "neurons")}
        values = {**shares, "macs": 100 * mine["macs_share"].mean(), "top1": mine["top1"].mean()}
        found |= {f"ratios.{series}.{name}": fixed(value, 1) for name, value in values.items()}
        found[f"ratios.{series}.strength"] = f"{mine['strength'].max():g}"
    return found


def of_costs() -> Numbers:
    """Findings 1 to 5: units, value dimensions, ways of counting, hardening."""
    units, value, search = findings.units(), findings.value_dimension(), findings.search_conventions()
    parts, hits = findings.cost_parts(), search[search["hit"]]["attention_products"]
    one, two = (findings.hardening_gap(GAP_LOGIT, GAP_UNITS, gates) for gates in (1, 2))  # type: ignore[arg-type]
    return {
        "units.paper": fixed(units.paper / 1e9, 3),
        "units.true": fixed(units.prunable_macs / 1e9, 3),
        "units.total": fixed(units.total_macs / 1e9, 3),
        "units.params": fixed(units.params / 1e6, 2),
        "units.ratio": fixed(units.ratio, 0),
        "value.credited": fixed(value.credited, 0),
        "value.saved": fixed(value.saved, 0),
        "value.share": fixed(100 * value.share, 0),
        "cifar.true": fixed(sum(parts.values()) / 1e6, 1),
        "cifar.thop": fixed(findings.thop_count() / 1e6, 1),
        "cifar.attention": fixed(parts["attention"] / 1e6, 1),
        "search.tried": fixed(len(search), 0),
        "search.hits": str(len(hits)),
        "search.hits.with": str(int((hits == 2).sum())),
        "search.hits.without": str(int((hits == 0).sum())),
        "gap.units": str(GAP_UNITS),
        "gap.logit": f"{GAP_LOGIT:g}",
        "gap.one.expected": fixed(one.expected),
        "gap.one.hardened": fixed(one.hardened, 0),
        "gap.two.expected": fixed(two.expected),
        "undecided": fixed(100 * findings.undecided_share(0.5), 0),
    }


def of_printed() -> Numbers:
    """Findings 6 to 13: the paper's tables and figures held against each other."""
    figures = findings_runs.head_pressure().set_index("figure")
    ahead = findings_runs.against_two_to_one().query("ratio == '1.5:1'").set_index("gflops")["ahead"].to_dict()
    slim, better = findings_runs.vit_slim_rows().iloc[0], findings_runs.better_and_no_larger()
    training, text, full = findings_runs.rows_with_training(), findings_runs.Described(), findings.DEIT_SMALL.head_dim
    found = {
        "macro.largest": fixed(findings_runs.macro_only_reach()["largest"].iloc[0] / 1e9, 3),
        "ahead.low": fixed(ahead[1.8], 1),
        "slim.formula": fixed(slim["formula"]),
        "slim.params": fixed(slim["params"]),
        "better.rows": str(int((better["hiap_gmacs"] == 3.1).sum())),
        "better.most": fixed(better["ahead"].max()),
        "told.rows": str(training["rows"].sum()),
        "told.state": str(training["state"].sum()),
        "described.dims": str(text.value_dims),
    }
    for name, figure in (("six", 6), ("seven", 7)):
        found[f"pressure.{name}"] = fixed(figures["pressure"].to_dict()[figure] / 1e6, 1)
        found[f"heads.{name}"] = str(int(figures["heads"].to_dict()[figure]))
    for cut in ("v", "qkv"):
        least = findings_runs.fewest_value_dims(3.1, 15.0, cut) or float("nan")  # type: ignore[arg-type]
        found[f"fewest.{cut}"] = fixed(least, 1)
        found[f"narrow.{cut}"] = fixed(100 * (full - least) / (full - text.value_dims), 0)
    return found


def of_speed_limit() -> Numbers:
    """Finding 14: travel of a logit (``limit.*``), and what Figs. 5-9 show after their first epoch."""
    scheduled, full = speed_limit.reach(speed_limit.FIGURES), speed_limit.reach(speed_limit.FIGURES, full=True)
    first = speed_limit.first_reach()
    ours = first[(first["rate"] == speed_limit.RATE) & (first["start"] == Config().gates.init_logit)].iloc[0]
    columns = speed_limit.first_columns().set_index("figure")
    found = {
        "limit.rate": r"$5\cdot10^{-5}$" if speed_limit.RATE == 5e-5 else "nan",
        "limit.epoch": fixed(full[0]),
        "limit.grown": fixed(speed_limit.grown(speed_limit.FIGURES, 1)),
        "limit.ten.epochs": str(TEN),
        "limit.ten": fixed(scheduled[TEN - 1], 1),
        "limit.all": fixed(scheduled[-1]),
        "limit.cifar": fixed(speed_limit.reach(speed_limit.CIFAR)[-1]),
        "limit.open": fixed(100 * speed_limit.most_open_start(), 0),
        "limit.open.grown": fixed(100 * float(findings.sigmoid(speed_limit.grown(speed_limit.FIGURES, 1))), 0),
        "limit.full": str(ours["full"]),
        "limit.scheduled": str(ours["scheduled"]),
        "limit.neurons.nine": fixed(100 * float(columns["neurons_closed"].loc[9]), 0),
    }
    names = dict(zip(findings.FIGURES, ("five", "six", "seven", "eight", "nine"), strict=True))
    return found | {f"limit.heads.{name}": str(columns["heads_closed"].loc[figure]) for figure, name in names.items()}


def of_calibrate(root: Path) -> Numbers:
    """``calibrate.*``: how many readings, and the distances from Figs. 5-9, whole and after the first epoch."""
    lines = calibrate.curves(root)
    if not (lines["reading"] != "paper").any():
        return {}
    near = calibrate.distances(lines)
    whole, first = near.set_index("reading")["distance"], near.set_index("reading")["first"].sort_values()
    looks = next(iter(calibrate.taken(root).values())).gates
    return {
        "calibrate.readings": str(len(near)),
        "calibrate.steps": str(looks[-1].steps),
        "calibrate.near": fixed(whole.min()),
        "calibrate.taken": fixed(whole[calibrate.TAKEN]),
        "calibrate.old": fixed(whole[calibrate.BEFORE]),
        "calibrate.first": fixed(first[calibrate.TAKEN]),
        "calibrate.first.next": fixed(first.drop(calibrate.TAKEN).min()),
        "calibrate.first.old": fixed(first[calibrate.BEFORE]),
    }


def of_pull(root: Path) -> Numbers:
    """``pull.<network>.<kind>``: the median pull of task and price on each kind of gate."""
    rows = pull.load(root)
    names = {network.title: name for name, network in pull.NETWORKS.items()}
    return {
        f"pull.{names[row['network']]}.{row['kind'].replace(' ', '-')}": fixed(row["both_middle"])
        for row in rows.to_dict("records")
    }


def of_soft() -> Numbers:
    """What the closed form is not: the mean of a soft gate's samples, at our start and the first temperature (A2)."""
    gates = Config().gates
    return {"soft.mean": fixed(findings.sample_mean(gates.tau_start, gates.init_logit), 3),
            "soft.closed": fixed(float(findings.sigmoid(gates.init_logit)), 3)}  # fmt: skip


def of_bench(root: Path) -> Numbers:
    rows = bench.load(root)
    main = rows[rows["report"] == "deit_small_cpu_fp32_b16"].set_index("name")
    found = {"speed.dense": fixed(main["ratio"].to_dict()["full"], 3), "speed.batch": str(main["batch"].max())}
    found["bench.reports"] = str(rows["report"].nunique())
    found["bench.cuda"] = str(rows.loc[rows["device"] == "cuda", "report"].nunique())
    cut = main[main["share"].notna()]
    found |= {"speed.share.low": fixed(cut["share"].min()), "speed.share.high": fixed(cut["share"].max())}
    for report, name in (("steps_deit_small_cpu", "steps.small"), ("steps_vit_tiny_cpu", "steps.tiny")):
        pair = rows[rows["report"] == report].set_index("name")
        memory = pair["memory_mib"].to_dict()
        found[f"{name}.time"] = fixed(pair["ratio"].to_dict()["gated"], 3)
        found[f"{name}.memory"] = fixed(memory["gated"] / memory["dense"], 3)
    return found | _of_peer(rows[rows["report"] == "peer_deit_small_cpu"])


def _of_peer(rows: pd.DataFrame) -> Numbers:
    """``peer.<kind>.low``, ``.high``: time over Torch-Pruning's, over all budgets (``peer.gmacs``) and widths."""
    parts = rows["name"].str.split("/", expand=True)
    found = {"peer.gmacs": " and ".join(sorted(parts[1].unique(), reverse=True))}
    for kind in ("fig5", "uniform-qkv", "uniform-v"):
        ratios = rows.loc[parts[0].str.startswith(kind), "ratio"]
        found |= {f"peer.{kind}.low": fixed(ratios.min()), f"peer.{kind}.high": fixed(ratios.max())}
    return found


def of_claims(everything: pd.DataFrame) -> Numbers:
    """``everything``: the ``claims.verdicts``."""
    verdicts = everything[everything["kind"] != claims.OTHERS]
    counts = verdicts["verdict"].value_counts()
    found = {
        "claims.all": str(len(verdicts)),
        "claims.others": str(len(everything) - len(verdicts)),
        **{f"claims.{name}": str(counts.get(name, 0)) for name in claims.VERDICTS},
    }
    ours = verdicts[verdicts["kind"].isin(["accuracy", "speed"])]["verdict"]
    return found | {"claims.trained": str(len(ours)), "claims.decided": str(int(ours.isin(DECIDED).sum()))}


def of_project(root: Path) -> Numbers:
    """What is committed, and the defaults of what the paper leaves open."""
    runs, config = collect.load(root), Config()
    return {
        "runs.all": fixed(len(runs), 0),
        "runs.hours": fixed(runs["seconds"].sum() / 3600, 1),
        "runs.machines": collect.machines(runs["device_name"]),
        "runs.threads": str(max(record.environment.threads for record in collect.records(root))),
        "runs.disk": fixed(sum(path.stat().st_size for path in root.glob("runs/*/*.json")) / 1e6, 1),
        "methods.baselines": str(len(set(runs["method"]) - {"dense", "hiap"})),
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
    """Lines of code, comments and docstrings included, to the next hundred: not every edit is one of the report."""
    return round(sum(len(path.read_text().splitlines()) for path in (collect.REPOSITORY / folder).rglob("*.py")), -2)


SOURCES: tuple[Callable[[Path], Numbers], ...] = (
    lambda root: of_study(root, "study", "study"),
    lambda root: of_study(root, "study_long", "long"),
    of_single_phase,
    of_gaps,
    of_budget,
    lambda root: of_labels(root, "sensitivity"),
    of_open_points,
    of_ratios,
    lambda root: of_costs(),
    lambda root: of_printed(),
    lambda root: of_speed_limit(),
    of_calibrate,
    of_pull,
    lambda root: of_soft(),
    of_bench,
    of_project,
)


def numbers(root: Path, verdicts: pd.DataFrame) -> Numbers:
    """Every number that the report may use, as TeX; ``verdicts`` as ``claims.verdicts`` judges what is in ``root``."""
    return {name: text for source in SOURCES for name, text in source(root).items()} | of_claims(verdicts)
