"""What every rank-and-remove baseline does: order units, keep the best that fit the target, train what is left."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hiap import cost, gated_vit, ledger
from hiap.backbones.families import standard
from hiap.budget.selection import Ranking
from hiap.gated_vit import BlockMask
from hiap.gates import Gate
from hiap.train.config import Config, ConfigError, GateConfig
from hiap.train.stages import Context, Stage, corrected, remove

Rank = Callable[[Any, Context], Ranking]


class Round(Stage):
    """Rank, close units until ``share`` of the way from dense to the target is done, then train.

    The last round removes what is closed before it trains. An earlier one trains with the closed units masked and
    leaves a dense network whose closed units have zero weights, so that they rank last in the next round."""

    def __init__(self, name: str, epochs: int, rank: Rank | None, share: float):
        super().__init__(name, epochs)
        self.rank, self.share = rank, share

    def prepare(self, model: Any, context: Context) -> Any:
        gated = self.masked(model, context, FixedGate)
        self.dense = model
        return corrected(remove(gated), model, context) if self.share == 1 else gated

    def masked(self, model: Any, context: Context, kind: type[Gate]) -> Any:
        """Return ``model`` with gates of this kind, closed but for what is ``kept``."""
        require_plain(model)
        kept, dims = self.kept(model, context)
        gated = gated_vit.gate(model, context.config.gates.model_copy(update={"dims": dims}), kind=kind)
        gated_vit.set_masks(gated, kept)
        return gated

    def kept(self, model: Any, context: Context) -> tuple[list[BlockMask], str]:
        """Return the units that stay, as the ranking says, and what goes with a value dimension (``gates.dims``)."""
        assert self.rank is not None
        target, ranking = context.target, self.rank(model, context)
        assert target is not None
        target.require_reachable(ranking)  # the last round's, before the first trains
        now = replace(target, amount=round(target.first + self.share * (target.amount - target.first)))
        return now.keep_best(ranking), "qkv" if ranking.cut_qk else "v"

    def finish(self, model: Any) -> Any:
        return fold(model, self.dense) if gated_vit.is_gated(model) else model


def require_plain(model: Any) -> None:
    """Raise ``ConfigError`` unless a neuron is one row of fc1 and a head one slice of qkv, which rankings sum over."""
    if standard(model) is not model or any(not isinstance(block.attn.qkv, nn.Linear) for block in model.blocks):
        raise ConfigError(
            f"{type(model).__name__} of this kind: methods that rank weights expect timm's plain attention and Mlp; "
            "hiap, vit_slim and cofi take it"
        )


class FixedGate(Gate):
    """A gate that is what it was fixed to, in training too: a mask. Its logit is never trained."""

    def __init__(self, shape: tuple[int, ...], level: str, config: GateConfig, generator: torch.Generator):
        super().__init__(shape, level, config, generator)
        self.logit.requires_grad_(False)

    def forward(self) -> Tensor:
        return self.hardened().to(self.logit.dtype)


class NoisyGate(Gate):
    """HiAP's gate where it is open, 0 where it is closed, for good."""

    open: Tensor

    def __init__(self, shape: tuple[int, ...], level: str, config: GateConfig, generator: torch.Generator):
        super().__init__(shape, level, config, generator)
        self.register_buffer("open", torch.ones(shape, dtype=torch.bool))

    def fix(self, keep: Tensor) -> None:
        self.open.copy_(keep)

    def forward(self) -> Tensor:
        return super().forward() * self.open

    def hardened(self) -> Tensor:
        return self.open


class NoisyTuning(Round):
    """A control: keeps what ``Round`` keeps and trains it under HiAP's gate noise, with no price on any unit."""

    def __init__(self, config: Config, rank: Rank):
        super().__init__("fine-tune", config.optim.epochs, rank, 1.0)
        self.gates = config.gates

    def prepare(self, model: Any, context: Context) -> Any:
        self.context = context
        return self.masked(model, context, NoisyGate)

    def anneal(self, model: Any, progress: float) -> float:
        return gated_vit.anneal(model, self.gates, progress)

    def finish(self, model: Any) -> Any:
        return corrected(remove(model), model, self.context)


