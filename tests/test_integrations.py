"""The same network pruned to half by Lightning and by transformers, saved and resumed by their own means."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_vit
from torch.utils.data import DataLoader, Dataset

import hiap

IMAGE = (1, 16, 16)
EPOCHS, PER_EPOCH = 3, 8


class Images(Dataset):
    """32 random images with labels."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(32, *IMAGE, generator=generator)
        self.labels = torch.randint(10, (32,), generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"images": self.images[index], "labels": self.labels[index]}


def new_pruner() -> hiap.Pruner:
    return hiap.Pruner(small_vit().train(), steps=EPOCHS * PER_EPOCH, target_macs=0.5)


def groups(pruner: hiap.Pruner) -> list[dict[str, Any]]:
    return pruner.param_groups(lr=1e-3, weight_decay=0.05, gate_lr=0.2)


def check(small: Any, tmp_path: Path) -> None:
    """On the target within a unit, and the same when saved and loaded."""
    dims = hiap.cost.dims_of(small_vit())
    prices, half = hiap.ledger.mac_prices(dims), round(hiap.ledger.dense_macs(dims) * 0.5)
    assert half - max(prices.neuron, prices.value_dim) < hiap.macs(small, IMAGE) <= half
    hiap.save(small, tmp_path / "small")
    images = torch.randn(2, *IMAGE)
    with torch.no_grad():
        assert torch.equal(hiap.load(tmp_path / "small")(images), small.eval()(images))


@pytest.mark.filterwarnings("ignore")
def test_lightning_prunes_to_half_and_resumes(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    from hiap.integrations.lightning import PrunerCallback

    class Module(lightning.LightningModule):
        def __init__(self, pruner: hiap.Pruner):
            super().__init__()
            self.pruner, self.model = pruner, pruner.model

        def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
            torch.manual_seed(self.global_step)
            return hiap.distillation_loss(self.model(batch["images"]), batch["labels"]) + self.pruner.penalty()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(groups(self.pruner))

    def fit(epochs: int, resume: Path | None = None) -> Any:
        callback = PrunerCallback(new_pruner())
        trainer = lightning.Trainer(
            max_epochs=epochs,
            callbacks=[callback],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(callback.pruner), DataLoader(Images(), batch_size=4), ckpt_path=resume)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return callback

    whole = fit(EPOCHS)
    check(whole.small, tmp_path)
    assert fit(1).small is None
    again = fit(EPOCHS, tmp_path / "1.ckpt")
    assert all(torch.equal(v, again.small.state_dict()[k]) for k, v in whole.small.state_dict().items())


@pytest.mark.filterwarnings("ignore")
def test_transformers_prunes_to_half_and_resumes(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from hiap.integrations.transformers import PrunerCallback

    class Model(torch.nn.Module):
        def __init__(self, pruner: hiap.Pruner):
            super().__init__()
            self.pruner, self.vit = pruner, pruner.model

        def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            torch.manual_seed(self.pruner.done)
            logits = self.vit(images)
            return {"loss": hiap.distillation_loss(logits, labels) + self.pruner.penalty(), "logits": logits}

    def fit(resume: str | None = None) -> Any:
        callback = PrunerCallback(new_pruner())
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "runs"),
            per_device_train_batch_size=4,
            num_train_epochs=EPOCHS,
            save_strategy="epoch",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            lr_scheduler_type="constant",
        )
        trainer = transformers.Trainer(
            Model(callback.pruner),
            arguments,
            train_dataset=Images(),
            callbacks=[callback],
            optimizers=(torch.optim.AdamW(groups(callback.pruner)), None),
        )
        trainer.train(resume_from_checkpoint=resume)
        return callback

    whole = fit()
    check(whole.small, tmp_path)
    again = fit(str(tmp_path / "runs" / f"checkpoint-{PER_EPOCH}"))
    assert all(torch.equal(v, again.small.state_dict()[k]) for k, v in whole.small.state_dict().items())


@pytest.mark.parametrize("trainer", ["lightning", "transformers"])
def test_a_pruner_that_cuts_its_network_is_refused(trainer: str) -> None:
    pytest.importorskip(trainer)
    callback = import_module(f"hiap.integrations.{trainer}").PrunerCallback
    with pytest.raises(hiap.PrunerError, match="cannot follow a pruner with shrink"):
        callback(hiap.Pruner(small_vit(), steps=3, shrink=hiap.Shrink()))
