"""The peak memory of real ranks on random tokens: `python -m tests.trainer.measure_memory CONFIG.yml --gpus 2`.

Each rank is a process of its own in the environment that the trainer starts ranks in, and trains through the real
engine. On a CPU its peak is the resident memory above that after the imports, on a GPU what PyTorch allocated there.
"""

import importlib
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from trainer import ranks
from trainer.check import check
from trainer.checkpoint import Start
from trainer.config import TrainConfig, load
from trainer.ranks import Assignment, Host

STEPS = 3


def measure(config: TrainConfig, gpus: int = 1, times: int = 3) -> int:
    """Bytes at the peak of the rank that needs most; the median of several starts."""
    return int(statistics.median(max(_start(config, gpus)) for _ in range(times)))


def _start(config: TrainConfig, count: int) -> list[int]:
    """The peak of each rank."""
    with ranks._listener(Host()) as listener:
        assert listener
        environment = os.environ | ranks._environment(Host(), listener.getsockname()[1], count)
        processes = []
        for number in range(count):
            assignment = Assignment(
                config=config,
                out=Path(),
                start=Start(),
                rank=number,
                ranks=count,
                local_rank=number,
                local_ranks=count,
                parent=os.getpid(),
                listener=listener.fileno() if number == 0 else None,
            )
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", __spec__.name, "--rank", assignment.model_dump_json()],
                    env=environment | {"RANK": str(number), "LOCAL_RANK": str(number)},
                    stdout=subprocess.PIPE,
                    pass_fds=[listener.fileno()],
                )
            )
    answers = [process.communicate(timeout=300)[0] for process in processes]
    return [json.loads(answer.splitlines()[-1]) for answer in answers]


def _rank(assignment: Assignment) -> None:
    import torch

    from trainer import hardware, state
    from trainer.engine import open_engine
    from trainer.world import join

    config = assignment.config
    if assignment.ranks == 1:
        importlib.import_module("trainer.engine.local")
    else:
        os.environ["DS_ACCELERATOR"] = hardware.device(assignment.local_rank).type
        importlib.import_module("trainer.engine.pipeline")
        importlib.import_module("deepspeed.pipe")
    importlib.import_module("trainer.train")
    before = _resident("VmRSS")
    place = join(assignment, config.parallel)

    def note(phase: str) -> None:
        if "PHASES" in os.environ and place.rank in (0, place.ranks - 1):
            print(
                place.rank,
                phase,
                (_resident("VmRSS") - before) // 2**20,
                (_resident("VmHWM") - before) // 2**20,
                file=sys.stderr,
            )

    note("join")
    engine = open_engine(config, place)
    note("open")
    engine.load(state.fresh(config), 0)
    note("load")
    generator = torch.Generator().manual_seed(place.data_rank)
    shape = config.training.micro_batch, config.data.sequence_length + 1
    for _ in range(STEPS):
        rows = [
            torch.randint(config.vocabulary, shape, generator=generator).to(place.device)
            for _ in range(config.accumulation(place.data))
        ]
        engine.step(rows, 1e-3)
        note("step")
    if "EVAL" in os.environ:
        engine.nll(rows[0])
        note("nll")
        for kind in ("weight", "exp_avg", "exp_avg_sq"):
            for _ in engine.gather(kind):
                pass
        note("gather")
        engine.step(rows, 1e-3)
        note("step")
    if place.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(place.device)
    else:
        peak = _resident("VmHWM") - before
    place.wait()
    print(peak, flush=True)
    os._exit(0)


def _resident(field: str) -> int:
    """Bytes that the kernel counts for this process: VmRSS now, VmHWM at their most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def main(config: Annotated[Path, typer.Argument(metavar="CONFIG.yml")], gpus: int = 1, times: int = 3) -> None:
    settings = load(config)
    predicted = check(settings, gpus).memory_per_gpu
    measured = measure(settings, gpus, times)
    print(f"predicted {predicted / 2**20:,.0f} MiB, measured {measured / 2**20:,.0f} MiB")


if __name__ == "__main__":
    if sys.argv[1] == "--rank":
        _rank(Assignment.model_validate_json(sys.argv[2]))
    else:
        typer.run(main)
