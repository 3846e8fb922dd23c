"""One side in a process of its own: it does steps when it is told to, and says how long they took.

Each line of standard input is a number of steps, each line of the answer JSON. The same weights and the same rows of
tokens come to every side, and both update with the same fused AdamW after clipping.
"""

import importlib
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bench.shapes import SHAPES, Shape, Side
from trainer.checkpoint import save_load
from trainer.config import TrainConfig, load_recipe
from trainer.model.transformer import shapes

RATE = 1e-3
Stepper = Callable[[Tensor], float]


def main(side: Side, shape: Shape) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = load_recipe(
        shape.recipe,
        {
            "batch": str(shape.batch),
            "micro_batch": str(shape.batch),
            "sequence_length": str(shape.length),
        },
    )
    make = stoa if side.startswith("stoa") else transformers
    if side in ("stoa", "transformers-compiled"):
        # A part of the imports, not of the run: PyTorch's compiler.
        importlib.import_module("torch._inductor.compile_fx")
    began = time.perf_counter()
    stepper, imported = make(config, device, side)
    rows = tokens(config, shape, device)
    answer(imported=imported, seconds=time.perf_counter() - began)
    done = 0
    for line in sys.stdin:
        began, losses = time.perf_counter(), []
        for _ in range(int(line)):
            losses.append(stepper(rows[done % len(rows)]))
            done += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
        answer(seconds=time.perf_counter() - began, losses=losses, peak=peak_memory(device))


def stoa(config: TrainConfig, device: torch.device, side: Side) -> tuple[Stepper, int]:
    """This trainer's engine, through the interface that its training loop uses."""
    from trainer.distributed.parallel_dims import ParallelDims
    from trainer.engine.local import LocalEngine

    imported = resident(device)
    if side == "stoa-eager":
        config = config.model_copy(update={"training": config.training.model_copy(update={"compile": False})})
    engine = LocalEngine(config, ParallelDims(0, 1, device))
    engine.load(save_load.fresh(config), 0)
    return lambda rows: engine.step([rows], RATE).loss, imported


def transformers(config: TrainConfig, device: torch.device, side: Side) -> tuple[Stepper, int]:
    """GPTNeoXForCausalLM as its users train it: SDPA, bf16 autocast, fused AdamW, clipping."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    imported = resident(device)
    family = save_load.family(config)
    theirs = GPTNeoXConfig(**family.config_json(end=0), use_cache=False)
    with torch.device(device):
        theirs._attn_implementation = "sdpa"
        model = GPTNeoXForCausalLM(theirs)
    read = save_load.fresh(config)
    exported = {
        # The name in files; transformers 5 has another in memory.
        theirs_name.replace("embed_out", "lm_head"): tensor
        for name in shapes(config.model, config.vocabulary, config.context)
        for theirs_name, tensor in family.export(name, read("weight", name)).items()
    }
    model.load_state_dict(exported)
    del exported
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.optimizer.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=RATE,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
        fused=True,
    )
    if side == "transformers-compiled":
        model.compile()

    def step(rows: Tensor) -> float:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            targets = rows[:, 1:].contiguous()
            loss = model(rows[:, :-1], labels=targets, shift_labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.optimizer.clip)
        optimizer.step()
        return float(loss.detach())

    return step, imported


def tokens(config: TrainConfig, shape: Shape, device: torch.device, steps: int = 32) -> Tensor:
    """Rows of random tokens [steps, batch, length + 1], as frequent as words are: by Zipf's law."""
    uniform = torch.rand(steps, shape.batch, shape.length + 1, generator=torch.Generator().manual_seed(7))
    return (config.vocabulary**uniform - 1).long().to(device)


def resident(device: torch.device) -> int:
    """Bytes resident now; on a GPU, none yet."""
    if device.type == "cuda":
        return 0
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def answer(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], SHAPES[sys.argv[2]])  # type: ignore[arg-type]
