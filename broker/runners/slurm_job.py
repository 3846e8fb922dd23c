"""What a job of the runner `slurm` asks Slurm for, and its batch script, from the settings of its pool."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from broker.runners.base import JobSpec, PoolOption
from trainer.contract import Status

SIGNAL_EARLY_SECONDS = 60  # “the signal may be sent up to 60 seconds earlier than specified” (man sbatch)
FIRST_PORT, PORTS = 10_000, 20_000
"""The ports at which the nodes of a job meet, by the job's number; below those that Linux gives to connections."""
_FORBIDDEN = (
    r"(?!(?i:STOA_|SLURM_|SBATCH_|SRUN_|CUDA_VISIBLE_DEVICES=|PATH=|HOME=|\w*"
    r"(TOKEN(?!IZERS)|SECRET|PASSWORD|PASSWD|CREDENTIAL|(API|ACCESS|PRIVATE)_?KEY)))"
)
_VARIABLE = rf"{_FORBIDDEN}[A-Za-z_]\w*=[!-~]*"
_NAME = r"[\w.-]*"
_PATHS = r"(/[\w./+@%-]+(,/[\w./+@%-]+)*)?"
OPTIONS = (
    PoolOption(
        "partition",
        help="Slurm's partition; Slurm's own default otherwise.",
        pattern=_NAME,
        refusal="A Slurm partition's name has letters, digits and “._-” only.",
    ),
    PoolOption(
        "gres",
        help="What Slurm calls these GPUs: gpu, gpu:h200; empty asks for none.",
        pattern=r"([\w.-]+(:[\w.-]+)?)?",
        refusal="A Slurm GRES is a name, or name:type, such as gpu or gpu:h200.",
        default="gpu",
    ),
    PoolOption(
        "account",
        help="Slurm's account that the jobs are charged to.",
        pattern=_NAME,
        refusal="A Slurm account's name has letters, digits and “._-” only.",
    ),
    PoolOption(
        "qos",
        help="Slurm's quality of service.",
        pattern=_NAME,
        refusal="A Slurm QOS's name has letters, digits and “._-” only.",
    ),
    PoolOption(
        "constraint",
        help="Features that Slurm's nodes must have, such as h200&nvlink.",
        pattern=r"[\w.,:=&|*()\[\]-]*",
        refusal="A Slurm constraint is names of features joined by & or |, such as h200&nvlink, without spaces.",
    ),
    PoolOption(
        "modules",
        help="Environment modules to load, with spaces between.",
        pattern=r"([\w.+/-]+( [\w.+/-]+)*)?",
        refusal="Modules are names with one space between, such as “cuda/12.8 gcc/13”.",
    ),
    PoolOption(
        "environment",
        help="More variables for the trainers: NAME=value, with spaces between. No secrets: every job shows them.",
        pattern=rf"({_VARIABLE}( {_VARIABLE})*)?",
        refusal=(
            "The environment is NAME=value with one space between, such as “NCCL_DEBUG=WARN”, without variables that "
            "Stoa or Slurm sets, and without secrets: every job shows it."
        ),
    ),
    PoolOption(
        "prolog",
        help="Lines of sh that a job runs before its trainers, on its first node.",
        pattern=r"[\t\n -~]{0,4000}",
        refusal="The prolog is up to 4,000 characters of sh in ASCII.",
    ),
    PoolOption(
        "container_image",
        help="An image of Apptainer's that the trainers run in: a .sif file, or docker://….",
        pattern=r"((/|docker://|oras://|library://)[\w./:@+-]+)?",
        refusal="A container image is a path from /, or begins with docker://, oras:// or library://.",
    ),
    PoolOption(
        "container_binds",
        help="Folders that the container sees beside STOA_HOME, with commas between.",
        pattern=_PATHS,
        refusal="The container's folders are paths from /, with commas between and no spaces.",
    ),
    PoolOption(
        "slurm_conf",
        help="The slurm.conf of the cluster, where it is not that of the worker's SLURM_CONF.",
        pattern=r"(/[\w./+@%-]+)?",
        refusal="The slurm.conf is a path from /, without spaces.",
    ),
)


