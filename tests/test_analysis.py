"""Records to rows, tables, figures and notebooks; the findings' arithmetic. Records are made up, in tmp folders."""

from __future__ import annotations

import asyncio
import json
import math
import re
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import execute
from analysis.figures import costs as cost_pictures
from analysis.figures import heat_maps as maps
from analysis.figures import style
from analysis.findings import costs, gates, heat_maps
from analysis.records import names, published, results
from analysis.records.results import REPOSITORY, Results, dense_units, gate_trajectory, topology
from analysis.studies import comparisons, evidence, paired
from analysis.tables import ours, render, theirs
from hiap.budget.sizes import dense_params
from hiap.ledger import Dims
from hiap.train.config import ConfigError, from_dict
from hiap.train.record import (
    BlockShape,
    Environment,
    EpochLog,
    Folders,
    Metrics,
    Record,
    Score,
    Size,
    StageCost,
    read,
    write,
)

DEPTH, HEADS, HEAD_DIM, NEURONS, EPOCHS = 4, 3, 32, 384, 6
DENSE_MACS, DENSE_PARAMS = 31_234_560, 461_290


def made_up(
    label: str, method: str, seed: int = 0, macs: int = DENSE_MACS, top1: float = 90.0, **config: Any
) -> Record:
    """A record of the right form whose numbers nobody measured."""
    model = {"patch_size": 4, "embed_dim": 96, "depth": DEPTH, "num_heads": HEADS, **config.pop("model", {})}
    full = from_dict(
        {"method": method, "seed": seed, "model": model, "run": {"label": label, "grid": "laptop"}, **config}
    )
    gated = method == "hiap"
    scores = {"hardened": top1, "soft": top1 - 1.5} if gated else {}
    scores |= {"dense": 90.0} if method != "dense" else {}
    bill = StageCost(name=method, epochs=EPOCHS, steps=60, images=7_680, seconds=61.5, train_macs=3.0 * macs * 7_680)
    return Record(
        run_id=full.run_id,
        grid="laptop",
        label=label,
        status="finished",
        config=full,
        seed=seed,
        metrics=Metrics(extracted=score(top1), **{name: score(value) for name, value in scores.items()}),
        size=Size(
            dense_macs=DENSE_MACS, dense_params=DENSE_PARAMS, macs=macs, params=DENSE_PARAMS * macs // DENSE_MACS
        ),
        stages=[bill],
        epochs=gate_logs(seed) if gated else [],
        shape=[BlockShape(head_dims=[30, 12, 21], neurons=300), *[BlockShape(head_dims=[32], neurons=0)] * 3],
        environment=Environment(
            device="cpu",
            device_name="a processor",
            threads=1,
            python="3.11",
            platform="Linux",
            libraries={},
            commit="0" * 40,
            dirty=False,
            command="train",
        ),
        started="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T00:01:00+00:00",
    )


def score(top1: float) -> Score:
    return Score(top1=top1, loss=0.5, n=10_000)


def gate_logs(seed: int) -> list[EpochLog]:
    rng, logs = np.random.default_rng(seed), []
    for epoch in range(EPOCHS):
        heads = [max(0, HEADS - int(rng.integers(0, 2 + epoch))) for _ in range(DEPTH)]
        logs.append(
            EpochLog(
                stage="hiap",
                epoch=epoch,
                loss=1.0,
                lr=1e-3,
                heads=heads,
                head_dims=[[HEAD_DIM - 4 * epoch + h for h in range(n)] for n in heads],
                neurons=[NEURONS - 40 * epoch - 7 * block for block in range(DEPTH)],
                macs=DENSE_MACS,
            )
        )
    return logs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A results root with the runs of Table 3's shape, HiAP at two seeds, and a failed attempt."""
    dense = put(tmp_path, made_up("dense", "dense"))
    start = {"model": {"weights": f"run:{dense.run_id}"}}
    for seed, top1 in ((0, 87.0), (1, 88.0)):
        put(tmp_path, made_up("hiap-moderate", "hiap", seed, 20_990_000, top1, **start))
    put(tmp_path, made_up("hiap-aggressive", "hiap", 0, 15_600_000, 85.0, penalty={"lambda_macro": 1.8}, **start))
    put(tmp_path, made_up("uniform-moderate", "uniform", 0, 20_950_000, 86.1, **start))
    put(tmp_path, made_up("l1-moderate", "l1", 0, 20_980_000, 86.4, **start))
    failed = made_up("l1-aggressive", "l1", 0, 15_600_000, budget={"target_macs": 0.5}, **start)
    put(tmp_path, failed.model_copy(update={"status": "failed", "error": "out of patience", "size": None}))
    return tmp_path


