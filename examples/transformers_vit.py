"""Prune a checkpoint of transformers to half of its multiply-adds.

python transformers_vit.py FOLDER, which save_pretrained wrote; without one, random weights are used.
"""

import sys

import torch
from transformers import ViTConfig, ViTForImageClassification

import hiap

STEPS = 20


def checkpoint():
    if len(sys.argv) > 1:
        return ViTForImageClassification.from_pretrained(sys.argv[1])
    torch.manual_seed(0)
    sizes = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 384}
    return ViTForImageClassification(ViTConfig(image_size=64, patch_size=16, num_labels=10, **sizes))


def main():
    theirs = checkpoint()
    size, classes = theirs.config.image_size, theirs.config.num_labels
    model, teacher = hiap.from_transformers(theirs), hiap.from_transformers(theirs).eval().requires_grad_(False)

    pruner = hiap.Pruner(model.train(), steps=STEPS, target_macs=0.5)
    optimizer = torch.optim.AdamW(pruner.param_groups(lr=1e-4, weight_decay=0.05, gate_lr=0.3))
    for _ in range(STEPS):  # your images and labels here
        images, labels = torch.randn(8, 3, size, size), torch.randint(classes, (8,))
        loss = hiap.distillation_loss(pruner.model(images), labels, teacher(images)) + pruner.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    small = pruner.finish()
    hiap.save(small, "pruned_transformers_vit")
    image = (3, size, size)
    print(f"{hiap.macs(small, image) / hiap.macs(model, image):.1%} of the multiply-adds are left")
    print(hiap.show(small))


if __name__ == "__main__":
    main()
