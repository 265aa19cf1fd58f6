"""Prune a backbone without classifier, as a detector has one: any loss on its features will do.

Here the pruned backbone learns to give the dense one's feature map; put your detector's loss in its place.
"""

import timm
import torch
import torch.nn.functional as F

import hiap

SIZE, STEPS = 64, 20


def main():
    torch.manual_seed(0)
    sizes = {"img_size": SIZE, "num_classes": 0, "depth": 2}
    backbone = timm.create_model("vit_tiny_patch16_224", **sizes)
    teacher = timm.create_model("vit_tiny_patch16_224", **sizes).eval().requires_grad_(False)
    teacher.load_state_dict(backbone.state_dict())

    pruner = hiap.Pruner(backbone.train(), steps=STEPS, target_macs=0.5)
    optimizer = torch.optim.AdamW(pruner.param_groups(lr=1e-4, weight_decay=0.05, gate_lr=0.3))
    for _ in range(STEPS):
        images = torch.randn(8, 3, SIZE, SIZE)  # your images here
        features = pruner.model.forward_features(images)  # (batch, tokens, width)
        loss = F.mse_loss(features, teacher.forward_features(images)) + pruner.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    small = pruner.finish().eval()
    hiap.save(small, "pruned_backbone")

    (grid,) = small.forward_intermediates(torch.randn(2, 3, SIZE, SIZE), indices=1, intermediates_only=True)
    print(f"feature map {tuple(grid.shape)}, as the detector's neck expects it")
    share = hiap.macs(small, (3, SIZE, SIZE)) / hiap.macs(backbone, (3, SIZE, SIZE))
    print(f"{share:.1%} of the multiply-adds are left")


if __name__ == "__main__":
    main()
