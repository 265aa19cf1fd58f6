"""The public names of ``hiap``, and where each is at home; loaded on first use (``__init__.py``)."""

from hiap.backbones.count import macs as macs
from hiap.backbones.count import params as params
from hiap.backbones.errors import ConfigError as ConfigError
from hiap.backbones.errors import UnsupportedModelError as UnsupportedModelError
from hiap.backbones.pruned import set_layout as set_layout
from hiap.beyond.correction import correct as correct
from hiap.beyond.pruning import prune as prune
from hiap.beyond.shrinking import Shrink as Shrink
from hiap.beyond.tasks import distillation_loss as distillation_loss
from hiap.beyond.tasks import feature_loss as feature_loss
from hiap.budget.options import GateConfig as GateConfig
from hiap.budget.options import PenaltyConfig as PenaltyConfig
from hiap.budget.pruner import Pruner as Pruner
from hiap.budget.pruner import extract as extract
from hiap.cost import ExpectedCost as ExpectedCost
from hiap.cost import expected_cost as expected_cost
from hiap.formats.huggingface import from_transformers as from_transformers
from hiap.formats.huggingface import to_transformers as to_transformers
from hiap.formats.push import push as push
from hiap.formats.show import show as show
from hiap.formats.store import load as load
from hiap.formats.store import save as save
from hiap.gated_layers import named_gates as named_gates
from hiap.gated_vit import gate as gate
from hiap.options import FeasibilityConfig as FeasibilityConfig
from hiap.pruner import PrunerError as PrunerError
