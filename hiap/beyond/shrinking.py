"""Ours, not the paper's: weights whose gates are closed with certainty are removed while the others go on training.

A unit is closed with certainty if it hardens to closed and if the chance that a sample opens it, sigma(logit), is below
a stated bound; a head also goes if the chance that any of its dimensions opens is. A cut leaves the deterministic form
(eval mode) as it was. Of the sampled form it takes what those rare samples would have done, and gives the unit up: its
logit is held closed from then on, and no gradient brings it back. That is a decision earlier than the paper's.

Whole heads, whole FFNs and single neurons go; value dimensions stay within a head that stays, where rows of unequal
length would cost more than they save, until the end. The gates themselves keep the shape of the dense network. So
everything that counts (Eq. 5, Eq. 8, budgets, rankings, masks) goes on in terms of the dense network, and the units
that are left draw the noise that they would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hiap.backbones.parts import JoinedLinear
from hiap.budget.prices import remember_param_prices
from hiap.budget.selection import present
from hiap.gated_layers import BlockMask, gates_of, gates_with_masks
from hiap.gates import CERTAIN, Gate
from hiap.options import ConfigError
from hiap.pruner import PrunerError


@dataclass(frozen=True)
class Change:
    """Change of a parameter that was cut, by its ``name`` in the network: ``take`` gives the part of a tensor shaped
    like ``old`` that ``new`` has. ``new`` is None where nothing is left."""

    name: str
    old: nn.Parameter
    new: nn.Parameter | None
    take: Callable[[Tensor], Tensor]


class Shrink:
    """Cutter for ``hiap.Pruner(..., shrink=hiap.Shrink())``: when ``pruner.cut(optimizer)`` has found a unit closed
    with certainty ``after`` times in a row, it goes. ``below``: the bound on the chance to be sampled open. One belongs
    to one pruner. Raises ``ConfigError`` for numbers out of range."""

    def __init__(self, below: float = 0.01, after: int = 2):
        if not 0 < below < 0.5:
            raise ConfigError(f"below {below!r}: expected a chance in (0, 0.5)")
        if not hasattr(after, "__index__") or after < 1:
            raise ConfigError(f"after {after!r}: expected how often in a row, 1 or more")
        self.below, self.after = below, after
        # Per block how often in a row heads (H,), all dimensions of a head (H,), the FFN () and neurons (Dffn,) were
        # found closed. Held ones are found closed for ever, so the counts say what is gone, too.
        self.streaks: list[list[Tensor]] = []
        self.head_dim = 0

    def begin(self, gated: Any) -> None:
        """Start on a network with all of its units. Raises ``ConfigError`` if its gates are soft, or for a second
        network."""
        if self.streaks:
            raise ConfigError("shrink has begun with another pruner; make a hiap.Shrink for each")
        if any(gate.soft for block in gated.blocks for gate in gates_of(block)):
            raise ConfigError("shrink is for gates.forward 'straight-through': a soft sample is never quite closed")
        self.head_dim = gated.blocks[0].attn.head_dim
        self.streaks = [[torch.zeros_like(found, dtype=torch.long) for found in self._found(b)] for b in gated.blocks]

    def cut(self, gated: Any, optimizer: torch.optim.Optimizer | None = None) -> list[Change]:
        """Count what is closed, and cut what has been for long enough; see ``Pruner.cut``. Raises ``PrunerError``,
        before anything is cut, for an optimiser that is not of the network or whose state cannot be cut."""
        for block, streak in zip(gated.blocks, self.streaks, strict=True):
            for count, found in zip(streak, self._found(block), strict=True):
                count.add_(1).mul_(found)
        self._spare_the_last_head(gated)
        if optimizer:
            _check(optimizer, gated)
        changes = self._cut(gated)
        if optimizer:
            carry_over(optimizer, changes)
        return changes

    def gone(self) -> list[BlockMask]:
        """Return the units that are held closed; of a head that went for its dimensions, those."""
        gone = [[count >= self.after for count in streak] for streak in self.streaks]
        return [BlockMask(h, d[:, None].expand(-1, self.head_dim), f, n) for h, d, f, n in gone]

    @torch.no_grad()
    def hold(self, gated: Any) -> None:
        """Close the gates of what is gone in every sample."""
        for gate, gone in gates_with_masks(gated, self.gone()):
            gate.logit.masked_fill_(gone.to(gate.logit.device), -CERTAIN)

    def state_dict(self) -> dict[str, Any]:
        return {"streaks": [[count.clone() for count in streak] for streak in self.streaks]}

    def load_state_dict(self, gated: Any, state: Mapping[str, Any]) -> None:
        """Bring a network with all of its units to the sizes that it had. Raises ``PrunerError`` for another."""
        if any(block.attn.left is not None or block.mlp.left is not None for block in gated.blocks):
            raise PrunerError("load_state_dict: the network has been cut; make a new pruner of the dense one")
        shapes = [
            [[count.shape for count in streak] for streak in streaks] for streaks in (self.streaks, state["streaks"])
        ]
        if shapes[0] != shapes[1]:
            raise PrunerError("load_state_dict: the state is of a network of other sizes")
        self.streaks = [[count.clone() for count in streak] for streak in state["streaks"]]
        self._cut(gated)

    def _found(self, block: Any) -> list[Tensor]:
        """Return what is closed with certainty now, as ``streaks`` has it."""
        heads, dims, ffn, neurons = (self._chance(gate) for gate in gates_of(block))
        some, ffn = 1 - (1 - dims).prod(-1), ffn.squeeze()
        return [chance < self.below for chance in (heads, some, ffn, neurons)]

    @staticmethod
    def _chance(gate: Gate) -> Tensor:
        """Return the chance to be open; 1 where the gate hardens to open."""
        return torch.sigmoid(gate.logit.detach().double()).masked_fill(gate.hardened(), 1.0).cpu()

    def _spare_the_last_head(self, gated: Any) -> None:
        """Start the count of the head with the largest logit again, if no head would be left anywhere."""
        stays = torch.stack([~_closed(streak, self.after)[0] for streak in self.streaks])
        if stays.any():
            return
        there = torch.stack([present(block.attn.left, row) for block, row in zip(gated.blocks, stays, strict=True)])
        logits = torch.stack([block.attn.head_gate.logit.detach().float().cpu() for block in gated.blocks])
        best = int(logits.masked_fill(~there, -torch.inf).argmax())
        block, head = divmod(best, logits.shape[1])
        for count in self.streaks[block][:2]:
            count[head] = 0

    def _cut(self, gated: Any) -> list[Change]:
        knife = _Knife(gated)
        for block, streak in zip(gated.blocks, self.streaks, strict=True):
            heads, neurons = _closed(streak, self.after)
            knife.cut_attention(block, ~heads)
            knife.cut_ffn(block, ~neurons)
        self.hold(gated)
        return knife.changes


def _closed(streak: list[Tensor], after: int) -> tuple[Tensor, Tensor]:
    """Return the heads (H,) and neurons (Dffn,) that go, by their own gates or those of their dimensions or FFN."""
    heads, dims, ffn, neurons = (count >= after for count in streak)
    return heads | dims, ffn | neurons


class _Knife:
    """Cuts modules in place, and notes which parameters became which."""

    def __init__(self, gated: Any):
        self.gated, self.changes = gated, list[Change]()
        self.names = {id(p): name for name, p in gated.named_parameters()}

    def cut_attention(self, block: Any, stay: Tensor) -> None:
        """Cut an attention to its heads ``stay`` (H,), of all heads."""
        attn = block.attn
        keep = self._narrow(attn, stay)
        if keep is None:
            return
        size, inner = attn.head_dim, attn.num_heads * attn.head_dim
        attn.num_heads = len(keep)
        if not len(keep):
            self._drop(attn, "qkv", "q_norm", "k_norm", "norm", "position")
            attn.q_norm, attn.k_norm = nn.Identity(), nn.Identity()
            self._empty(block, "norm1", attn.proj)
            return
        units = (keep[:, None] * size + torch.arange(size, device=keep.device)).flatten()
        joined = isinstance(attn.qkv, JoinedLinear)
        self._rows(attn.qkv, [units] * 3 if joined else [torch.cat([units + i * inner for i in range(3)])])
        self._columns(attn.proj, units)
        self._norm(attn.norm, units)
        if attn.position is not None:
            old, attn.position = attn.position, attn.position.of_heads(keep.tolist())
            for name, p in old.named_parameters():  # a column per head
                self._note(p, attn.position.get_parameter(name), lambda t: t[:, keep])

    def cut_ffn(self, block: Any, stay: Tensor) -> None:
        """Cut an FFN to its neurons ``stay`` (Dffn,), of all neurons."""
        mlp = block.mlp
        keep = self._narrow(mlp, stay)
        if keep is None:
            return
        if not len(keep):
            self._drop(mlp, "fc1", "norm")
            self._empty(block, "norm2", mlp.fc2)
            return
        hidden = mlp.fc2.in_features
        halves = mlp.fc1.out_features // hidden  # 2 in a gated FFN
        joined = isinstance(mlp.fc1, JoinedLinear)
        self._rows(mlp.fc1, [keep] * halves if joined else [torch.cat([keep + i * hidden for i in range(halves)])])
        self._columns(mlp.fc2, keep)
        self._norm(mlp.norm, keep)

    def _narrow(self, part: Any, stay: Tensor) -> Tensor | None:
        """Set what is ``left`` of attention or FFN; return which of those that were there before stay, None if all
        do."""
        before = torch.arange(len(stay)) if part.left is None else part.left.cpu()
        keep = stay[before].nonzero().flatten()
        if len(keep) == len(before):
            return None
        remember_param_prices(self.gated)
        device = next(self.gated.parameters()).device
        part.left = before[keep].to(device)
        return keep.to(device)

    def _rows(self, layer: Any, rows: list[Tensor]) -> None:
        parts = layer.parts if isinstance(layer, JoinedLinear) else [layer]
        for part, chosen in zip(parts, rows, strict=True):
            self._take(part, partial(torch.index_select, dim=0, index=chosen))
            part.out_features = len(chosen)

    def _columns(self, layer: Any, columns: Tensor) -> None:
        """Keep these columns of a layer; the bias belongs to no unit and stays."""
        self._take(layer, lambda t: t[:, columns], ("weight",))
        layer.in_features = len(columns)

    def _norm(self, norm: Any, units: Tensor) -> None:
        if norm is not None:
            self._take(norm, lambda t: t[units])
            norm.normalized_shape = (len(units),)

    def _take(self, layer: Any, take: Callable[[Tensor], Tensor], names: tuple[str, ...] = ("weight", "bias")) -> None:
        for name in names:
            old = getattr(layer, name, None)
            if old is not None:
                setattr(layer, name, nn.Parameter(take(old.detach()).clone(), requires_grad=old.requires_grad))
                self._note(old, getattr(layer, name), take)

    def _empty(self, block: Any, norm: str, output: Any) -> None:
        """Leave of a branch without units at most the output's bias; nobody looks at the norm before it."""
        self._drop(block, norm)
        setattr(block, norm, nn.Identity())
        self._note(output.weight, None, lambda t: t)
        output.weight, output.in_features = None, 0

    def _drop(self, module: Any, *names: str) -> None:
        for name in names:
            part = getattr(module, name)
            for p in () if part is None else part.parameters():
                self._note(p, None, lambda t: t)
            setattr(module, name, None)

    def _note(self, old: nn.Parameter, new: nn.Parameter | None, take: Callable[[Tensor], Tensor]) -> None:
        self.changes.append(Change(self.names[id(old)], old, new, take))


def _check(optimizer: torch.optim.Optimizer, gated: Any) -> None:
    """Raise ``PrunerError`` for what makes ``carry_over`` fail, before anything is cut."""
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, p in gated.named_parameters():
        if id(p) not in known:
            raise PrunerError(f"cut: the optimiser lacks {name}; it must have what pruner.param_groups gives")
        for key, value in optimizer.state.get(p, {}).items():
            if torch.is_tensor(value) and value.ndim and value.shape != p.shape:
                raise PrunerError(f"cut: {type(optimizer).__name__} keeps {key} in another shape than {name}'s")


def carry_over(optimizer: torch.optim.Optimizer, changes: list[Change]) -> None:
    """Let ``optimizer`` have the parameters as they are now, each with its share of the state that it had."""
    new = {id(change.old): change.new for change in changes}
    for group in optimizer.param_groups:
        now = (new.get(id(p), p) for p in group["params"])
        group["params"] = [p for p in now if p is not None]
    for change in changes:
        state = optimizer.state.pop(change.old, None)
        if state and change.new is not None:
            optimizer.state[change.new] = {
                key: change.take(value).clone() if torch.is_tensor(value) and value.ndim else value
                for key, value in state.items()
            }
