"""DeepSpeed's master weights and Adam's moments: one interface to read and write them at every ZeRO stage."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainer.engine.base import TensorKind

MOMENTS: tuple[TensorKind, TensorKind] = ("exp_avg", "exp_avg_sq")


class Masters(Protocol):
    """Access to the master weights and moments of the parameters that a rank holds, each whole over the data-parallel
    ranks."""

    def get(self, parameter: nn.Parameter, kind: TensorKind) -> Tensor:
        """A copy of the whole parameter or moment in fp32. All data-parallel ranks call it together."""

    def set(self, parameter: nn.Parameter, kind: TensorKind, whole: Tensor) -> None:
        """Store this rank's part of the whole parameter or moment. Moments exist only after `create_moments`."""

    def create_moments(self, step: int) -> None:
        """Create the moments as zeros, with Adam's step count at `step`."""

    def publish(self) -> None:
        """Copy the master weights to those that the model computes with. All data-parallel ranks call it together."""


def masters_of(stage: int, optimizer: Any) -> Masters:
    """The access that fits the optimizer which DeepSpeed created at a ZeRO stage."""
    match stage:
        case 0:
            return Unpartitioned(optimizer)
        case 3:
            return WeightsPartitioned(optimizer)
    return OptimizerPartitioned(optimizer)


class Unpartitioned:
    """ZeRO-0 in fp32: torch's own optimizer, on the model's own weights."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    def get(self, parameter: nn.Parameter, kind: TensorKind) -> Tensor:
        return self._kept(parameter, kind).clone()

    def set(self, parameter: nn.Parameter, kind: TensorKind, whole: Tensor) -> None:
        self._kept(parameter, kind).copy_(whole)

    def create_moments(self, step: int) -> None:
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                self._optimizer.state[parameter] = _moments(parameter, step)

    def publish(self) -> None:
        pass

    def _kept(self, parameter: nn.Parameter, kind: TensorKind) -> Tensor:
        tensor: Tensor = parameter.detach() if kind == "weight" else self._optimizer.state[parameter][kind]
        return tensor


class OptimizerPartitioned:
    """ZeRO-1 and 2: each rank has a part of one flat fp32 tensor for each parameter group."""

    def __init__(self, optimizer: Any) -> None:
        self._zero = optimizer

    def get(self, parameter: nn.Parameter, kind: TensorKind) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        tensor: Tensor = (
            safe_get_full_fp32_param(parameter) if kind == "weight" else safe_get_full_optimizer_state(parameter, kind)
        )
        return tensor

    def set(self, parameter: nn.Parameter, kind: TensorKind, whole: Tensor) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if kind == "weight":
            safe_set_full_fp32_param(parameter, whole)
        else:
            safe_set_full_optimizer_state(parameter, whole, kind)

    def create_moments(self, step: int) -> None:
        """See `Masters`. Left alone, DeepSpeed links parameters to moments at its first update, and of the first group
        only."""
        for group in self._zero.optimizer.param_groups:
            for flat in group["params"]:
                self._zero.optimizer.state[flat] = _moments(flat, step)
        self._zero._hp_optimizer_states_linked = False
        self._zero._lazy_init_hp_params_optimizer_state()

    def publish(self) -> None:
        self._zero.update_lp_params()


class WeightsPartitioned:
    """ZeRO-3: each rank has a part of every parameter; the last rank's part is padded."""

    def __init__(self, optimizer: Any) -> None:
        self._zero = optimizer

    def get(self, parameter: nn.Parameter, kind: TensorKind) -> Tensor:
        tensor: Tensor = self._zero.get_full_hp_param(parameter, None if kind == "weight" else kind)
        return tensor

    def set(self, parameter: nn.Parameter, kind: TensorKind, whole: Tensor) -> None:
        partition: Any = parameter
        size = partition.ds_tensor.ds_numel
        part = whole.flatten()[size * self._zero._get_param_partition_rank(parameter) :][:size]
        padded = nn.functional.pad(part, (0, size - part.numel()))
        self._zero.set_local_hp_param(padded, parameter, None if kind == "weight" else kind)

    def create_moments(self, step: int) -> None:
        for flat in self._zero.fp32_partitioned_groups_flat:
            self._zero.optimizer.state[flat] = _moments(flat, step)

    def publish(self) -> None:
        """See `Masters`. These are the calls that DeepSpeed makes at the end of an update."""
        self._zero._partition_all_parameters()
        for group in range(len(self._zero.fp16_groups)):
            self._zero._reassign_or_swap_out_partitioned_parameters(group)
        self._zero._post_step(set())


def _moments(like: Tensor, step: int) -> dict[str, Tensor]:
    count = torch.tensor(float(step), device=like.device)
    return {"step": count, **{kind: torch.zeros_like(like, requires_grad=False) for kind in MOMENTS}}
