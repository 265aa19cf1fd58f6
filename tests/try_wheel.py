"""``make wheel``: the installed package does what it promises without a checkout and without the study's packages."""

import importlib.metadata
import importlib.util
import pkgutil
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

STUDY = ("pandas", "matplotlib", "seaborn", "sklearn", "submitit", "jupyter", "analysis", "baselines", "slurm", "tests")
TORCH = ("torch", "triton", "nvidia", "cuda")  # what torch brings itself is not counted
MOST = 30


def main() -> None:
    there = [name for name in STUDY if importlib.util.find_spec(name)]
    assert not there, f"installed with the library: {there}"
    needs = {*requirements("torch"), "torch"}
    beside = sorted(names() - needs - {"pip", "setuptools", "hiap-reproduction"})
    beside = [name for name in beside if not name.startswith(TORCH)]
    assert len(beside) <= MOST, beside
    home = Path(importlib.util.find_spec("hiap").origin).parent
    assert (home / "py.typed").is_file()
    size = sum(path.stat().st_size for path in home.parent.rglob("*") if path.is_file())
    quick()
    prune()
    commands()
    print(f"{len(beside)} packages beside torch's own: {', '.join(beside)}\nall of them: {size / 1e6:,.0f} MB")


def names() -> set[str]:
    return {d.metadata["Name"].lower().replace("_", "-") for d in importlib.metadata.distributions()}


def requirements(name: str) -> set[str]:
    """What a package asks for without extras, and what that asks for."""
    found: set[str] = set()
    for line in importlib.metadata.requires(name) or []:
        asked = line.split(";")[0]
        need = "".join(c if c.isalnum() or c in "-_." else " " for c in asked).split()[0].lower().replace("_", "-")
        if "extra ==" not in line and need in names():
            found |= {need, *requirements(need)}
    return found


def quick() -> None:
    def once(code: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-I", "-c", code], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Of the processor, so that a busy machine does not count.
    ms = 1e3 * statistics.median(once("import hiap") for _ in range(9))
    assert ms < 60, f"python -c 'import hiap' takes {ms:.0f} ms"
    print(f"python -c 'import hiap': {ms:.0f} ms of the processor")


def prune() -> None:
    import torch
    from timm.models.vision_transformer import VisionTransformer

    import hiap

    for found in pkgutil.walk_packages(hiap.__path__, "hiap."):
        if not found.name.startswith("hiap.integrations.") and not found.name.endswith("__main__"):
            __import__(found.name)
    model = VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=4)
    pruner = hiap.Pruner(model.train(), steps=20, target_macs=0.5)
    optimizer = torch.optim.AdamW(pruner.param_groups(lr=1e-3, gate_lr=0.5))
    for _ in range(20):
        loss = pruner.model(torch.randn(8, 3, 16, 16)).square().mean() + pruner.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    small = pruner.finish()
    with tempfile.TemporaryDirectory() as folder:
        hiap.save(small, f"{folder}/small")
        assert hiap.macs(hiap.load(f"{folder}/small"), (3, 16, 16)) <= hiap.macs(model, (3, 16, 16)) / 2


def commands() -> None:
    hiap = Path(sys.executable).parent / "hiap"
    helps = ([name, "--help"] for name in ("train", "bench", "prune", "show", "export", "push"))
    for words in ([], *helps):
        subprocess.run([hiap, *words], check=True, stdout=subprocess.DEVNULL)
    for words in (["cite", "T2-10"], ["train", "method=taylor"], ["train", "method=dense"]):
        done = subprocess.run([hiap, *words], capture_output=True, text=True)
        assert done.returncode == 2, done
        assert done.stderr.startswith("error: "), done.stderr
        assert done.stderr.count("\n") == 1, done.stderr


if __name__ == "__main__":
    main()
