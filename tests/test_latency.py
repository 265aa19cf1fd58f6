"""Time as the price: fitted prices are the true ones, gates pay them, targets in time are met, wrong tables refused."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import scatter_logits, small_vit
from test_baselines import METHODS, pruned, start  # noqa: F401
from test_extraction import MODES, random_gated

import hiap
from hiap import cost, gated_vit, ledger
from hiap.bench import latency as bench
from hiap.bench import run
from hiap.bench.report import LatencyReport
from hiap.budget import selection
from hiap.budget.latency import LatencyTable, latency_prices, read_latency
from hiap.budget.options import PenaltyConfig
from hiap.budget.prices import kept_cost, priced
from hiap.budget.sizes import known_dims
from hiap.objective import penalties
from hiap.train import run as train
from hiap.train.config import Config, ConfigError, from_dict, merge
from hiap.train.record import Folders

# Microseconds of a batch, unlike MACs: a branch is dear, a value dimension is nearly free.
TIMES = {"head": 40.0, "value_dim": 0.5, "neuron": 1.25, "attention": 90.0, "ffn": 60.0, "constant": 200.0}
DEIT = known_dims("deit_small_patch16_224")


def write_table(folder: Path, model: Any, **changes: Any) -> str:
    sizes = asdict(cost.dims_of(model))
    path = folder / "table.json"
    path.write_text(json.dumps({"latency": {"sizes": sizes, "microseconds": {**TIMES, **changes}}}))
    return str(path)


def table_of(model: Any) -> LatencyTable:
    dims = cost.dims_of(model)
    return LatencyTable(dims, latency_prices(dims.head_dim, TIMES))


def simulated(times: dict[str, float], noise: float, count: int = 48) -> bench.Table:
    """The table of a device on which units have exactly these times, but for noise, in a DeiT-Small."""
    assert DEIT is not None
    rng, networks = np.random.default_rng(0), []
    for name, widths, neurons in bench.shapes(DEIT, count):
        counts = {"heads": sum(map(len, widths)), "value_dims": sum(map(sum, widths)), "neurons": sum(neurons),
                  "attention": sum(map(bool, widths)), "ffn": sum(map(bool, neurons))}  # fmt: skip
        exact = float(np.dot([*counts.values(), 1], list(times.values())))
        networks.append(bench.Network(name=name, **counts, measured=exact * rng.normal(1, noise)))
    return bench.table(DEIT, networks)


def test_known_prices_are_recovered_from_noisy_times() -> None:
    assert simulated(TIMES, 0.0).microseconds == pytest.approx(TIMES, rel=1e-4)
    noisy = simulated(TIMES, 0.01)
    dense = {"head": 72, "value_dim": 4608, "neuron": 18432, "attention": 12, "ffn": 12, "constant": 1}
    total = sum(dense[name] * TIMES[name] for name in dense)
    off = {name: dense[name] * abs(noisy.microseconds[name] - TIMES[name]) / total for name in dense}
    assert max(off.values()) < 0.02, "of the dense network's time, by any price"
    assert len(noisy.held_out) == bench.HELD_OUT
    assert noisy.median_error < 0.015 < noisy.worst_error < 0.06
    assert noisy.median_error == pytest.approx(np.median([abs(n.error) for n in noisy.held_out]), abs=1e-4)


def test_no_price_is_negative_and_stairs_show_in_the_errors() -> None:
    free = simulated({**TIMES, "attention": 0.0, "value_dim": 0.0}, 0.02)
    assert min(free.microseconds.values()) >= 0
    assert simulated(TIMES, 0.1).median_error > 3 * simulated(TIMES, 0.01).median_error


def test_shapes_differ_and_always_see_the_image() -> None:
    assert DEIT is not None
    shapes = list(bench.shapes(DEIT, 48))
    assert len({str(shape[1:]) for shape in shapes}) == 68
    assert all(any(widths) for _, widths, _ in shapes)
    assert {bool(n) for _, _, neurons in shapes for n in neurons} == {True, False}
    assert all(1 <= w <= 64 for _, widths, _ in shapes for block in widths for w in block)


@pytest.mark.parametrize("mode", MODES)
def test_expected_time_of_decided_gates_is_what_the_extracted_network_is_priced_at(mode: Any) -> None:
    model = small_vit()
    table = table_of(model)
    gated = random_gated(model, dims=mode)
    kept = kept_cost(table.prices, gated_vit.masks(gated), 8, gated.blocks[0].attn.cuts_qk)
    small = hiap.extract(gated)
    for _, gate in hiap.named_gates(gated):
        gate.fix(gate.hardened())
    assert cost.expected(gated, table.prices).item() == pytest.approx(kept, rel=1e-5)
    assert priced(small, table.prices, 8) == kept
    assert priced(model, table.prices, 8) == selection.Target(table.dims, table.prices, 0).dense


def test_the_penalty_is_normalised_and_every_gate_feels_it() -> None:
    model = small_vit()
    table, config = table_of(model), PenaltyConfig(lambda_macro=1, lambda_micro=1, ledger="latency")
    gated = hiap.gate(model).train()
    grads = torch.autograd.grad(
        torch.stack(list(penalties(gated, config, table.prices).values())).sum(),
        [gate.logit for _, gate in hiap.named_gates(gated)],
    )
    assert all(bool((grad > 0).all()) for grad in grads)
    kept = gated_vit.masks(gated)
    gated_vit.set_masks(gated, kept)

    def paid() -> float:
        return sum(term.item() for term in penalties(gated, config, table.prices).values())

    assert paid() == pytest.approx(1, abs=1e-6)
    dense = ledger.dense_cost(table.dims, table.prices)
    kept[0].heads[:] = False
    kept[1].ffn = torch.tensor(False)
    gated_vit.set_masks(gated, kept)
    gone = 1e6 * (
        4 * TIMES["head"] + 32 * TIMES["value_dim"] + TIMES["attention"] + 128 * TIMES["neuron"] + TIMES["ffn"]
    )
    assert 1 - paid() == pytest.approx(gone / dense, rel=1e-4)


def test_the_gradient_is_the_slope() -> None:
    table, gated = table_of(small_vit()), hiap.gate(small_vit(), init_logit=0.3).train()
    logit = gated.blocks[1].attn.head_gate.logit
    cost.expected(gated, table.prices).backward()
    with torch.no_grad():
        values = []
        for step in (0.05, -0.05):
            logit[2] += step
            values.append(cost.expected(gated, table.prices).item())
            logit[2] -= step
    assert logit.grad[2].item() == pytest.approx((values[0] - values[1]) / 0.1, rel=0.02)


@pytest.mark.parametrize(
    ("share", "missed"),
    # At 0.3 every unit of what is left is open, and the next one would bring a branch of its own back.
    [(0.8, TIMES["neuron"]), (0.5, TIMES["neuron"]), (0.3, TIMES["neuron"] + TIMES["ffn"])],
)
def test_a_target_in_time_is_met_within_a_unit_by_table_or_by_file(share: float, missed: float, tmp_path: Path) -> None:
    model = small_vit()
    table, gated = table_of(model), hiap.gate(model)
    scatter_logits(gated)
    dense = priced(model, table.prices, 8)
    small = hiap.extract(gated, multiple=1, target_latency=share, latency=table)
    assert share * dense - 1e6 * missed < priced(small, table.prices, 8) <= share * dense
    in_microseconds = hiap.extract(
        gated, multiple=1, target_latency=share * dense / 1e6, latency=write_table(tmp_path, model)
    )
    assert [b.attn.value_dims if b.attn else [] for b in in_microseconds.blocks] == [
        b.attn.value_dims if b.attn else [] for b in small.blocks
    ]


def test_a_dear_branch_goes_where_time_is_the_price() -> None:
    """With the same gates and steps, prices in time close the branch that only time knows to be dear."""
    left = {}
    for ledger_name, lambdas in (("physical", 3.0), ("latency", 3.0)):
        torch.manual_seed(0)
        model, dear = small_vit(), replace(table_of(small_vit()).prices, ffn=10**10)
        table = LatencyTable(cost.dims_of(model), dear) if ledger_name == "latency" else None
        pruner = hiap.Pruner(
            model.train(), steps=20, lambda_macro=lambdas, lambda_micro=0, latency=table,
            penalty=PenaltyConfig(ledger=ledger_name), gates=hiap.GateConfig(init_logit=0.5),
        )  # fmt: skip
        optimizer = torch.optim.AdamW(pruner.param_groups(lr=0.05))
        for _ in range(20):
            optimizer.zero_grad()
            pruner.penalty().backward()
            optimizer.step()
            pruner.step()
        left[ledger_name] = [bool(mask.ffn) for mask in gated_vit.masks(pruner.model)]
    assert left == {"physical": [True] * 3, "latency": [False] * 3}


@pytest.mark.parametrize(("method", "sections"), METHODS)
@pytest.mark.filterwarnings("ignore:Unwrapped parameters detected")
def test_every_method_meets_a_target_in_time(start: Config, method: str, sections: Any, tmp_path: Path) -> None:  # noqa: F811
    network = hiap.load(Folders.of(start).model)
    sections = merge({"penalty": {"latency_table": write_table(tmp_path, network)}}, sections)
    if method == "hiap":
        sections["penalty"]["ledger"] = "latency"
    budget = {**sections.get("budget", {}), "target_macs": None, "target_latency": 0.8}
    config = pruned(start, method, **{**sections, "budget": budget})
    record = train.run(config)
    assert record.latency is not None
    assert 0.7 * record.latency.dense < record.latency.predicted <= 0.8 * record.latency.dense
    small, table = hiap.load(Folders.of(config).model), read_latency(tmp_path / "table.json")
    assert priced(small, table.prices, table.dims.head_dim) / 1e6 == pytest.approx(record.latency.predicted)
    assert record.latency.table_sha256 == table.sha256


def test_the_bench_measures_a_table_that_a_run_can_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_vit()
    hiap.save(model, tmp_path / "net")
    quick = ["networks=12", "rounds=3", "warmup=1", "batches=[2]", f"out={tmp_path}", "name=quick"]
    assert run.main(["latency", f"model={tmp_path / 'net'}", *quick]) == 0
    assert "20 networks that were not fitted: median error" in capsys.readouterr().out
    report = LatencyReport.model_validate_json((tmp_path / "quick.json").read_text())
    assert [row.name for row in report.rows[:3]] == ["dense", "fitted:0", "fitted:1"]
    assert len(report.rows) == 1 + 12 + 20
    found = report.latency
    assert found is not None
    assert (len(found.fitted), len(found.held_out)) == (13, 20)
    table = read_latency(tmp_path / "quick.json")
    assert table.dims == cost.dims_of(model)
    assert priced(model, table.prices, 8) / 1e6 == pytest.approx(found.fitted[0].predicted, rel=1e-3)
    assert found.fitted[0].measured == pytest.approx(1e6 * report.rows[0].seconds[1])
    small = hiap.extract(hiap.gate(model), target_latency=0.9, latency=table)
    assert priced(small, table.prices, 8) <= 0.9 * priced(model, table.prices, 8)
    processes_of_equal_times_give_the_same_table(report, monkeypatch)


def processes_of_equal_times_give_the_same_table(report: LatencyReport, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = subprocess.run

    def child(command: list[str], **options: Any) -> Any:
        if "hiap.bench" not in command:
            return plain(command, **options)
        folder = next(part.removeprefix("out=") for part in command if part.startswith("out="))
        return (Path(folder) / "part.json").write_text(report.model_dump_json())

    monkeypatch.setattr(subprocess, "run", child)
    merged = run._merged_latency(run.in_processes("latency", [], report.settings.model_copy(update={"processes": 2})))
    assert merged.latency == report.latency


BAD_TABLES = {
    "missing": (None, "No such file or directory; expected a report of python -m hiap.bench latency"),
    "not JSON": ("{", "expected a report of"),
    "another report": (json.dumps({"mode": "speed", "latency": None}), "expected a report of"),
    "no sizes": (json.dumps({"latency": {"microseconds": TIMES}}), "expected a report of"),
    "negative": ({"head": -1}, "expected a report of"),
    "not a number": ({"ffn": float("nan")}, "expected a report of"),
    "words": ({"ffn": "much"}, "expected a report of"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_table_that_is_none_is_refused_before_anything_is_written(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, line = BAD_TABLES[case]
    path = tmp_path / "table.json"
    if isinstance(content, dict):
        write_table(tmp_path, small_vit(), **content)
    elif content is not None:
        path.write_text(content)
    refused(
        tmp_path, capsys, f"latency table '{path}'", line, "penalty.ledger=latency", f"penalty.latency_table={path}"
    )


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("dim 32, not 16; depth 3, not 1", ["penalty.ledger=latency", "penalty.latency_table={}"]),
        ("dim 32, not 16; depth 3, not 1", ["budget.target_latency=0.5", "penalty.latency_table={}"]),
        ("penalty.ledger latency needs penalty.latency_table", ["penalty.ledger=latency"]),
        ("budget.target_latency needs penalty.latency_table", ["budget.target_latency=0.5"]),
        ("budget.target_latency needs penalty.latency_table", ["budget.target_latency=0.5", "method=l1"]),
        ("penalty.latency_table is for", ["penalty.latency_table={}"]),
        ("penalty.latency_table is for", ["penalty.latency_table={}", "penalty.ledger=latency", "method=dense"]),
        (
            "budget.target_macs and budget.target_latency: set one",
            ["budget.target_latency=0.5", "budget.target_macs=0.5"],
        ),
        ("budget.target_latency: Input should be greater than 0", ["budget.target_latency=-1"]),
    ],
)
def test_options_that_do_not_go_together_are_one_line(
    line: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_table(tmp_path, small_vit())
    refused(tmp_path, capsys, line, "", *(argument.format(path) for argument in arguments))


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *lines_then_arguments: str) -> None:
    first, second, *arguments = lines_then_arguments
    base = ["data.name=digits", "model.img_size=16", "model.embed_dim=16", "model.num_heads=2", "model.depth=1",
            "distill.alpha=0", "optim.epochs=1", "gates.lr=2", f"run.results={folder / 'out'}"]  # fmt: skip
    assert train.main([*base, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert first in error
    assert second in error
    assert error.count("\n") == 1
    assert not list((folder / "out").rglob("*.json"))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"target_latency": 0.5}, "latency: expected a table of this network"),
        ({"target_latency": 0.5, "target_macs": 0.5}, "target_macs and target_latency: set one of them"),
        ({"target_latency": 0.001, "latency": table_of(small_vit())}, " µs cannot be reached"),
        ({"target_latency": 0.5, "latency": table_of(small_vit(depth=2))}, "depth 2, not 3"),
        ({"target_latency": "half", "latency": table_of(small_vit())}, "target_latency 'half': expected a share"),
        ({"penalty": PenaltyConfig(ledger="latency")}, "latency: expected a table of this network"),
    ],
)
def test_a_pruner_refuses_in_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        hiap.Pruner(small_vit(), **{"steps": 10, **options})
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", ["batches=[1,2]", "dims=qkv", "networks=3"])
def test_the_bench_refuses_what_has_no_table(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["latency", wrong]) == 2
    error = capsys.readouterr().err
    assert "prices one batch size, dims v" in error or "networks" in error
    assert error.count("\n") == 1


def test_run_ids_are_as_before_and_a_table_is_part_of_new_ones() -> None:
    plain = from_dict({"penalty": {"lambda_macro": 0.5}})
    assert plain.run_id == from_dict({"penalty": {"lambda_macro": 0.5, "ledger": "paper", "latency_table": ""}}).run_id
    assert plain.run_id != from_dict({"penalty": {"lambda_macro": 0.5, "latency_table": "x"}}).run_id


def test_a_table_that_nothing_would_ask_is_refused() -> None:
    model = small_vit()
    table, images = table_of(model), torch.randn(4, *cost.image_of(model))
    for call in (
        lambda: hiap.Pruner(model.train(), steps=20, target_macs=0.5, latency=table),
        lambda: hiap.prune(model, images, target_macs=0.5, latency=table),
        lambda: hiap.extract(hiap.gate(model), target_macs=0.5, latency=table),
    ):
        with pytest.raises(hiap.ConfigError, match="is for target_latency, which is not set"):
            call()
