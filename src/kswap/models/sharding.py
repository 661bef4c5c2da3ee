"""A base that does not fit one device: its frozen weights, sharded over the processes (FSDP2).

What trains, LoRA matrices and class heads, is small, and stays whole on every process: so the group
lasso, the proximal step, the optimiser, clipping and checkpoints are those of any other run, and
gradients are summed as they are without sharding (`training.loop`). What is large does not train:
each process holds its part of the base, and a block's weights are together only while it computes.
For the merged model the first process keeps the base as it was loaded, in the memory of its host;
nothing has to be gathered.

`fully_shard` is torch's; Accelerate's own way to it wants a model and its optimiser at once, while
here the base runs before there is an adapter, and each stage has an optimiser of its own.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from kswap.errors import UserError


def shard(
    model: nn.Module, blocks: Sequence[str], *, apart: Collection[str], device: torch.device
) -> None:
    """Freeze a bare model and shard it over all processes, in place; it then computes on `device`.

    Args:
        model: on the CPU, the same on every process.
        blocks: modules whose weights are gathered together; all else is gathered as one.
        apart: names of parameters that stay whole, since classes are added to them.
        device: of this process.

    Raises:
        UserError: torch is too old.
    """
    # not every build of torch has it, and few runs need it
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise UserError(
            f"distributed_type: FSDP needs torch 2.7 or later, here is {torch.__version__}; "
            "install a newer one, or take MULTI_GPU"
        )
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    whole = {parameters[name] for name in apart if name in parameters}
    for parameter in set(parameters.values()) - whole:
        parameter.requires_grad_(False)
    for name in sorted(blocks, key=lambda name: -name.count(".")):  # inner ones first
        fully_shard(model.get_submodule(name), mesh=mesh, ignored_params=whole)
    fully_shard(model, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    for module in model.modules():
        if isinstance(module, FSDPModule):  # models are told apart by the names of their classes
            kind: Any = type(module)
            kind.__name__ = kind.__mro__[2].__name__
    # of what the whole model returns: nobody changes that in place
    name = re.escape(type(model).__name__)
    warnings.filterwarnings("ignore", rf"FSDP2-wrapped module \({name}\) returned a view")
