"""Somebody's program in a git repository: one that does well, and much that a program must not do."""

import os
import subprocess
from pathlib import Path
from typing import Any

CODE = r"""
import json, os, socket, struct, sys, time
from pathlib import Path

how, checkpoint, *others = sys.argv[1:]
out = Path(os.environ["OUT"])
print("it begins", flush=True)
if how == "well":
    print("variables:", *sorted(os.environ))
    print("checkpoint:", *sorted(os.listdir(checkpoint)), *map(os.path.basename, others))
    for path in ("/tmp/evil", Path.cwd() / "evil", out.parent / "evil", Path(checkpoint) / "evil"):
        try:
            open(path, "w")
            print("wrote", path)
        except OSError as error:
            print("not written:", error.strerror)
    beside = Path(checkpoint).parent
    if (beside / "secret").exists():
        print("secrets:", repr((beside / "secret").read_text()), os.listdir(beside / "secrets"))
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=5)
    except OSError as error:
        print("no network:", error.strerror)
    with (out / "metrics.jsonl").open("w") as file:
        for step in range(1, 2001):
            file.write(json.dumps({"step": step, "loss": 1 / step, "name": "x", "nan": float("nan")}) + "\n")
        file.write("no line\n")
    results = {"explained": 0.25, "note": "fine", **{f"n{n}": n for n in range(50)}}
    (out / "results.json").write_text(json.dumps(results))
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR"
    for name, side in (("a", 100), ("b", 30_000), ("c", 50), ("d", 0)):
        (out / f"{name}.png").write_bytes(header + struct.pack(">II", side, side))
    (out / "e.png").symlink_to("/etc/passwd")
    (out / "f.png").write_text("no picture")
elif how == "forever":
    time.sleep(10**6)
elif how == "disk":
    for number in range(10**6):
        (out / str(number)).write_bytes(b"x" * 10**6)
elif how == "file":
    with (out / "large").open("wb") as file:
        while True:
            file.write(b"x" * 10**6)
elif how == "prints":
    for number in range(3000):
        print(f"{number:06}" * 1666, flush=True)
elif how == "forks":
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            (out / "forked").touch()
            time.sleep(10**6)
        os._exit(0)
    os.wait()
    while not (out / "forked").exists():
        time.sleep(0.01)
elif how == "many":
    for _ in range(1100):
        if os.fork() == 0:
            break
    time.sleep(10**6)
elif how == "fails":
    sys.exit("it does not work")
"""
PROJECT = """\
[project]
name = "tiny"
version = "1"
requires-python = ">=3.11"
"""
LOCK = """\
version = 1
revision = 3
requires-python = ">=3.11"

[[package]]
name = "tiny"
version = "1"
source = { virtual = "." }
"""
WAYS = ["well", "forever", "disk", "file", "prints", "forks", "many", "fails"]


def program(folder: Path) -> dict[str, Any]:
    """A repository in the folder with such a program at its commit, and the description of it."""
    folder.mkdir(parents=True)
    (folder / "main.py").write_text(CODE)
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "uv.lock").write_text(LOCK)
    return {
        "repository": f"file://{folder}",
        "commit": committed(folder),
        "command": ["python", "main.py", "{how}", "{checkpoint}"],
        "parameters": {"how": {"type": "choice", "default": "well", "choices": WAYS}},
        "time_limit": "5m",
        "disk_gib": 0.02,
    }


def committed(folder: Path) -> str:
    """Make a repository of what a folder holds; its commit."""
    author = ["-c", "user.name=Noor", "-c", "user.email=noor@example.org"]
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "It begins"]):
        subprocess.run(["git", "-C", folder, *words], check=True, env=dict(os.environ))
    commit = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return commit.stdout.strip()
