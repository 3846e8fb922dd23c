"""The GPUs of this host, NVIDIA's or AMD's, as their drivers' commands list them, and how a trainer is given some."""

import json
import subprocess
from typing import Any, NamedTuple


class HostGpus(NamedTuple):
    """The `gpus` by name with the memory of each in MiB, and the version of the `driver`; no GPUs and an empty version
    where no driver answers. Of an MI250X each of its two devices (GCDs) is a GPU."""

    gpus: list[dict[str, Any]]
    driver: str


NONE = HostGpus([], "")


def found() -> HostGpus:
    """What `nvidia-smi` lists, or failing that `amd-smi`, or failing that the older `rocm-smi`."""
    for look in (_nvidia_smi, _amd_smi, _rocm_smi):
        try:
            seen = look()
        except (OSError, ValueError, LookupError, TypeError, AttributeError, subprocess.SubprocessError):
            continue
        if seen.gpus:
            return seen
    return NONE


def visible(devices: str) -> dict[str, str]:
    """The variables that let a process see the GPUs of these numbers, separated by commas, or none.

    ROCm's HIP reads HIP_VISIBLE_DEVICES, and most versions CUDA_VISIBLE_DEVICES too. ROCR_VISIBLE_DEVICES must not be
    set as well: HIP would count among the GPUs that it leaves.
    """
    return {"CUDA_VISIBLE_DEVICES": devices, "HIP_VISIBLE_DEVICES": devices}


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    return done.stdout.decode(errors="replace")


def _nvidia_smi() -> HostGpus:
    said = _said("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")
    rows = [[part.strip() for part in line.split(",")] for line in said.splitlines() if line.strip()]
    return HostGpus([{"name": name, "memory_mib": int(memory)} for name, memory, _ in rows], rows[0][2])


def _amd_smi() -> HostGpus:
    told = json.loads(_said("amd-smi", "static", "--asic", "--vram", "--driver", "--json"))
    # A list until ROCm 6.4, and from 7 on an object around it.
    cards = told["gpu_data"] if isinstance(told, dict) else told
    gpus = [
        {"name": str(card["asic"]["market_name"]), "memory_mib": int(card["vram"]["size"]["value"])} for card in cards
    ]
    return HostGpus(gpus, str(cards[0]["driver"]["version"]))


def _rocm_smi() -> HostGpus:
    told = json.loads(_said("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--showdriverversion", "--json"))
    # The keys' capitals differ between versions.
    about = {key: {name.lower(): value for name, value in card.items()} for key, card in told.items()}
    cards = [about[key] for key in sorted((key for key in about if key.startswith("card")), key=lambda k: int(k[4:]))]
    gpus = [
        {"name": str(card["card series"]), "memory_mib": int(card["vram total memory (b)"]) >> 20} for card in cards
    ]
    return HostGpus(gpus, str(about.get("system", {}).get("driver version", "")))
