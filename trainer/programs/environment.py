"""The environment of a program: a checkout of its commit and what its lock names, made once and kept by hash.

`uv` makes it from wheels alone, so that nothing of a package runs before the program does, and each file is held
against the hash that the lock has of it. Imports no torch.
"""

import fcntl
import fnmatch
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.exits import FailedError
from trainer.files import write_atomically
from trainer.programs.entry import Program

READY_FILE = "ready.json"
"""In the folder of an environment that is whole."""
MADE_IN_SECONDS = 3600
PASSED_ON = (
    "PATH",
    "LANG",
    "GIT_SSL_CAINFO",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_FIND_LINKS",
)
"""What git and uv are given of the environment, to reach the repository and the index of packages."""


@dataclass(frozen=True)
class Base:
    """What programs build on: an interpreter, and patterns of the packages that it `provides` in place of the lock's,
    such as a PyTorch for the host's GPUs."""

    python: str = sys.executable
    provides: Sequence[str] = ()

    def gives(self, package: str) -> bool:
        """Whether the interpreter has a package in place of the lock's."""
        return any(fnmatch.fnmatch(package.lower(), pattern.lower()) for pattern in self.provides)


@dataclass(frozen=True)
class Environment:
    """The `source` of a program and the `python` that has its packages, in a folder of their own."""

    folder: Path

    @property
    def source(self) -> Path:
        return self.folder / "source"

    @property
    def bin(self) -> Path:
        return self.folder / "environment" / "bin"

    @property
    def python(self) -> Path:
        return self.bin / "python"


def key(program: Program, base: Base) -> str:
    """The name of the folder of a program's environment: a hash of all that decides what is in it."""
    decides = [program.repository, program.commit, program.lock, base.python, *sorted(base.provides)]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]


def prepare(program: Program, base: Base, root: Path) -> Environment:
    """The environment below `root`; it is made where it is not there, once where several ask at the same time.

    Raises FailedError with a sentence, and OSError.
    """
    root.mkdir(parents=True, exist_ok=True)
    folder = root / key(program, base)
    found = Environment(folder)
    with (root / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / READY_FILE).exists():
            # A virtual environment names its own path, so it is made in its place; READY_FILE says that it is whole.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            _check_out(program, found)
            packages = _install(program, base, found, root / "uv-cache")
            write_atomically(folder / READY_FILE, json.dumps({"program": program.model_dump(), "packages": packages}))
    return found


def _check_out(program: Program, made: Environment) -> None:
    git = ["git", "-C", str(made.source), "-c", "protocol.ext.allow=never", "-c", "core.hooksPath=/dev/null"]
    made.source.mkdir()
    _do([*git, "init", "-q"], "git cannot be used")
    fetch = [*git, "fetch", "-q", "--depth", "1", program.repository, program.commit]
    _do(fetch, f"commit {program.commit[:12]} of {program.repository} cannot be fetched")
    _do([*git, "checkout", "-q", "--detach", program.commit], f"commit {program.commit[:12]} cannot be checked out")


def _install(program: Program, base: Base, made: Environment, cache: Path) -> list[str]:
    """Install what the lock names, but for what the base gives; returns the requirements."""
    lock = made.source / program.lock
    if not lock.is_file() or lock.is_symlink():
        raise FailedError(f"The repository has no {program.lock} at commit {program.commit[:12]}.")
    uv = [sys.executable, "-m", "uv", "--cache-dir", str(cache), "--no-progress", "--no-python-downloads"]
    if lock.suffix == ".lock":
        export = [*uv, "export", "-q", "--frozen", "--no-dev", "--no-emit-project", "--no-header", "--no-annotate"]
        text = _do([*export, "--project", str(lock.parent), "--python", base.python], f"{program.lock} cannot be read")
    else:
        text = lock.read_text(errors="replace")
    wanted = requirements(text, base)
    listed = made.folder / "requirements.txt"
    listed.write_text("".join(f"{line}\n" for line in wanted))
    _do([*uv, "venv", "-q", "--python", base.python, str(made.bin.parent)], "its environment cannot be made")
    if wanted:
        install = [*uv, "pip", "install", "-q", "--no-deps", "--no-build", "--require-hashes"]
        _do(
            [*install, "--python", str(made.python), "-r", str(listed)],
            f"what {program.lock} names cannot be installed",
        )
    if base.provides:
        _let_see(base, made)
    return wanted


def requirements(text: str, base: Base) -> list[str]:
    """The requirements of a text, a line each, without those that the base gives.

    Raises FailedError for one without a hash, which nothing could be held against.
    """
    wanted = []
    for line in re.sub(r"\\\s*\n", " ", text).splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        name = re.match(r"[A-Za-z0-9][\w.-]*", line, re.ASCII)
        if not line or (name is not None and base.gives(name[0])):
            continue
        if name is None or "--hash=" not in line:
            raise FailedError(f"The lock has a requirement without a hash, {line[:80]!r}; lock it with uv.")
        wanted.append(" ".join(line.split()))
    return wanted


def _let_see(base: Base, made: Environment) -> None:
    """Let the environment see what the base's interpreter has installed, after its own packages."""
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    theirs = _do([base.python, "-I", "-c", ask], "the interpreter that programs build on cannot be used").strip()
    own = _do([str(made.python), "-I", "-c", ask], "its environment cannot be used").strip()
    (Path(own) / "zz_base.pth").write_text(f"{theirs}\n")


def _do(command: Sequence[str], wrong: str) -> str:
    """The output of a command. Raises FailedError, which begins with what is `wrong`, where it fails."""
    environment: Mapping[str, str] = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    alone = {"HOME": "/nonexistent", "GIT_TERMINAL_PROMPT": "0", "UV_SYSTEM_CERTS": "1"}
    try:
        done = subprocess.run(
            command,
            env={**environment, **alone},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=MADE_IN_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise FailedError(f"The program cannot be prepared: {command[0]} is not installed here.") from error
    except subprocess.TimeoutExpired as error:
        raise FailedError(f"The program cannot be prepared: {wrong} within {MADE_IN_SECONDS // 60} minutes.") from error
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        said = next((line for line in lines if line.startswith(("error:", "fatal:"))), lines[-1] if lines else "")
        causes = [line for line in lines if line.startswith(("Caused by:", "╰─▶"))]
        raise FailedError(f"The program cannot be prepared: {wrong} ({' '.join([said, *causes[-1:]])[:300]}).")
    return done.stdout
