"""The dry run: what a configuration would cost, answered without building the model. Imports no torch."""

from pydantic import BaseModel

from trainer.config import ConfigError, TrainConfig


class CheckReport(BaseModel):
    """`memory_per_gpu` is in bytes, an estimate; `refusal` is the sentence that says why it would not run."""

    parameters: int
    tokens: int
    steps: int
    flops: float
    memory_per_gpu: int
    seconds: float | None = None
    refusal: str | None = None


def check(
    config: TrainConfig,
    gpus: int = 1,
    gpu_memory: int | None = None,
    tokens_per_second: float | None = None,
) -> CheckReport:
    """Dry run on `gpus` GPUs of `gpu_memory` bytes each, at a measured rate over all of them if there is one."""
    tokens = config.tokens_per_step * config.training.steps
    memory = memory_per_gpu(config, gpus)
    refusal = None
    try:
        config.accumulation(gpus)
    except ConfigError as error:
        refusal = str(error)
    if refusal is None and gpu_memory is not None and memory > gpu_memory:
        refusal = (
            f"It needs about {memory / 2**30:.1f} GiB on each GPU and there are {gpu_memory / 2**30:.1f} GiB; "
            "lower training.micro_batch or use more GPUs."
        )
    return CheckReport(
        parameters=parameters(config),
        tokens=tokens,
        steps=config.training.steps,
        flops=float(flops_per_token(config)) * tokens,
        memory_per_gpu=memory,
        seconds=tokens / tokens_per_second if tokens_per_second else None,
        refusal=refusal,
    )


def parameters(config: TrainConfig) -> int:
    """Trained parameters, embeddings and head included."""
    return config.vocabulary * config.model.hidden_size + _parameters_past_embedding(config)


def flops_per_token(config: TrainConfig) -> int:
    """Forward and backward: 6N + 12·layers·hidden·context (Chowdhery et al. 2022, PaLM, appendix B)."""
    model = config.model
    attention = 12 * model.layers * model.hidden_size * config.data.sequence_length
    return 6 * _parameters_past_embedding(config) + attention


def memory_per_gpu(config: TrainConfig, gpus: int) -> int:
    """Bytes in fp32 under ZeRO-1: weights and gradients whole, master weights and Adam's moments split over the GPUs.

    Activations: 32 numbers a layer, token and hidden unit (Korthikanti et al. 2022, "Reducing activation
    recomputation", eq. 1, without dropout and with attention that keeps no scores), and three copies of the logits.
    """
    count = parameters(config)
    tokens = config.training.micro_batch * config.data.sequence_length
    activations = 32 * config.model.layers * config.model.hidden_size + 3 * config.vocabulary
    return 4 * (2 * count + 3 * -(-count // gpus) + tokens * activations)


def _parameters_past_embedding(config: TrainConfig) -> int:
    h = config.model.hidden_size
    attention = 3 * h * h + 3 * h + h * h + h
    mlp = 4 * h * h + 4 * h + 4 * h * h + h
    norms = 4 * h
    return config.model.layers * (attention + mlp + norms) + 2 * h + h * config.vocabulary
