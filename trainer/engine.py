"""DeepSpeed's engine around the model, and Adam's moments in and out of it."""

import logging
import os
import sys
import warnings
from types import ModuleType

import torch
from torch import Tensor, nn

from trainer.config import TrainConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


class Engine:
    """ZeRO-1 in fp32. Every method is called on all ranks together."""

    def __init__(self, config: TrainConfig, model: nn.Module, ranks: int) -> None:
        deepspeed = _import_deepspeed()
        decayed = [parameter for parameter in model.parameters() if parameter.ndim == 2]
        others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
        optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.optimizer.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=config.optimizer.learning_rate,
            betas=config.optimizer.betas,
            eps=config.optimizer.eps,
            fused=True,
        )
        self.model = model
        self._engine, self._zero, _, _ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config={
                "train_batch_size": config.training.batch,
                "train_micro_batch_size_per_gpu": config.training.micro_batch,
                "gradient_accumulation_steps": config.accumulation(ranks),
                "gradient_clipping": config.optimizer.clip,
                "zero_optimization": {"stage": config.parallel.zero_stage},
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 2**62,
            },
        )
        self._create_moments(step=0)

    def forward(self, ids_BL: Tensor) -> Tensor:
        logits_BLV: Tensor = self._engine(ids_BL)
        return logits_BLV

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradient; all but the step's last are followed by `advance`."""
        self._engine.backward(loss)

    def advance(self) -> None:
        """Count a micro-batch; the optimizer moves at the last one of a step."""
        self._engine.step()

    def set_learning_rate(self, rate: float) -> None:
        for group in self._zero.param_groups:
            group["lr"] = rate

    @property
    def gradient_norm(self) -> float:
        """Of the last step, over all ranks, before clipping."""
        return float(self._engine.get_global_grad_norm())

    def moments(self) -> dict[str, Tensor]:
        """Adam's moments by `{moment}.{parameter}`, gathered whole from all ranks, on the CPU."""
        from deepspeed.utils import safe_get_full_optimizer_state

        return {
            f"{moment}.{name}": safe_get_full_optimizer_state(parameter, moment).cpu()
            for name, parameter in self.model.named_parameters()
            for moment in MOMENTS
        }

    def load_moments(self, moments: dict[str, Tensor], step: int) -> None:
        """Put whole moments back, each rank keeping its own part, as they were after `step` steps."""
        from deepspeed.utils import safe_set_full_optimizer_state

        self._create_moments(step)
        for name, parameter in self.model.named_parameters():
            for moment in MOMENTS:
                safe_set_full_optimizer_state(parameter, moments[f"{moment}.{name}"].to(parameter.device), moment)

    def _create_moments(self, step: int) -> None:
        """Make this rank's moments, zero, and link each parameter to its part of them.

        Left alone, DeepSpeed links at the first step and then only the first of the parameter groups.
        """
        for flat in self._zero.single_partition_of_fp32_groups:
            self._zero.optimizer.state[flat] = {
                "step": torch.tensor(float(step), device=flat.device),
                **{moment: torch.zeros_like(flat) for moment in MOMENTS},
            }
        self._zero._hp_optimizer_states_linked = False
        self._zero._lazy_init_hp_params_optimizer_state()


def _import_deepspeed() -> ModuleType:
    os.environ["DS_ACCELERATOR"] = "cuda" if torch.cuda.is_available() else "cpu"
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    import deepspeed

    # Its shared-memory collectives would be compiled at the first start, most of a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for handler in logging.getLogger("DeepSpeed").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
    deepspeed.init_distributed(verbose=False)
    module: ModuleType = deepspeed
    return module
