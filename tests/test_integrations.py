"""The same network pruned to half by Lightning, by transformers and with accelerate, saved and resumed by their own
means; and what these trainers do that a pruner could be hurt by."""

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


def new_pruner(steps: int = EPOCHS * PER_EPOCH) -> hiap.Pruner:
    return hiap.Pruner(small_vit().train(), steps=steps, target_macs=0.5)


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

    class Module(lightning.LightningModule):  # type: ignore[name-defined]
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


# Lightning


@pytest.fixture
def lightning() -> Any:
    return pytest.importorskip("lightning.pytorch")


def fitted(
    lightning: Any, callback: Any, epochs: int = 1, optimizers: Any = None, accumulate: int = 0, **arguments: Any
) -> Any:
    """A trainer after ``fit``. ``optimizers`` makes them from the pruner's groups; ``accumulate``: by hand, so many
    batches."""

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = callback.pruner.model
            self.automatic_optimization = not accumulate

        def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
            loss = hiap.distillation_loss(self.model(batch["images"]), batch["labels"]) + callback.pruner.penalty()
            if accumulate:
                self.manual_backward(loss / accumulate)
                if (index + 1) % accumulate == 0:
                    for optimizer in self.optimizers():
                        optimizer.step()
                        optimizer.zero_grad()
            return loss

        def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
            self.log("val_loss", torch.tensor(1.0))

        def configure_optimizers(self) -> Any:
            return (optimizers or torch.optim.AdamW)(groups(callback.pruner))

    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options: dict[str, Any] = {"accelerator": "cpu", **dict.fromkeys(quiet, False), **arguments}
    options["callbacks"] = [*options.get("callbacks", []), callback]
    trainer = lightning.Trainer(max_epochs=epochs, **options)
    loaders = [DataLoader(Images(), batch_size=4) for _ in range(2)]
    trainer.fit(Module(), *loaders[: 2 if "callbacks" in arguments else 1])
    return trainer


def two(groups: list[dict[str, Any]]) -> list[Any]:
    return [torch.optim.AdamW(groups[:2]), torch.optim.Adam(groups[2:])]


def halved(small: Any) -> bool:
    return 0.45 < hiap.macs(small, IMAGE) / hiap.macs(small_vit(), IMAGE) <= 0.5


