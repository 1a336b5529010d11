"""How much of the device's memory a run has for activations, and what `train.memory: auto` makes of it."""

from __future__ import annotations

import psutil
import torch

from orpo_ray.cluster.turns import let_go
from orpo_ray.config import TrainConfig
from orpo_ray.modeling.memory import LEVELS, Recomputation, least_recomputation
from orpo_ray.modeling.scorer import Scorer

_USABLE = 0.8  # of what is free: allocators fragment, and collectives take buffers of their own
_STATES = 12  # bytes of a trained weight: float32 master copy and two moments
_GATHERED = 2 * 10**9  # of weights that ZeRO-3 holds whole at a time: DeepSpeed's default of a billion, in bfloat16


def choose_recomputation(
    scorer: Scorer, config: TrainConfig, device: torch.device, *, ranks: int = 1, ranks_here: int = 1, beside: int = 0
) -> Recomputation:
    """`train.memory`, or where it is `auto` the least recomputation that fits; the same on all of `ranks`.

    `ranks_here`: those that share this machine's memory, where the device is a CPU; `beside`: bytes of the device that
    others will hold who are not there yet. `scorer` holds its whole weights.
    """
    if config.train.memory != "auto":
        return config.train.memory
    room = int(_USABLE * (_free(device, ranks_here) - beside)) - _to_come(scorer, config, ranks)
    level = LEVELS.index(least_recomputation(scorer, config.train.tokens_per_microbatch, room))
    if ranks > 1:  # under ZeRO-3 ranks gather weights together, so they must compute the same layers again
        most = torch.tensor(level, device=device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        level = int(most)
    return LEVELS[level]


def _free(device: torch.device, ranks_here: int) -> int:
    """Bytes that are free, those included that were in use before: by the reference, as of DPO, or by checks of the
    model. PyTorch's allocator keeps them for this process, and the device counts them as taken."""
    if device.type == "cuda":
        let_go(device)  # what it keeps is in pieces, of which a larger tensor can be made only by the device
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return int(psutil.virtual_memory().available) // ranks_here


def _to_come(scorer: Scorer, config: TrainConfig, ranks: int) -> int:
    """Bytes of gradients and optimizer states, which are not there yet; under ZeRO-3 the weights are not either."""
    trained = sum(parameter.numel() for parameter in scorer.parameters() if parameter.requires_grad)
    stage = config.train.zero_stage
    states = 0 if config.train.offload_optimizer else _STATES * trained // (ranks if stage >= 1 else 1)
    weights = sum(parameter.nbytes for parameter in scorer.parameters()) if stage == 3 else 0
    gathered = min(weights, _GATHERED)
    return states + 4 * trained // (ranks if stage >= 2 else 1) + weights // ranks + gathered