@torch.no_grad()
def fold(gated: Any, dense: Any) -> Any:
    """Return a plain dense network that computes what ``gated.eval()`` computes: closed units stay, with zero weights.
    ``dense`` is what was gated and gives the structure. Not for ``dims='v-cut-qkv'``: it hardens to another function.
    """
    plain: Any = copy.deepcopy(dense)
    weights = {k: v for k, v in gated.state_dict().items() if "_gate." not in k}
    plain.load_state_dict(weights)
    place = plain.pos_embed.device  # the gated one may have been trained on another
    for source, block, mask in zip(gated.blocks, plain.blocks, gated_vit.masks(gated), strict=True):
        dims = (mask.dims & mask.heads[:, None]).flatten().to(place)
        neurons = (mask.neurons & mask.ffn).to(place)
        qkv = block.attn.qkv
        for rows in qkv.weight.chunk(3)[0 if source.attn.mode == "qkv" else 2 :]:
            rows.mul_(dims[:, None])
        if qkv.bias is not None and source.attn.mode == "qkv":
            qkv.bias.view(3, -1)[:2].mul_(dims)
        block.attn.proj.weight.mul_(dims)
        block.mlp.fc1.weight.mul_(neurons[:, None])
        block.mlp.fc2.weight.mul_(neurons)
        if block.attn.proj.bias is not None and source.attn.bias_gated:
            block.attn.proj.bias.mul_(bool(mask.heads.any()))
        if block.mlp.fc2.bias is not None:
            block.mlp.fc2.bias.mul_(bool(mask.ffn))
    return plain.train(gated.training)


def prune_then_tune(config: Config, rank: Rank) -> list[Stage]:
    """Return ``budget.rounds`` rounds that share ``optim.epochs``; with one, everything goes at once and the rest is
    tuning. Targets go down in equal steps."""
    rounds, epochs = config.budget.rounds, config.optim.epochs
    if config.budget.noise:
        return [NoisyTuning(config, rank)]
    if rounds > max(1, epochs):
        raise ConfigError(f"budget.rounds {rounds}: more than optim.epochs {epochs}; a round trains at least one epoch")
    ends = [epochs * (i + 1) // rounds for i in range(rounds)]
    stages: list[Stage] = []
    for i, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        name = "fine-tune" if i == rounds - 1 else f"round-{i + 1}"
        stages.append(Round(name, end - start, rank, (i + 1) / rounds))
    return stages


def l1_neurons(model: Any) -> Tensor:
    """Return (L, Dffn): l1 norm of each neuron's fc1 row and fc2 column."""
    return neuron_sums(model, lambda weight: weight.detach().abs())


def l1_value_dims(model: Any) -> Tensor:
    """Return (L, H, Dh): l1 norm of each value dimension's V row and output-projection column."""
    return value_dim_sums(model, lambda weight: weight.detach().abs())


def neuron_sums(model: Any, of: Callable[[Any], Tensor]) -> Tensor:
    """Return (L, Dffn): ``of`` each weight, summed over each neuron's fc1 row and fc2 column."""
    return torch.stack([of(b.mlp.fc1.weight).sum(1) + of(b.mlp.fc2.weight).sum(0) for b in model.blocks])


def value_dim_sums(model: Any, of: Callable[[Any], Tensor]) -> Tensor:
    """Return (L, H, Dh): ``of`` each weight, summed over each value dimension's V row and output-projection column."""

    def layer(attn: Any) -> Tensor:
        rows = of(attn.qkv.weight).chunk(3)[2].sum(1)
        return (rows + of(attn.proj.weight).sum(0)).view(attn.num_heads, attn.head_dim)

    return torch.stack([layer(b.attn) for b in model.blocks])


def scored_copy(model: Any, device: torch.device) -> Any:
    """Return a copy of ``model`` in evaluation on ``device`` whose weights all take gradients, frozen ones too."""
    return copy.deepcopy(model).eval().requires_grad_().to(device)


def importance(weight: Any) -> Tensor:
    """Return |weight x gradient|: what a loss would change by without the weight, to first order."""
    return (weight * weight.grad).detach().abs()


def per_mac(model: Any, of: Callable[[Any], Tensor]) -> Ranking:
    """Rank units by ``of`` each weight, summed over a unit's weights and divided by the MACs that removing it saves. A
    value dimension bears its share of its head's Q and K, which go with the last one."""
    dims = cost.dims_of(model)
    prices = ledger.true_prices(dims.tokens, dims.dim, dims.head_dim)
    value_dims = value_dim_sums(model, of) / (prices.value_dim + prices.head / dims.head_dim)
    return Ranking(dims=value_dims.cpu(), neurons=(neuron_sums(model, of) / prices.neuron).cpu())


def within_layer_rank(scores: Tensor) -> Tensor:
    """Turn (L, ...) scores into keys in (0, 1]: the share of the layer's units that a unit is at least as good as.
    Keeping the highest keys keeps the same share of every layer."""
    flat = scores.flatten(1)
    ranks = flat.argsort(dim=1, stable=True).argsort(dim=1, stable=True) + 1
    return (ranks / flat.shape[1]).reshape(scores.shape)


def global_rank(scores: Tensor) -> Tensor:
    """Turn scores into keys in (0, 1]: the share of all units of this kind that a unit is at least as good as."""
    return within_layer_rank(scores[None])[0]
