"""The command ``hiap``: help everywhere, from the options' own comments, without waiting for torch."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hiap.bench import run as bench
from hiap.bench import settings
from hiap.cli import commands, options, parsers
from hiap.cli import networks as formats
from hiap.cli import prune as prune_cli
from hiap.cli.commands import main
from hiap.train.config import Config, did_you_mean, valid_keys

ROOT = Path(__file__).parents[1]
ENTRIES = {
    "hiap": ["-m", "hiap"],
    "hiap.train": ["-m", "hiap.train"],
    "hiap.bench": ["-m", "hiap.bench"],
    "launch_grid": ["slurm/launch_grid.py"],
}


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
@pytest.mark.parametrize("name", [name for name in commands.COMMANDS if name in commands.available()])
def test_every_command_answers_help_and_waits_for_nothing_slow(name, word):
    code = (
        "import sys; from hiap.cli import main; status = main(sys.argv[1:]);"
        "slow = {'torch', 'timm', 'pandas', 'matplotlib'} & set(sys.modules); assert not slow, slow; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, name, word], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: hiap")


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_old_entries_answer_help_too(entry):
    done = subprocess.run([sys.executable, *ENTRIES[entry], "--help"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: hiap" in done.stdout


def test_help_takes_less_than_a_second_of_a_processor():
    before = time.process_time()
    commands_help = subprocess.run([sys.executable, "-X", "importtime", "-m", "hiap.train", "-h"], cwd=ROOT,
                                   capture_output=True, text=True)  # fmt: skip
    total = sum(int(line.split("|")[0].split(":")[1]) for line in commands_help.stderr.splitlines()[1:] if "|" in line)
    assert time.process_time() - before < 1
    assert total < 3e6  # microseconds of imports; 0.4 s on a quiet machine, and tests share theirs


SECTIONS = [(f"{name}.", field.annotation) for name, field in Config.model_fields.items()]


def every_option() -> list[options.Option]:
    found = [*options.options_of(Config)]
    for prefix, section in SECTIONS:
        found += options.options_of(section, prefix) if options._is_section(section) else []
    modes = [mode.settings for mode in settings.MODES.values() if mode.settings]
    return [*found, *(option for mode in modes for option in options.options_of(mode))]


@pytest.mark.parametrize("option", every_option(), ids=lambda option: option.key)
def test_every_option_has_a_sentence_a_default_and_its_values(option):
    assert len(option.text.split()) > 1, option
    assert option.default, option
    assert option.values != "value", option


def every_argument() -> list[tuple[str, str, argparse.Action]]:
    """Command, its whole help, and each argument of those that argparse reads."""
    saved = formats._parser()._subparsers._group_actions[0].choices.values()
    made = [getattr(parsers, name)() for name, command in commands.COMMANDS.items() if command.study]
    found = [prune_cli._parser(), *saved, *made]
    return [(p.prog, " ".join(p.format_help().split()), a) for p in found for a in p._actions if a.dest != "help"]


@pytest.mark.parametrize(("command", "shown", "argument"), every_argument(), ids=lambda v: getattr(v, "dest", ""))
def test_every_argument_has_a_sentence_and_its_default(command, shown, argument):
    assert len((argument.help or "").split()) > 1 or argument.help == "owner/name", (command, argument.dest)
    if argument.option_strings and argument.default not in (None, False, []):
        said = shown.partition(argument.option_strings[0] + " ")[2]
        assert "default" in said.split(" --", 1)[-1], (command, argument.dest)


def test_every_key_that_runs_take_is_in_the_help(capsys):
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    sections = {prefix.rstrip(".") for prefix, section in SECTIONS if options._is_section(section)}
    for key in valid_keys():
        assert f"{key}: " in shown if key in sections else f"  {key}=" in shown, key


def test_help_of_one_section_and_of_ones_own_file(capsys, tmp_path):
    assert main(["train", "--help", "shrink"]) == 0
    shown = capsys.readouterr().out
    assert "shrink.after=0" in shown
    assert "optim." not in shown
    (tmp_path / "mine.py").write_text('"""Mine."""\nOPTIONS = {"share": 0.5}\ndef stages(config): ...\n')
    assert main(["train", "--help", f"method={tmp_path / 'mine.py'}"]) == 0
    assert "options.share=0.5" in capsys.readouterr().out
    assert main(["train", "--help", "shrnk"]) == 2
    assert "did you mean 'shrink'" in capsys.readouterr().err


def test_the_help_of_the_benchmark_knows_its_modes(capsys):
    assert {*settings.MODES} == {*bench.MODES, "gpu"}
    assert all(settings.MODES[name].settings is mode.settings for name, mode in bench.MODES.items())
    assert main(["bench"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in settings.MODES)
    assert main(["bench", "deploy"]) == 0  # starts nothing
    assert "usage: hiap bench deploy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("data.image_size", "'model.img_size'"),
        ("lr", "'optim.lr' or 'gates.lr' or 'search.lr'"),
        ("epochs", "'optim.epochs'"),
        ("optim.epoch", "'optim.epochs'"),
        ("modle", "'model'"),
        ("target_macs", "'budget.target_macs'"),
        ("model.lr", "'optim.lr'"),
    ],
)
def test_suggestions_go_by_the_last_word_across_sections(key, meant):
    assert f"(did you mean {meant}" in did_you_mean(key, valid_keys())


def test_a_mistyped_command_is_one_line(capsys):
    assert main(["trian"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err
    assert main([]) == 0


def test_what_is_not_installed_is_one_line(monkeypatch, capsys):
    def missing(module: str):
        raise ModuleNotFoundError("No module named 'pandas'", name="pandas")

    monkeypatch.setattr(commands, "import_module", missing)
    assert main(["cite", "T2-10"]) == 2
    error = capsys.readouterr().err
    assert error == "error: hiap cite needs pandas, which is not installed: pip install -e '.[study]' in the clone\n"


def test_export_writes_what_the_ending_says(tmp_path, capsys):
    from conftest import small_vit

    import hiap

    hiap.save(small_vit(), tmp_path / "net")
    assert main(["export", str(tmp_path / "net"), str(tmp_path / "net.safetensors")]) == 0
    assert (tmp_path / "net.safetensors").is_file()
    assert main(["export", str(tmp_path / "net"), str(tmp_path / "net.pb")]) == 2
    assert main(["export", str(tmp_path / "net"), str(tmp_path / "no" / "net.onnx")]) == 2
    assert main(["export", str(tmp_path / "net"), str(tmp_path / "net.onnx"), "--opset", "9"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in lines] == [True] * 3
