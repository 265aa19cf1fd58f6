"""Prune a timm model to half of its multiply-adds, save it, load it again, look at it.

Random images stand for yours: put a DataLoader of (images, labels) in their place, pretrained=True, and more steps.
"""

import timm
import torch

import hiap

SIZE, STEPS, OUT = 32, 20, "pruned_vit"


def batches(count):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        labels = torch.randint(10, (8,), generator=generator)
        images = torch.randn(8, 3, SIZE, SIZE, generator=generator) + labels[:, None, None, None] / 5
        yield images, labels


def main():
    torch.manual_seed(0)
    sizes = {"img_size": SIZE, "num_classes": 10, "depth": 2}
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **sizes)
    teacher = timm.create_model("vit_tiny_patch16_224", pretrained=False, **sizes)
    teacher.load_state_dict(model.state_dict())
    teacher.eval().requires_grad_(False)

    # Gates start 3 from their threshold, and a step moves one by about its rate: 20 steps of 0.3 are enough.
    pruner = hiap.Pruner(model.train(), steps=STEPS, target_macs=0.5)
    optimizer = torch.optim.AdamW(pruner.param_groups(lr=1e-4, weight_decay=0.05, gate_lr=0.3))
    for images, labels in batches(STEPS):
        loss = hiap.distillation_loss(pruner.model(images), labels, teacher(images)) + pruner.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    print(pruner.summary())

    small = pruner.finish()
    hiap.save(small, OUT, card={"method": "hiap", "data": "random images", "dense": model})
    again = hiap.load(OUT)
    images = torch.randn(2, 3, SIZE, SIZE)
    assert torch.equal(again(images), small.eval()(images))
    share = hiap.macs(small, (3, SIZE, SIZE)) / hiap.macs(model, (3, SIZE, SIZE))
    print(f"{share:.1%} of the multiply-adds are left; next: hiap show {OUT}, hiap export {OUT} small.onnx")


if __name__ == "__main__":
    main()
