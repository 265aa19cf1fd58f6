"""HiAP's units at uniform sizes: a control.

Source: Frankle et al. 2021, as for ``same_sizes``: if HiAP's order of units at uniform sizes does as well, it has found
units and not sizes.
Algorithm: HiAP's single phase with a target, unchanged; at its end the same share of every layer's value dimensions and
neurons stays, the best by HiAP's logits, such that the MACs meet the target.
Deviations: none possible.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from baselines.ranking import within_layer_rank
from hiap import gated_vit
from hiap.budget.selection import joint_ranking
from hiap.train.config import Config
from hiap.train.stages import SinglePhase, Stage, corrected, remove


def stages(config: Config) -> list[Stage]:
    return [UniformSizes(config)]


class UniformSizes(SinglePhase):
    def harden(self, model: Any) -> None:
        self.pruner.step()
        found, target = joint_ranking(model), self.context.target
        assert found.dims is not None
        assert found.neurons is not None
        assert target is not None
        own = replace(found, dims=within_layer_rank(found.dims), neurons=within_layer_rank(found.neurons), tied=None)
        gated_vit.harden_to(model, target.keep_best(own))

    def finish(self, model: Any) -> Any:
        return corrected(remove(model), model, self.context)
