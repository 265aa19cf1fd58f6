"""What is left of a network, block by block: of a gated one by its masks, or of one that is there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hiap import ledger
from hiap.backbones.count import attention_macs, ffn_macs, in_patches, value_dims
from hiap.budget.prices import kept_cost, param_prices, qk_left
from hiap.budget.selection import constants, pruned_before
from hiap.budget.sizes import BlockShape
from hiap.cost import dims_of, params
from hiap.gated_layers import BlockMask


def block_shapes(model: Any) -> list[BlockShape]:
    """Return what each block of a dense or extracted ViT has, at its own image size."""
    _, (rows, columns) = in_patches(model.patch_embed)
    tokens = rows * columns + model.num_prefix_tokens
    return [
        BlockShape(
            head_dims=tuple(value_dims(block)),
            neurons=block.mlp.fc2.in_features if block.mlp is not None else 0,
            macs=attention_macs(block, tokens) + ffn_macs(block, tokens),
            params=params(block),
        )
        for block in model.blocks
    ]


@dataclass(frozen=True)
class Summary:
    """Sizes of a network, and of the dense one; ``str`` gives a table. ``multiple``: in how many units at a time it is
    cut; ``threshold``: what the gates' threshold alone leaves, where it was rounded to multiples afterwards. Of a
    pruner's gates: ``travel`` of the one that went farthest, the share that came ``near`` their threshold, and their
    mean ``certainty``."""

    blocks: list[BlockShape]
    macs: int
    params: int
    dense_macs: int
    dense_params: int
    multiple: int = 1
    threshold: Summary | None = None
    travel: float | None = None
    near: float | None = None
    certainty: float | None = None

    @property
    def counts(self) -> str:
        """Value dimensions, neurons and MACs in one line."""
        value_dims, neurons = (sum(getattr(b, name) for b in self.blocks) for name in ("value_dims", "neurons"))
        return f"{value_dims} value dims, {neurons} neurons, {self.macs / 1e6:.2f} M MACs"

    def __str__(self) -> str:
        rows = [
            f"{i:5} {b.heads:6} {b.value_dims:11} {b.neurons:8} {b.macs / 1e6:8.2f} {b.params / 1e6:9.3f}"
            for i, b in enumerate(self.blocks)
        ]
        macs = f"{self.macs / 1e6:.2f} M MACs ({self.macs / self.dense_macs:.1%} of dense)"
        params = f"{self.params / 1e6:.3f} M parameters ({self.params / self.dense_params:.1%})"
        lines = [
            "block  heads  value dims  neurons   M MACs  M params",
            *rows,
            f"in all {macs}, {params}{self._gates()}",
        ]
        if self.threshold:
            lines += [f"threshold {self.threshold.counts}", f"in multiples of {self.multiple}: {self.counts}"]
        return "\n".join(lines)

    def _gates(self) -> str:
        if self.travel is None:
            return ""
        near = "" if self.near is None else f", {self.near:.0%} came half of their way to the threshold"
        return f"; gates went {self.travel:.2g} at most{near}, certainty {self.certainty:.2f}"


def summary_of(
    gated: Any, kept: list[BlockMask], multiple: int = 1, threshold: list[BlockMask] | None = None
) -> Summary:
    """Return what extraction of a gated model by these masks leaves; the rest as in ``Summary``."""
    dims, cut_qk, left = dims_of(gated), gated.blocks[0].attn.cuts_qk, qk_left(gated)
    in_macs, in_params, given = ledger.mac_prices(dims), param_prices(gated), pruned_before(gated)
    if given:  # constants that FFNs have left
        in_params = replace(in_params, constant=in_params.constant + dims.dim * sum(constants(given.gone)))

    def spent(prices: ledger.Prices, masks: list[BlockMask], first: int = 0) -> int:
        return kept_cost(prices, masks, dims.head_dim, cut_qk, left[first:])

    blocks = [
        BlockShape(
            head_dims=tuple(mask.head_widths()),
            neurons=mask.neuron_count(),
            macs=spent(replace(in_macs, constant=0), [mask], i),
            params=spent(replace(in_params, constant=0), [mask], i),
        )
        for i, mask in enumerate(kept)
    ]
    return Summary(
        blocks=blocks,
        macs=spent(in_macs, kept),
        params=spent(in_params, kept),
        dense_macs=given.macs if given else ledger.dense_macs(dims),
        dense_params=given.params if given else in_params.constant + ledger.dense_cost(dims, in_params),
        multiple=multiple,
        threshold=summary_of(gated, threshold) if threshold else None,
    )
