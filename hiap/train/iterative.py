"""A run that prunes a network which was pruned before (iterative pruning). Its units are ranked, gated and closed in a
network whose blocks are alike, with zeros where units are gone (``even``); those go first whatever their rank, and what
is left loses them. Shares of a target are of the network that was given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hiap import gated_vit
from hiap.backbones.evening import alike, even, trimmed
from hiap.budget.selection import Ranking, Target, target_of
from hiap.gated_layers import BlockMask
from hiap.train import methods
from hiap.train.config import Config, ConfigError


@dataclass(frozen=True)
class IterativeTarget(Target):
    """Target of an evened network, whatever ranks its units."""

    def keep_best(self, ranking: Ranking) -> list[BlockMask]:
        return super().keep_best(self._behind(ranking))

    def require_reachable(self, ranking: Ranking) -> None:
        super().require_reachable(self._behind(ranking))

    def _behind(self, ranking: Ranking) -> Ranking:
        """Return ``ranking`` with units that are gone behind all others, those too of a kind that it does not rank."""
        keys, stay = list[Tensor](), list[Tensor]()
        both = [torch.stack([getattr(mask, part).cpu() for mask in self.gone]) for part in ("dims", "neurons")]
        for given, gone in zip((ranking.dims, ranking.neurons), both, strict=True):
            known = torch.zeros(gone.shape) if given is None else given.detach().cpu().float()
            keys.append(known.masked_fill(gone, -torch.inf))
            stay.append((~gone if given is None else torch.zeros_like(gone)).flatten())
        also = torch.cat(stay) if ranking.stay is None else ranking.stay | torch.cat(stay)
        return replace(ranking, dims=keys[0], neurons=keys[1], stay=also)


def evened(start: Any, config: Config) -> Any:
    """Return the network that a method which removes units works on: ``start`` itself if its blocks are alike, else one
    that is filled up with zeros. Raises ``ConfigError`` (one line) where a method cannot, ``UnsupportedModelError``
    where no method can."""
    whole = even(start) if config.method != "dense" else start
    if whole is start:
        return start
    before = f"model.weights {config.model.weights}: pruned before"
    if methods.kind(config.method) == "cutting":
        names = ", ".join(["hiap", *methods.of_kind("ranking"), *methods.of_kind("searching")])
        raise ConfigError(f"{before}, which method '{config.name}' does not take; expected one of {names}")
    if config.budget.target_latency is not None or config.penalty.latency_table:
        raise ConfigError(f"{before}, for which there is no table of times; set budget.target_macs or target_params")
    constants = any(getattr(block, "attn_constant", None) is not None for block in start.blocks)
    if constants and config.method != "hiap" and config.gates.attn_bias == "gated":
        raise ConfigError(f"{before}, with constants where attention was; set gates.attn_bias=kept, else they are lost")
    return whole


def target(whole: Any, macs: float | None, params: float | None, multiple: int) -> Target | None:
    """Return the target for an evened network, None if none is set."""
    found = target_of(whole, macs, params, multiple=multiple)
    return found and IterativeTarget(**vars(found))


def without_zeros(model: Any) -> Any:
    """Remove from what a stage has left the rows of Q and K that are zeros. A network that is ranked once more stays as
    it is."""
    return model if gated_vit.is_gated(model) or alike(model.blocks) else trimmed(model)
