"""Where DeepSpeed keeps master weights and Adam's moments at each ZeRO stage: one way in and out of all of them."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainer.engine.base import TensorKind

MOMENTS: tuple[TensorKind, TensorKind] = ("exp_avg", "exp_avg_sq")


class Masters(Protocol):
    """Of the parameters that a rank holds, each whole over the data-parallel ranks. Nothing else looks at them."""

    def get(self, parameter: nn.Parameter, kind: TensorKind) -> Tensor:
        """The whole parameter or moment in fp32, a copy. Called on all data-parallel ranks together."""

    def set(self, parameter: nn.Parameter, kind: TensorKind, whole: Tensor) -> None:
        """Keep this rank's part of it. Moments are there only after `create_moments`."""

    def create_moments(self, step: int) -> None:
        """Make the moments, zero, as if `step` steps had been done."""

    def publish(self) -> None:
        """Copy the master weights to those that the model computes with. Called on all data-parallel ranks together."""


def masters_of(stage: int, optimizer: Any) -> Masters:
    """For the optimizer that DeepSpeed made at a ZeRO stage."""
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
    """ZeRO-1 and 2: each rank has a part of one flat fp32 tensor a parameter group."""

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
        """Left alone, DeepSpeed links parameters to their moments at the first step, and only the first group's."""
        for group in self._zero.optimizer.param_groups:
            for flat in group["params"]:
                self._zero.optimizer.state[flat] = _moments(flat, step)
        self._zero._hp_optimizer_states_linked = False
        self._zero._lazy_init_hp_params_optimizer_state()

    def publish(self) -> None:
        self._zero.update_lp_params()


class WeightsPartitioned:
    """ZeRO-3: each rank has a part of every parameter, the last one's padded."""

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
        """As DeepSpeed does it at the end of a step."""
        self._zero._partition_all_parameters()
        for group in range(len(self._zero.fp16_groups)):
            self._zero._reassign_or_swap_out_partitioned_parameters(group)
        self._zero._post_step(set())


def _moments(like: Tensor, step: int) -> dict[str, Tensor]:
    count = torch.tensor(float(step), device=like.device)
    return {"step": count, **{kind: torch.zeros_like(like, requires_grad=False) for kind in MOMENTS}}
