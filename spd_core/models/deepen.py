"""A causal model whose context pass costs more while its law stays the same: a heavier target to measure with.

The question "where does speculation across tokens win?" needs a target with a heavy context pass *and* a draft that it
accepts. Making up weights gives the first without the second. So every block is followed by copies of itself whose two
output projections are zero: such a block does all of its work and adds nothing. Contexts, law and acceptance are those
of the model itself.
"""

from __future__ import annotations

import torch

from spd_core.models.causal import Causal


def deepened(model: Causal, extra: int) -> Causal:
    """The model with ``extra`` blocks after each of its own that work and change nothing; it shares no weights."""
    config = model.config.model_copy(update={"depth": model.config.depth * (1 + extra)})
    with torch.device("meta"):
        deep = Causal(config)
    state = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("blocks.")}
    for index, block in enumerate(model.blocks):
        for copy in range(1 + extra):
            for name, value in block.state_dict().items():
                silent = copy > 0 and name.startswith(OUTPUTS)
                key = f"blocks.{index * (1 + extra) + copy}.{name}"
                state[key] = torch.zeros_like(value) if silent else value.clone()
    deep.load_state_dict(state, assign=True)
    return deep.eval().requires_grad_(False)


#: What a block adds to its input comes out of these.
OUTPUTS = ("proj.", "mlp.2.")
