"""What is known of GPUs by their names: memory, peak FLOP/s, and which of them compute no bf16."""

import re
from types import SimpleNamespace

import pytest
import torch

from tests.trainer.test_parallel import config_of
from trainer import gpus, hardware
from trainer.check import check
from trainer.config import ConfigError, load_recipe

CUDA = torch.device("cuda", 0)


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, architecture: str = "", bf16: bool = True) -> None:
    """PyTorch's answers about a GPU that this machine does not have."""
    about = SimpleNamespace(name=name, gcnArchName=architecture)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: about)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)


@pytest.mark.parametrize(
    ("name", "architecture", "peaks"),
    [
        ("NVIDIA H200", "", {"bf16": 989, "fp16": 989, "fp32": 495}),
        ("Tesla V100-SXM2-32GB", "", {"fp16": 125, "fp32": 16}),
        ("NVIDIA L40S", "", {"bf16": 362}),
        ("AMD Instinct MI300X", "gfx942:sramecc+:xnack-", {"bf16": 1307, "fp16": 1307, "fp32": 163.4}),
        ("AMD Instinct MI250X", "gfx90a:sramecc+:xnack-", {"bf16": 191.5, "fp32": 47.9}),
        ("AMD Instinct MI250X / MI250", "gfx90a", {"bf16": 191.5}),
        ("AMD Instinct MI100", "gfx908", {"bf16": 92.3, "fp16": 184.6}),
        # ROCm may have no name for a device, or one that says little.
        ("", "gfx942:sramecc+:xnack-", {"bf16": 1307}),
        ("AMD Radeon Graphics", "gfx90a:sramecc+:xnack-", {"fp16": 191.5}),
    ],
)
def test_the_peak_of_a_gpu_is_its_datasheets(
    monkeypatch: pytest.MonkeyPatch, name: str, architecture: str, peaks: dict[str, float]
) -> None:
    pretend(monkeypatch, name, architecture)
    for precision, tflops in peaks.items():
        training = config_of("neox", precision=precision).training
        assert hardware.peak_flops(training, CUDA) == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize("name", ["Tesla V100-SXM2-32GB", "Tesla P100-PCIE-16GB", "Tesla T4"])
def test_a_run_in_bf16_is_refused_on_a_gpu_without_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pretend(monkeypatch, name, bf16=False)
    with pytest.raises(ConfigError, match=re.escape(f"{name} GPUs compute no bf16: use fp16 (")):
        hardware.check_precision(config_of("neox", precision="bf16").training, CUDA)
    for precision in ("fp16", "fp32"):
        hardware.check_precision(config_of("neox", precision=precision).training, CUDA)


def test_a_gpu_that_is_not_known_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    training = config_of("neox", precision="bf16").training
    pretend(monkeypatch, "Quadro RTX 8000", bf16=False)
    with pytest.raises(ConfigError, match=r"Quadro RTX 8000 GPUs compute no bf16: use training\.precision fp16"):
        hardware.check_precision(training, CUDA)
    pretend(monkeypatch, "NVIDIA Something New")
    hardware.check_precision(training, CUDA)


def test_the_dry_run_knows_the_type_of_the_gpus() -> None:
    pythia = load_recipe("pythia-70m")
    assert check(pythia, 8, device="cuda", gpu_type="H200").refusal is None
    assert check(pythia, 8, device="cuda", gpu_type="V100").refusal == (
        "V100 GPUs compute no bf16: use fp16 (training.precision, or the override precision=fp16), or fp32."
    )
    assert check(load_recipe("pythia-70m", {"precision": "fp16"}), 8, device="cuda", gpu_type="V100").refusal is None


def test_the_longer_of_two_names_comes_first() -> None:
    parts = list(gpus.GPUS)
    assert [(a, b) for i, a in enumerate(parts) for b in parts[i + 1 :] if a in b] == []
    assert [gpus.named(part) for part in parts] == list(gpus.GPUS.values())