@pytest.mark.filterwarnings("ignore")
def test_lightning_a_second_fit_goes_on_and_a_third_is_refused(lightning: Any) -> None:
    from hiap.integrations.lightning import PrunerCallback

    callback = PrunerCallback(new_pruner(2 * PER_EPOCH))
    with pytest.warns(UserWarning, match="ended after 8 of the pruner's 16 steps, so there is no smaller network"):
        fitted(lightning, callback)
    assert (callback.pruner.done, callback.small) == (PER_EPOCH, None)
    fitted(lightning, callback)  # a new trainer, whose steps begin at 0
    assert callback.pruner.done == 2 * PER_EPOCH
    assert halved(callback.small)
    with pytest.raises(hiap.PrunerError, match=r"all 16 steps are done; train callback\.small on") as error:
        fitted(lightning, callback)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("steps", "arguments"),
    [
        (PER_EPOCH // 2, {"accumulate_grad_batches": 2}),
        (PER_EPOCH // 4, {"optimizers": two, "accumulate": 4}),
        (PER_EPOCH // 4 - 1, {"optimizers": two, "accumulate": 4}),  # a loop whose end nobody knows is ended
        (PER_EPOCH, {"precision": "bf16-mixed"}),
        (PER_EPOCH, {"precision": "bf16-true"}),
    ],
    ids=["accumulated", "two optimisers", "too long by hand", "bf16-mixed", "bf16-true"],
)
def test_lightning_counts_steps_of_the_optimiser_that_has_the_gates(
    lightning: Any, steps: int, arguments: dict[str, Any]
) -> None:
    from hiap.integrations.lightning import PrunerCallback

    callback = PrunerCallback(new_pruner(steps))
    fitted(lightning, callback, **arguments)
    assert callback.pruner.done == steps
    assert halved(callback.small)


@pytest.mark.filterwarnings("ignore")
def test_lightning_stopped_early_says_how_to_go_on(lightning: Any) -> None:
    from lightning.pytorch.callbacks import EarlyStopping

    from hiap.integrations.lightning import PrunerCallback

    callback = PrunerCallback(new_pruner(10 * PER_EPOCH))
    with pytest.warns(UserWarning, match=r"ended after 16 of the pruner's 80 steps.*callback.pruner.finish\(\)"):
        fitted(lightning, callback, epochs=10, callbacks=[EarlyStopping("val_loss", patience=1)])
    assert callback.small is None
    assert halved(callback.pruner.finish())


@pytest.mark.filterwarnings("ignore")
def test_lightning_averages_weights_before_the_network_is_made(lightning: Any) -> None:
    averaging = getattr(pytest.importorskip("lightning.pytorch.callbacks"), "WeightAveraging", None)
    if averaging is None:
        pytest.skip("newer than this version of Lightning")
    from hiap.integrations.lightning import PrunerCallback

    callback = PrunerCallback(new_pruner(PER_EPOCH))
    fitted(lightning, callback, callbacks=[averaging()])
    assert halved(callback.small)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("steps", "arguments", "message"),
    [
        (5, {}, "the loop has 8 optimiser steps, the pruner 5 left of 5; make it with steps=8"),
        (8, {"precision": "16-true"}, "fp16 weights.*use '16-mixed'"),
        (8, {"optimizers": lambda groups: torch.optim.AdamW(groups[:2])}, "no optimiser has the gates"),
    ],
)
def test_lightning_refuses_before_the_first_step(
    lightning: Any, steps: int, arguments: dict[str, Any], message: str
) -> None:
    from hiap.integrations.lightning import PrunerCallback

    callback = PrunerCallback(new_pruner(steps))
    with pytest.raises(hiap.PrunerError, match=message) as error:
        fitted(lightning, callback, **arguments)
    assert "\n" not in str(error.value)
    assert callback.pruner.done == 0


@pytest.mark.filterwarnings("ignore")
def test_gates_that_are_trained_as_weights_are_told(lightning: Any) -> None:
    from hiap.integrations.lightning import PrunerCallback

    def together(groups: list[dict[str, Any]]) -> Any:
        return torch.optim.AdamW([p for group in groups for p in group["params"]], lr=1e-4)

    with pytest.warns(UserWarning, match=r"gates and weights in one group \(lr 0.0001, weight decay 0.01\)"):
        fitted(lightning, PrunerCallback(new_pruner(PER_EPOCH)), optimizers=together)


# transformers


@pytest.fixture
def trained(tmp_path: Path) -> Any:
    """Makes a trainer of transformers."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Model(torch.nn.Module):
        def __init__(self, pruner: hiap.Pruner):
            super().__init__()
            self.pruner, self.vit = pruner, pruner.model

        def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.vit(images)
            return {"loss": hiap.distillation_loss(logits, labels) + self.pruner.penalty(), "logits": logits}

    def make(callback: Any, callbacks: tuple[Any, ...] = (), **arguments: Any) -> Any:
        settings: dict[str, Any] = {"num_train_epochs": 1, "save_strategy": "no", "report_to": [], "disable_tqdm": True}
        settings |= {"use_cpu": True, "lr_scheduler_type": "constant", "per_device_train_batch_size": 4, **arguments}
        return transformers.Trainer(
            Model(callback.pruner),
            transformers.TrainingArguments(output_dir=str(tmp_path / "runs"), **settings),
            train_dataset=Images(),
            eval_dataset=Images(),
            callbacks=[callback, *callbacks],
            optimizers=(torch.optim.AdamW(groups(callback.pruner)), None),
        )

    return make


@pytest.mark.filterwarnings("ignore")
def test_transformers_may_not_put_back_an_earlier_network(trained: Any) -> None:
    from hiap.integrations.transformers import PrunerCallback

    best = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}
    with pytest.raises(hiap.PrunerError, match=r"load_best_model_at_end would put back.*set it to False") as error:
        trained(PrunerCallback(new_pruner()), **best)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore")
def test_transformers_stopped_early_says_how_to_go_on_and_goes_on(trained: Any) -> None:
    from transformers import EarlyStoppingCallback

    from hiap.integrations.transformers import PrunerCallback

    callback = PrunerCallback(new_pruner(4 * PER_EPOCH))
    patience = EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=1e9)
    watched = {"eval_strategy": "epoch", "metric_for_best_model": "loss", "greater_is_better": False}
    with pytest.warns(UserWarning, match="ended after 16 of the pruner's 32 steps"):
        trained(callback, (patience,), num_train_epochs=4, **watched).train()
    assert callback.small is None
    trained(callback, num_train_epochs=2).train()
    assert halved(callback.small)
    with pytest.raises(hiap.PrunerError, match="all 32 steps are done"):
        trained(callback).train()


@pytest.mark.filterwarnings("ignore")
def test_transformers_resumes_from_wherever_the_checkpoint_lies(trained: Any, tmp_path: Path) -> None:
    from hiap.integrations.transformers import PrunerCallback

    trained(PrunerCallback(new_pruner(2 * PER_EPOCH)), save_strategy="epoch", gradient_accumulation_steps=1).train()
    elsewhere = (tmp_path / "runs" / f"checkpoint-{PER_EPOCH}").rename(tmp_path / "moved")
    callback = PrunerCallback(new_pruner(2 * PER_EPOCH))
    trained(callback, num_train_epochs=2).train(resume_from_checkpoint=str(elsewhere))
    assert halved(callback.small)
    state = elsewhere / "trainer_state.json"
    state.write_text(state.read_text(encoding="utf-8").replace("PrunerCallback", "Other"), encoding="utf-8")
    with pytest.raises(hiap.PrunerError, match="holds no state of a pruner"):
        trained(PrunerCallback(new_pruner(16)), num_train_epochs=2).train(resume_from_checkpoint=str(elsewhere))


@pytest.mark.filterwarnings("ignore")
def test_transformers_counts_accumulated_steps_and_refuses_a_longer_loop(trained: Any) -> None:
    from hiap.integrations.transformers import PrunerCallback

    callback = PrunerCallback(new_pruner(PER_EPOCH // 2))
    with pytest.raises(hiap.PrunerError, match="the loop has 8 optimiser steps, the pruner 4 left of 4"):
        trained(callback).train()
    assert callback.pruner.done == 0
    trained(callback, gradient_accumulation_steps=2).train()
    assert halved(callback.small)


# accelerate


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_prunes_and_leaves_a_network_of_its_own(precision: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    pruner = new_pruner(PER_EPOCH // 2)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision=precision)
    optimizer = torch.optim.AdamW(groups(pruner))
    model, optimizer, loader = accelerator.prepare(pruner.model, optimizer, DataLoader(Images(), batch_size=4))
    for batch in loader:
        with accelerator.accumulate(model):
            loss = hiap.distillation_loss(model(batch["images"]), batch["labels"]) + pruner.penalty()
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            pruner.step()
    small = pruner.finish().eval()
    assert halved(small)
    assert not {"forward", "_original_forward"} & set(vars(small)), "accelerate's own stays with the gated network"
    assert small(torch.randn(2, *IMAGE)).dtype == torch.float32


# torch's own, in a loop of one's own


def test_a_gradscaler_that_skips_steps_does_not_disturb_the_count() -> None:
    pruner = new_pruner(12)
    optimizer = torch.optim.AdamW(groups(pruner))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-16)
    batch, skipped = next(iter(DataLoader(Images(), batch_size=32))), 0
    for _ in range(12):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = hiap.distillation_loss(pruner.model(batch["images"]), batch["labels"])
        scaler.scale(loss + pruner.penalty()).backward()
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.get_scale() < before
        optimizer.zero_grad()
        pruner.step()
    assert skipped
    assert halved(pruner.finish())
