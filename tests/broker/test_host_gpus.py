"""The GPUs of a host, as the drivers' commands list them. The commands are stand-ins that print what real ones print:
there is no GPU of AMD's to try them on."""

import json
import sys
from pathlib import Path

import pytest

from broker.runners import host_gpus
from broker.runners.host_gpus import NONE, HostGpus

MI300X = {
    "asic": {"market_name": "AMD Instinct MI300X"},
    "vram": {"type": "HBM", "size": {"value": 196592, "unit": "MB"}},
}
AMD_SMI = [{"gpu": number, **MI300X, "driver": {"name": "amdgpu", "version": "6.10.5"}} for number in range(2)]
GCD = {
    "VRAM Total Memory (B)": "68702699520",
    "VRAM Total Used Memory (B)": "11186176",
    "Card Series": "AMD Instinct MI250X",
}
OLD_GCD = {"Card series": "AMD Instinct MI250X", "VRAM Total Memory (B)": "68702699520"}
SYSTEM = {"system": {"Driver version": "6.3.6"}}

SEEN_MI300X = HostGpus([{"name": "AMD Instinct MI300X", "memory_mib": 196592}] * 2, "6.10.5")
SEEN_GCDS = HostGpus([{"name": "AMD Instinct MI250X", "memory_mib": 65520}] * 11, "6.3.6")


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH; `say` puts commands into it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def say(folder: Path, command: str, text: str, status: int = 0) -> None:
    path = folder / command
    said = text.encode(errors="surrogateescape")
    path.write_text(f"#!{sys.executable}\nimport os\nos.write(1, {said!r})\nraise SystemExit({status})\n")
    path.chmod(0o755)


def test_a_host_without_a_driver_has_none(commands: Path) -> None:
    assert host_gpus.found() == NONE


@pytest.mark.parametrize(
    ("command", "text", "seen"),
    [
        (
            "nvidia-smi",
            "Tesla V100-SXM2-32GB, 32768, 535.104.05\nTesla V100-SXM2-32GB, 32768, 535.104.05",
            HostGpus([{"name": "Tesla V100-SXM2-32GB", "memory_mib": 32768}] * 2, "535.104.05"),
        ),
        (
            "nvidia-smi",
            "A card\udcfc, 32768, 535.104.05",  # a byte that is no UTF-8
            HostGpus([{"name": "A card\ufffd", "memory_mib": 32768}], "535.104.05"),
        ),
        ("amd-smi", json.dumps(AMD_SMI), SEEN_MI300X),
        ("amd-smi", json.dumps({"gpu_data": AMD_SMI}), SEEN_MI300X),
        ("rocm-smi", json.dumps({f"card{n}": GCD for n in range(11)} | SYSTEM), SEEN_GCDS),
        ("rocm-smi", json.dumps({f"card{n}": OLD_GCD for n in range(11)} | SYSTEM), SEEN_GCDS),
    ],
)
def test_each_driver_lists_its_gpus(commands: Path, command: str, text: str, seen: HostGpus) -> None:
    say(commands, command, text)
    assert host_gpus.found() == seen


@pytest.mark.parametrize("nonsense", ["", "No devices were found", "[]", "{}", '[{"gpu": 0, "asic": "N/A"}]', "null"])
def test_what_a_driver_cannot_say_is_no_gpu(commands: Path, nonsense: str) -> None:
    for command in ("nvidia-smi", "amd-smi", "rocm-smi"):
        say(commands, command, nonsense)
    assert host_gpus.found() == NONE


def test_a_command_that_fails_leaves_the_next_one_its_turn(commands: Path) -> None:
    say(commands, "nvidia-smi", "NVIDIA-SMI has failed because it could not talk to the driver.", status=9)
    say(commands, "amd-smi", json.dumps(AMD_SMI), status=1)
    say(commands, "rocm-smi", json.dumps({f"card{n}": GCD for n in range(11)} | SYSTEM))
    assert host_gpus.found() == SEEN_GCDS
