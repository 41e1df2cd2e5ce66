"""One model over the processes that ``torchrun`` starts: each has a share of every batch.

In a process that was started alone everything here does nothing.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

# between two blocks a process may wait for hours while the first one measures, or waits for a lock
_PATIENCE = timedelta(days=7)
_words: Any = None


def join(device: str) -> None:
    """Join the processes that torchrun has started, each with a GPU of its own if any.

    Within a block torch's own limits hold, after which a lost machine is noticed.
    """
    global _words
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend)
    _words = dist.new_group(backend="gloo", timeout=_PATIENCE)


def leave() -> None:
    """Leave them at a good end; at a bad one torchrun ends them all."""
    dist.destroy_process_group()


def processes() -> int:
    """How many processes share each batch."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of the processes this is; the first where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def own_share() -> slice:
    """Which of a batch's samples are this process's: of P the i-th has i, i + P, i + 2 P …

    >>> list(range(8))[own_share()]
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    return slice(rank(), None, processes())


def told(value: Any = None) -> Any:
    """What the first process says here, in each of them."""
    if not dist.is_initialized():
        return value
    said = [value]
    dist.broadcast_object_list(said, src=0, group=_words)
    return said[0]


def total(value: Tensor, weight: float) -> Tensor:
    """The sum over all processes, each with its weight, in each of them."""
    if not dist.is_initialized():
        return value
    value = value * weight
    dist.all_reduce(value)
    return value


def total_of(sums: dict[str, Tensor], names: Sequence[str], zero: Tensor) -> dict[str, Tensor]:
    """Sums by name over all processes, in each; one that has none of its own adds ``zero``."""
    if not dist.is_initialized():
        return sums
    rows = torch.stack([sums.get(name, zero).double() for name in names])
    return dict(zip(names, total(rows, 1.0), strict=True))


def share_buffers(model: nn.Module) -> None:
    """Give every process the first one's buffers, such as batch norm's running statistics."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def synchronised(model: nn.Module, device: str) -> nn.Module:
    """The model with statistics of batch norm over all processes, on GPUs, where torch has them."""
    if processes() > 1 and device == "cuda":
        # torch's own would drop the activations that are inside some of timm's norms
        from timm.layers.norm_act import convert_sync_batchnorm

        return convert_sync_batchnorm(model)
    return model


def has_own_statistics(model: nn.Module) -> bool:
    """Whether batch norm sees only each process's share of a batch."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return processes() > 1 and any(not isinstance(norm, nn.SyncBatchNorm) for norm in norms)


def averaging(model: nn.Module) -> nn.Module:
    """The model with gradients that are means over all processes."""
    return DistributedDataParallel(model) if processes() > 1 else model