def sbatch_options(spec: JobSpec) -> list[str]:
    """What a job asks Slurm for. The end of Slurm's time asks for a checkpoint too, in case no supervisor is left."""
    minutes = math.ceil((spec.seconds + spec.grace_seconds + SIGNAL_EARLY_SECONDS) / 60)
    asked = [f"--nodes={spec.nodes}", "--ntasks-per-node=1", f"--cpus-per-task={spec.node_gpus}", f"--time={minutes}"]
    asked.append(f"--signal=B:TERM@{math.ceil(spec.grace_seconds)}")
    named = ("partition", "account", "qos", "constraint")
    asked += [f"--{name}={spec.options[name]}" for name in named if spec.options.get(name)]
    if gres := spec.options.get("gres", "gpu"):
        asked.append(f"--gres={gres}:{spec.node_gpus}")
    return asked


def script(spec: JobSpec, command: Sequence[str], home: Path) -> str:
    """The batch script, which runs on the first node: what the pool's settings prepare, and then the trainers.

    One trainer takes the script's place. Several nodes have one each, which is a task of one step: a signal reaches the
    script alone, which hands it on to the trainers, since Slurm itself would kill them all. The script ends when they
    have, and with their status. After the first trainer's end, the others have their time to stop.
    """
    trainer = shlex.join(_contained(spec.options, command, home))
    before = "\n".join(["#!/bin/sh", *_prepared(spec.options)])
    if spec.nodes == 1:
        return f"{before}\nexec {trainer}\n"
    own = " ".join(spec.node_options('"$SLURM_NODEID"', '"$0"'))
    srun = ["srun", "--mpi=none", "--kill-on-bad-exit=0", f"--wait={math.ceil(spec.grace_seconds)}"]
    srun += [f"--cpus-per-task={spec.node_gpus}", "sh", "-c", f"exec {trainer} {own}"]
    return f"""{before}
head=$(scontrol show node -o "$SLURMD_NODENAME" | sed -n 's/.* NodeAddr=\\([^ ]*\\) .*/\\1/p')
port=$(({FIRST_PORT} + SLURM_JOB_ID % {PORTS}))
stop() {{
    until scancel --signal=TERM "$SLURM_JOB_ID.0" 2>/dev/null; do
        kill -0 $trainers 2>/dev/null || return
        sleep 1
    done
}}
trap 'exit {Status.STOPPED.value}' TERM
{shlex.join(srun)} "${{head:-$SLURMD_NODENAME}}:$port" &
trainers=$!
trap stop TERM
wait $trainers
status=$?
while kill -0 $trainers 2>/dev/null; do
    wait $trainers
    status=$?
done
exit $status
"""


def _prepared(options: Mapping[str, str]) -> list[str]:
    """The lines of the script before the trainers: modules, variables, and the pool's own lines."""
    lines = []
    if modules := options.get("modules"):
        lines.append("command -v module >/dev/null || . /etc/profile")
        told = f"echo {shlex.quote(f'The modules of the pool ({modules}) could not be loaded.')} >&2"
        lines.append(f"module load {shlex.join(modules.split())} || {{ {told}; exit {Status.CONFIG.value}; }}")
    for variable in options.get("environment", "").split():
        name, _, value = variable.partition("=")
        lines.append(f"export {name}={shlex.quote(value)}")
    return lines + options.get("prolog", "").splitlines()


def _contained(options: Mapping[str, str], command: Sequence[str], home: Path) -> list[str]:
    """The command in the pool's container, where it has one, with the image's own Python."""
    image = options.get("container_image")
    if not image:
        return list(command)
    seen = [str(home), *filter(None, options.get("container_binds", "").split(","))]
    return ["apptainer", "exec", "--nv", *(f"--bind={path}" for path in seen), image, "python", *command[1:]]
