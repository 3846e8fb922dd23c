"""What the dry run says of memory is within 20% of what ranks take."""

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.conftest import run_trainer
from tests.trainer.measure_memory import measure
from trainer import memory
from trainer.check import check
from trainer.config import TrainConfig, dump, load_recipe

Sections = dict[str, dict[str, Any]]
LLAMA = {"hidden_size": 256, "layers": 8, "heads": 8, "kv_heads": 2, "mlp_size": 704, "vocabulary": 16000}


def shape(recipe: str, batch: int, length: int, gpus: int = 1, **sections: dict[str, Any]) -> TrainConfig:
    """A recipe at one micro-batch a rank, or as many as its pipeline has stages, without the compiler."""
    values = load_recipe(recipe).model_dump(mode="json")
    values["parallel"] = {"zero_stage": 0}
    for name, changed in sections.items():
        values[name] |= changed
    values["data"]["sequence_length"] = length
    values["data"]["tokenizer"]["vocabulary"] = min(16000, values["data"]["tokenizer"]["vocabulary"])
    ranks = gpus // values["parallel"].get("tensor", 1)
    values["training"] = {
        "recompute": False,
        **{key: values["training"][key] for key in ("steps", "precision")},
        **sections.get("training", {}),
        "batch": batch * ranks,
        "micro_batch": batch,
        "compile": False,
        "evaluation_tokens": 10**6,
    }
    return TrainConfig.model_validate(values)


# Few tokens and words: a CPU without instructions for bf16 takes 40 times as long as for fp32.
SHAPES = {
    "bf16": (shape("pythia-14m", 1, 256, model={"vocabulary": 16000}), 1),
    "fp32": (shape("pythia-14m", 4, 512, training={"precision": "fp32"}), 1),
    "zero3": (shape("pythia-14m", 1, 256, 2, model={"vocabulary": 16000}, parallel={"zero_stage": 3}), 2),
    "tensor": (shape("pythia-14m", 1, 512, 2, training={"precision": "fp32"}, parallel={"tensor": 2}), 2),
}
MORE_SHAPES = {
    "14m": (shape("pythia-14m", 1, 512), 1),
    "14m-zero3": (shape("pythia-14m", 1, 512, 2, parallel={"zero_stage": 3}), 2),
    "14m-tensor": (shape("pythia-14m", 1, 512, 2, parallel={"tensor": 2}), 2),
    "fp16": (shape("pythia-14m", 2, 256, training={"precision": "fp16"}), 1),
    "fp16-zero2": (shape("pythia-14m", 1, 256, 2, training={"precision": "fp16"}, parallel={"zero_stage": 2}), 2),
    "70m": (shape("pythia-70m", 2, 512), 1),
    "70m-recompute": (shape("pythia-70m", 8, 512, training={"recompute": True}), 1),
    "deep": (shape("pythia-70m", 2, 1024, model={"hidden_size": 256, "layers": 24}), 1),
    "alibi": (shape("pythia-14m", 4, 512, model={"positions": "alibi"}), 1),
    "t5": (shape("pythia-14m", 4, 512, model={"positions": "t5"}), 1),
    "gpt-neo": (shape("gpt-neo-125m", 2, 512), 1),
    "gpt-j": (
        shape("gpt-j-6b", 4, 512, model={key: LLAMA[key] for key in ("hidden_size", "layers", "heads", "vocabulary")}),
        1,
    ),
    "llama": (shape("comma-7b", 4, 512, model=LLAMA), 1),
    "demo": (load_recipe("demo"), 1),
    "zero0": (shape("pythia-14m", 2, 512, 2, training={"precision": "fp32"}), 2),
    "zero1": (shape("pythia-70m", 2, 512, 2, parallel={"zero_stage": 1}), 2),
    "zero2": (shape("pythia-14m", 2, 512, 2, parallel={"zero_stage": 2}), 2),
    "70m-zero3": (shape("pythia-70m", 2, 512, 2, parallel={"zero_stage": 3}), 2),
    "pipeline": (shape("pythia-70m", 2, 512, 2, parallel={"pipeline": 2}), 2),
    "70m-tensor": (shape("pythia-70m", 2, 512, 2, parallel={"tensor": 2}), 2),
}


@pytest.mark.parametrize(("config", "gpus"), SHAPES.values(), ids=SHAPES)
def test_predicted_is_measured(config: TrainConfig, gpus: int) -> None:
    assert check(config, gpus).memory_per_gpu == pytest.approx(measure(config, gpus, times=1), rel=0.2)


@pytest.mark.parametrize("name", ["bf16", pytest.param("zero3", marks=pytest.mark.chaos)])
def test_predicted_is_measured_without_instructions_for_bf16(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN is told to do without them, as on an older CPU. With AVX-512 it emulates them, which takes memory that the
    dry run says; a CPU without AVX-512 never asks oneDNN, and needs no more than before."""
    config, gpus = SHAPES[name]
    variables = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    measured = measure(config, gpus, times=1, variables=variables)
    assert check(config, gpus).memory_per_gpu == pytest.approx(measured, rel=0.2)
    path = tmp_path / "config.yml"
    path.write_text(dump(config))
    said = run_trainer("check", path, "--gpus", str(gpus), variables=variables)
    assert said.returncode == 0, said.stderr
    emulates = memory.cpu_flags() >= memory.AVX512
    assert ("This CPU has no instructions for bf16: " in said.stdout) == emulates


def test_an_fp32_run_does_not_ask_for_instructions_for_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    assert check(*SHAPES["fp32"]).note is None


@pytest.mark.chaos
@pytest.mark.parametrize(("config", "gpus"), MORE_SHAPES.values(), ids=MORE_SHAPES)
def test_predicted_is_measured_in_other_shapes(config: TrainConfig, gpus: int) -> None:
    assert check(config, gpus).memory_per_gpu == pytest.approx(measure(config, gpus), rel=0.2)
