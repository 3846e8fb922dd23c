"""What the dry run says of memory is within 20% of what ranks take."""

from typing import Any

import pytest

from tests.trainer.measure_memory import measure
from trainer.check import check
from trainer.config import TrainConfig, load_recipe


def shape(recipe: str, batch: int, length: int, gpus: int = 1, **sections: dict[str, Any]) -> TrainConfig:
    """A recipe at one micro-batch a rank, without the compiler."""
    values = load_recipe(recipe).model_dump(mode="json")
    values["training"] |= {"batch": batch * gpus, "micro_batch": batch, "compile": False, "evaluation_tokens": 10**6}
    values["data"]["sequence_length"] = length
    for name, changed in sections.items():
        values[name] |= changed
    return TrainConfig.model_validate(values)


@pytest.mark.parametrize(
    ("config", "gpus"),
    [
        (shape("pythia-14m", 4, 512), 1),
        (shape("pythia-14m", 4, 512, training={"precision": "fp32"}), 1),
        (shape("pythia-14m", 2, 256, 2, parallel={"zero_stage": 3}), 2),
    ],
    ids=["bf16", "fp32", "zero3"],
)
def test_predicted_is_measured(config: TrainConfig, gpus: int) -> None:
    assert check(config, gpus).memory_per_gpu == pytest.approx(measure(config, gpus), rel=0.2)