def put(root: Path, record: Record) -> Record:
    write(record, Folders(root, record.grid, record.run_id))
    return record


# Records to rows


def test_a_record_becomes_one_row_with_its_numbers(root: Path) -> None:
    runs = Results(root).runs()
    assert list(runs) == list(results.RUN_COLUMNS)
    assert len(runs) == 6
    row = runs.query("label == 'hiap-moderate' and seed == 1").iloc[0]
    assert (row["top1"], row["top1_soft"], row["top1_hardened"], row["top1_dense"]) == (88.0, 86.5, 88.0, 90.0)
    assert (row["gap"], row["macs"], row["epochs"], row["images"]) == (1.5, 20_990_000, EPOCHS, 7_680)
    assert row["macs_share"] == 20_990_000 / DENSE_MACS
    assert row["train_macs"] == 3 * 20_990_000 * 7_680
    assert row["start"] == runs.query("method == 'dense'")["run_id"].item()
    assert row["test_images"] == 10_000


def test_failed_attempts_are_kept_apart(root: Path) -> None:
    failed = Results(root).failures("laptop")
    assert failed[["label", "error"]].values.tolist() == [["l1-aggressive", "out of patience"]]
    assert list(failed) == list(results.FAILURE_COLUMNS)
    assert Results(root).runs("another").empty
    assert Results(root).failures("another").empty


def test_a_file_that_is_no_record_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "laptop" / "dense-0.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"schema_version": 1}))
    with pytest.raises(ConfigError, match=r"dense-0\.json: not a run record") as error:
        Results(tmp_path).runs()
    assert "\n" not in str(error.value)


