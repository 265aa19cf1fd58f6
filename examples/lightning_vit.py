"""Prune with Lightning's trainer: a callback follows its optimiser and leaves the smaller network."""

import timm
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

import hiap
from hiap.integrations.lightning import PrunerCallback

EPOCHS = 3


class Module(LightningModule):
    def __init__(self, pruner, teacher):
        super().__init__()
        self.pruner, self.model, self.teacher = pruner, pruner.model, teacher

    def training_step(self, batch, index):
        images, labels = batch
        loss = hiap.distillation_loss(self.model(images), labels, self.teacher(images))
        return loss + self.pruner.penalty()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.pruner.param_groups(lr=1e-4, weight_decay=0.05, gate_lr=0.3))


def main():
    torch.manual_seed(0)
    images, labels = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))  # your data set here
    loader = DataLoader(TensorDataset(images, labels), batch_size=8)
    sizes = {"img_size": 32, "num_classes": 10, "depth": 2}
    model = timm.create_model("vit_tiny_patch16_224", **sizes)
    teacher = timm.create_model("vit_tiny_patch16_224", **sizes).eval().requires_grad_(False)
    teacher.load_state_dict(model.state_dict())

    pruner = hiap.Pruner(model.train(), steps=EPOCHS * len(loader), target_macs=0.5)
    callback = PrunerCallback(pruner)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(max_epochs=EPOCHS, callbacks=[callback], accelerator="cpu", **quiet)
    trainer.fit(Module(pruner, teacher), loader)

    hiap.save(callback.small, "pruned_by_lightning")
    share = hiap.macs(callback.small, (3, 32, 32)) / hiap.macs(model, (3, 32, 32))
    print(f"{share:.1%} of the multiply-adds are left")


if __name__ == "__main__":
    main()
