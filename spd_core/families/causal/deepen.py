"""A causal model whose context pass costs more while its law stays the same: a heavier target to measure with.

The question "where does speculation across tokens win?" needs a target with a heavy context pass *and* a draft that it
accepts. Making up weights gives the first without the second. So every block is followed by copies of itself whose two
output projections are zero: such a block does all of its work and adds nothing. Contexts, law and acceptance are those
of the model itself.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from spd_core.families.causal.model import Causal


def deepened(model: Causal, extra: int) -> Causal:
    """The model with ``extra`` idle blocks after each of its own; it shares no weights."""
    deep = copy.deepcopy(model)
    deep.config = model.config.model_copy(update={"depth": model.config.depth * (1 + extra)})
    deep.blocks = nn.ModuleList(part for block in deep.blocks for part in (block, *(idle(block) for _ in range(extra))))
    return deep


@torch.no_grad()
def idle(block: nn.Module) -> nn.Module:
    """A copy of a block that adds nothing to its input."""
    copied = copy.deepcopy(block)
    for name, value in copied.named_parameters():
        if name.startswith(("proj.", "mlp.2.")):
            value.zero_()
    return copied