def test_a_record_is_read_once_and_anew_by_who_looks_anew(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[Path]()
    monkeypatch.setattr(results, "read", lambda path: (seen.append(path), read(path))[1])
    found = Results(root)
    before = found.runs()
    own = found.runs("laptop")
    own["label"] = "another"  # what is handed out is the caller's own
    assert found.runs().equals(before)
    assert found.runs("laptop").equals(before)
    assert len(found.stages()) > len(before), "the start's stages are read as well"
    assert len(seen) == len(set(seen)) == len(found.records())
    record = found.records()[0]
    changed = write(record.model_copy(update={"label": "renamed"}), Folders(root, record.grid, record.run_id))
    assert found.runs().equals(before)
    assert "renamed" in set(Results(root).runs()["label"])
    changed.unlink()
    assert record.run_id not in set(Results(root).runs()["run_id"])


def test_bills_begin_with_what_the_start_cost(root: Path) -> None:
    bills = Results(root).stages()
    assert list(bills) == list(results.STAGE_COLUMNS)
    run = bills.query("label == 'l1-moderate'")
    assert run["stage"].tolist() == ["dense", "l1"]
    assert run["inherited"].tolist() == [True, False]
    assert run["train_macs"].iloc[0] == bills.query("label == 'dense'")["train_macs"].item()


def test_gate_trajectory_counts_what_is_open() -> None:
    record = made_up("hiap", "hiap")
    opened = gate_trajectory(record)
    assert list(opened) == list(results.GATE_COLUMNS)
    assert len(opened) == EPOCHS * DEPTH
    for row in opened.to_dict("records"):
        log = record.epochs[row["epoch"]]
        assert log.heads is not None
        assert log.head_dims is not None
        assert row["heads"] == log.heads[row["block"]]
        if row["heads"]:
            assert row["mean_dims"] == pytest.approx(np.mean(log.head_dims[row["block"]]))
        else:
            assert math.isnan(row["mean_dims"])
    assert (opened["heads"] == 0).any()
    assert gate_trajectory(made_up("dense", "dense")).empty


def test_topology_lists_heads_by_size() -> None:
    shape = topology(made_up("hiap", "hiap"))
    assert list(shape) == list(results.SHAPE_COLUMNS)
    assert shape["head_dims"].iloc[0] == [30, 21, 12]
    assert shape["heads"].tolist() == [3, 1, 1, 1]


def test_published_numbers_are_as_their_readme_says() -> None:
    readme = (published.FOLDER / "README.md").read_text()
    for path in published.FOLDER.glob("*.csv"):
        section = readme.split(f"## `{path.name}`")[1].split("\n## ")[0]
        assert set(published.table(path.stem)) == set(re.findall(r"`(\w+)`", section)), path.name
    assert published.table("table1_frameworks")["macro"].iloc[0] == "None"
    assert len(published.heat_map(5)) == 600
    with pytest.raises(ConfigError, match="table3_cifar10_vit_tiny"):
        published.table("table9")


# Tables


def test_reductions_and_intervals_are_computed(root: Path) -> None:
    rows = comparisons.summary(Results(root).runs()).set_index("label")
    assert rows.index[0] == "dense"
    assert rows.loc["hiap-moderate", "reduction"] == pytest.approx(100 * (1 - 20_990_000 / DENSE_MACS))
    assert rows.loc["hiap-moderate", ["top1", "n"]].tolist() == [87.5, 2]
    assert rows.loc["hiap-moderate", "interval"] == pytest.approx(12.706 * math.sqrt(0.5) / math.sqrt(2), rel=1e-4)
    assert math.isnan(rows.loc["dense", "interval"])


def test_published_reductions_agree_with_the_printed_ones() -> None:
    printed = published.table("table3_cifar10_vit_tiny")["reduction_pct"]
    assert (theirs.table3()["reduction"] - printed).abs().max() < 0.1


def test_one_label_for_two_configurations_is_refused(root: Path) -> None:
    put(root, made_up("l1-moderate", "l1", 0, optim={"epochs": 7}))
    with pytest.raises(ConfigError, match="label 'l1-moderate' names different runs"):
        comparisons.summary(Results(root).runs())
    grid = Results(root).finished()[0].grid
    for look in (Results.runs, paired.load, evidence.load):
        with pytest.raises(ConfigError, match="label 'l1-moderate' names different runs"):
            look(Results(root), grid)


def test_seeds_of_one_label_with_other_settings_are_refused(tmp_path: Path) -> None:
    for seed, options in enumerate(({}, {"precision": "bf16"}, {"epochs": 7})):
        put(tmp_path, made_up("l1-moderate", "l1", seed, optim=options))
        if seed < 2:
            assert len(Results(tmp_path).runs(Results(tmp_path).finished()[0].grid)) == seed + 1
    with pytest.raises(ConfigError, match=r"label 'l1-moderate' names runs of different optim\.epochs: .* in l1-"):
        Results(tmp_path).runs(Results(tmp_path).finished()[0].grid)


def test_text_markdown_and_latex_show_the_same_cells(root: Path) -> None:
    table = ours.table3(Results(root).runs())
    text, markdown, latex = render.text(table), render.markdown(table), render.latex(table)
    assert max(map(len, text.splitlines())) <= render.TEXT_WIDTH
    for panel in table.panels:
        for cells in table.cells(panel):
            assert "| " + " | ".join(cells) + " |" in markdown
            assert " & ".join(cells).replace("%", "\\%") + " \\\\" in latex
            shown = [cells[0][:24], *cells[1:]]  # a terminal clips long names
            assert re.search(r"\s+".join(map(re.escape, shown[1:])) + "\n", text)
            assert shown[0] in text
    assert text.count("87.50") == 1
    assert latex.count("\\toprule") == latex.count("\\bottomrule") == 1
    assert "bf" not in latex


def test_each_panel_names_its_data(root: Path) -> None:
    paper, own = ours.table3(Results(root).runs()).panels
    assert "CIFAR-10" in paper.heading
    assert "published" in paper.heading
    assert own.heading.startswith("This repository: affine-digits, 10,000 test images")
    assert len(paper.rows) == 6
    assert len(own.rows) == 5
    assert [panel.heading for panel in ours.table3(Results(root).runs("another")).panels] == [paper.heading]


# Figures


def figures(root: Path) -> dict[str, tuple[Any, pd.DataFrame]]:
    record = Results(root).gated()[0]
    full, opened, shape = dense_units(record), gate_trajectory(record), topology(record)
    prices, counts = costs.price_list(), costs.counting_conventions()
    return {
        "gates": (maps.gate_heatmaps(opened, full), opened),
        "topology": (maps.widths(shape, full), shape),
        "cost_ledger": (cost_pictures.prices(prices), prices),
        "conventions": (cost_pictures.conventions(counts, 174.0e6), counts),
    }


def test_figures_are_saved_to_the_same_bytes(root: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        for name, (figure, data) in figures(root).items():
            if name in ("conventions", "topology"):
                style.save(figure, name, data, tmp_path / folder)
    files = sorted(path.name for path in (tmp_path / "a" / "figures").iterdir())
    assert files == [f"{name}.{suffix}" for name in ("conventions", "topology") for suffix in ("csv", "pdf", "png")]
    for name in files:
        assert (tmp_path / "a" / "figures" / name).read_bytes() == (tmp_path / "b" / "figures" / name).read_bytes()
    assert b"CreationDate" not in (tmp_path / "a" / "figures" / "conventions.pdf").read_bytes()
    plotted = pd.read_csv(tmp_path / "a" / "figures" / "conventions.csv")
    assert plotted["macs"].tolist() == costs.counting_conventions()["macs"].tolist()


def test_no_text_leaves_a_figure_or_covers_another(root: Path) -> None:
    for name, (figure, _) in figures(root).items():
        figure.draw_without_rendering()
        page = figure.bbox.padded(1)
        boxes = [t.get_window_extent() for ax in figure.axes for t in ax.texts if t.get_text().strip()]
        for box in boxes:
            assert page.x0 <= box.x0, name
            assert box.x1 <= page.x1, name
        tight = figure.get_tightbbox().padded(-0.02)
        assert tight.x1 <= figure.get_figwidth(), name
        for i, box in enumerate(boxes):
            assert not any(box.padded(-1).overlaps(other) for other in boxes[:i]), name


def test_methods_differ_in_colour_and_marker() -> None:
    looks = style.LOOKS.values()
    assert len({look.colour for look in looks}) == len({look.marker for look in looks}) == len(names.METHODS)
    assert style.LOOKS.keys() == names.METHODS.keys()


# Findings


def test_finding_1_the_ledger_counts_flops() -> None:
    units = costs.units()
    assert units.paper == 9_081_391_104
    assert units.prunable_macs == 4_540_695_552
    assert units.ratio == 2
    assert units.total_macs / 1e9 == pytest.approx(4.5989, abs=5e-5)


@pytest.mark.parametrize(
    ("name", "dims"),
    [
        ("deit_small_patch16_224", costs.DEIT_SMALL),
        ("vit_tiny_patch16_224", Dims(192, 12, 3, 64, 768, 16, 224, 3, 1000)),
        ("deit_tiny_distilled_patch16_224", Dims(192, 12, 3, 64, 768, 16, 224, 3, 1000, 2, 2)),
    ],
)
def test_parameters_are_those_of_timm(name: str, dims: Dims) -> None:
    import timm
    import torch

    with torch.device("meta"):
        model = timm.create_model(name)
    assert dense_params(dims) == sum(p.numel() for p in model.parameters())


def test_finding_2_value_dimensions_are_credited_too_little() -> None:
    value = costs.value_dimension()
    assert (value.credited, value.saved) == (114_457, 190_105)
    assert value.share == pytest.approx(0.602, abs=5e-4)
    per_block = costs.price_list().groupby("ledger")["macs_per_block"].sum()
    assert per_block["Eq. 5"] == per_block["true"] == 4_540_695_552 // 12


def test_finding_3_mixed_conventions() -> None:
    parts = costs.cost_parts()
    assert parts == {"linear": 172_523_520, "attention": 9_734_400, "patch": 589_824, "head": 1_920}
    assert sum(parts.values()) == 182_849_664
    assert costs.thop_count() == 173_991_204


def test_finding_3_search_agrees_with_the_ledger_and_finds_no_plain_count_with_attention() -> None:
    search = costs.search_conventions()
    assert len(search) == math.prod(map(len, costs.SEARCH.values()))
    plain = "patch == 4 and mlp_ratio == 4 and prefix == 1 and classes == 10 and stem_and_head == 'both'"
    plain += " and bias == 0 and norm == 0 and softmax == 0 and gelu == 0"
    assert search.query(f"{plain} and attention_products == 2")["macs"].item() == sum(costs.cost_parts().values())
    hits = search[search["hit"]]
    assert ((hits["macs"] >= 173.95e6) & (hits["macs"] <= 174.05e6)).all()
    assert len(hits.query("attention_products == 0")) > 0
    assert hits.query("attention_products == 2 and mlp_ratio % 1 == 0").empty
    odd = hits.query("attention_products == 2")[["mlp_ratio", "prefix", "gelu"]].drop_duplicates()
    assert odd.values.tolist() == [[3.5, 2, 8]]


def test_finding_4_hardening_misses_the_expectation_at_every_temperature() -> None:
    gap = gates.hardening_gap(0.1)
    assert (round(gap.expected, 2), gap.hardened) == (5.25, 10)
    assert round(gates.hardening_gap(0.1, gates=2).expected, 2) == 2.76
    p = 1 / (1 + math.exp(-0.1))
    assert abs(gap.gap) == pytest.approx(10 * min(p, 1 - p))
    assert gates.hardening_gap(-0.1).gap == pytest.approx(-gap.gap)
    variances = [gates.sample_variance(tau, 0.1) for tau in (2.0, 0.5, 0.1, 0.001)]
    assert variances == sorted(variances)
    assert variances[-1] == pytest.approx(p * (1 - p), abs=1e-3)


@pytest.mark.parametrize(("tau", "logit"), [(0.5, 0.0), (0.5, 1.0), (2.0, 0.0)])
def test_finding_5_agrees_with_sampling(tau: float, logit: float) -> None:
    noise = np.random.default_rng(0).logistic(size=400_000)
    samples = gates.sigmoid((logit + noise) / tau)
    sampled = np.mean((samples > 0.05) & (samples < 0.95))
    assert gates.undecided_share(tau, logit) == pytest.approx(sampled, abs=3e-3)
    assert round(gates.undecided_share(0.5), 2) == 0.63


def test_final_sizes_of_the_digitised_runs() -> None:
    sizes = heat_maps.final_sizes().set_index("figure")
    assert sizes["heads"].tolist() == [34, 20, 33, 16, 72]
    assert (sizes["macs"] / 1e9).round(3).tolist() == [3.151, 3.235, 3.023, 3.236, 2.395]
    assert (sizes["macs_as_read"] / 1e9).round(3).tolist() == [3.151, 3.232, 3.023, 3.228, 2.395]
    assert (sizes["last_ffn_neurons"] > 0).tolist() == [False, True, False, True, False]
    full = heat_maps._macs([6] * 12, [1536] * 12)
    assert full == costs.units().total_macs
    assert heat_maps._params([6] * 12, [1536] * 12) == costs.units().params


# Notebooks


def outputs(results: Path) -> dict[str, bytes]:
    files = [p for folder in ("tables", "figures") for p in sorted((results / folder).iterdir())]
    return {str(p.relative_to(results)): p.read_bytes() for p in files}


def run(notebook: str, results: Path) -> str:
    return nbformat.writes(asyncio.run(execute.execute(execute.FOLDER / f"{notebook}.ipynb", results))) + "\n"


@pytest.mark.slow
def test_all_notebooks_run_on_few_records(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, made_up("dense", "dense"))
    put(tmp_path, made_up("hiap-moderate", "hiap", 0, 20_990_000, 87.0))
    assert execute.main(["--results", str(tmp_path)]) == 0
    shown, errors = capfd.readouterr()
    assert errors == ""
    assert "The paper's rule, our reading" in shown
    assert "conventions.pdf" in shown
    there = sorted(path.name for path in execute.FOLDER.glob("*.ipynb"))
    assert sorted(path.name for path in (tmp_path / "notebooks").iterdir()) == there
    assert "tables/findings.csv" in outputs(tmp_path)


def test_a_notebook_runs_and_a_second_run_writes_the_same(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root, few = tmp_path, ["02_laptop_table", "03_gate_heatmaps"]
    put(root, made_up("dense", "dense"))
    run_id = put(root, made_up("hiap-moderate", "hiap", 0, 20_990_000, 87.0)).run_id
    assert execute.main(["--results", str(root), "--only", *few]) == 0
    written = outputs(root)
    assert {f"figures/gates_{run_id}.pdf", "tables/table3.tex"} <= set(written)
    again = run("02_laptop_table", root)
    assert outputs(root) == written
    assert again == (root / "notebooks" / "02_laptop_table.ipynb").read_text()

    capfd.readouterr()
    done = execute.Done(root / "notebooks", root)
    assert all(done.has(path) for path in execute.notebooks(few))
    assert execute.main(["--results", str(root), "--only", *few]) == 0
    assert "2 notebooks are as they were" in capfd.readouterr().out
    put(root, made_up("hiap-heavy", "hiap", 1, 20_000_000, 86.0))
    done = execute.Done(root / "notebooks", root)  # looks once
    assert not any(done.has(path) for path in execute.notebooks([])), "other records"
    (root / "figures" / f"gates_{run_id}.pdf").unlink()
    assert not execute.Done(root / "notebooks", root).digests, "what was written is gone"


def test_a_notebook_that_is_not_there_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert execute.main(["--only", "17_evidance"]) == 2
    assert "unknown notebook '17_evidance' (did you mean '17_evidence'" in capfd.readouterr().err


def test_notebooks_say_so_when_nothing_has_run(tmp_path: Path) -> None:
    assert run("02_laptop_table", tmp_path).count("No finished run of grid 'laptop'") > 2
    assert (
        not (tmp_path / "tables" / "table3.csv").exists()
        or "affine" not in (tmp_path / "tables" / "table3.csv").read_text()
    )


def test_a_failing_cell_is_one_line(tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell("raise ValueError('expected a record\\nand more')")
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": {"name": "python3", "display_name": ""}})
    nbformat.write(notebook, tmp_path / "a.ipynb")
    with pytest.raises(execute.NotebookError, match=r"^a\.ipynb: ValueError: expected a record$"):
        asyncio.run(execute.execute(tmp_path / "a.ipynb", tmp_path))


def test_a_kernel_that_does_not_start_is_tried_again_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    async def start(path: Path, results: Path) -> nbformat.NotebookNode:
        tries.append(1)
        if len(tries) < wanted:
            raise RuntimeError("Kernel didn't respond")
        return nbformat.v4.new_notebook()

    monkeypatch.setattr(execute, "_execute", start)
    wanted = 2
    assert asyncio.run(execute.execute(Path("a.ipynb"), Path())) == nbformat.v4.new_notebook()
    tries.clear()
    wanted = execute.STARTS + 1
    with pytest.raises(RuntimeError, match="respond"):
        asyncio.run(execute.execute(Path("a.ipynb"), Path()))
    assert len(tries) == execute.STARTS


def test_committed_notebooks_hold_no_path_and_no_error() -> None:
    for path in (REPOSITORY / "analysis").glob("*.ipynb"):
        notebook = json.loads(path.read_text())
        text = json.dumps(notebook["cells"])
        assert not re.search(r"/(home|Users|root|tmp|work)/", text), path.name
        assert '"output_type": "error"' not in text
        assert all("execution" not in cell["metadata"] for cell in notebook["cells"])


def test_no_room_asks_one_further_on() -> None:
    rooms = re.findall(r"``(\w+)``", analysis.__doc__.split("\n\n")[1])
    assert set(rooms) == {path.parent.name for path in execute.FOLDER.glob("*/__init__.py")}
    for i, room in enumerate(rooms):
        for path in (execute.FOLDER / room).glob("*.py"):
            asked = re.findall(r"^from analysis\.?(\w*)", path.read_text(), re.MULTILINE)
            assert not set(asked) & set(rooms[i + 1 :]), path
