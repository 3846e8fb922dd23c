"""The house's one rule: imports run one way, and what need not know torch does not load it."""

import ast
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("trainer", "projects", "broker", "bot", "web", "sandbox", "demo", "cli")
MAY_IMPORT = {
    "trainer": set[str](),
    "sandbox": set[str](),
    "projects": set[str](),
    "broker": {
        "projects",
        "trainer.check",
        "trainer.config",
        "trainer.contract",
        "trainer.evaluation.task_names",
        "trainer.gpus",
        "trainer.programs.entry",
        "trainer.schema",
        "trainer.study.pairs",
        "trainer.study.registry",
    },
    "bot": {"projects", "broker", "trainer.contract"},
    "web": {"projects", "broker", "trainer.contract"},
    "cli": {"projects", "broker", "bot", "web", "demo.play", "trainer.contract"},
    "demo": {"projects", "broker", "cli.services", "sandbox"},
}


@cache
def nodes(path: Path) -> Sequence[ast.AST]:
    """What a file consists of."""
    return [*ast.walk(ast.parse(path.read_text()))]


@cache
def imported(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it, as `package.module`."""
    names: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package: str) -> None:
    allowed = MAY_IMPORT[package] | {package}
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            if name.partition(".")[0] in OURS:
                assert any(f"{name}.".startswith(f"{door}.") for door in allowed), f"{path} imports {name}"


NEED_NO_TORCH = (
    "cli.main",
    "cli.admin",
    "cli.services",
    "broker.runners.supervisor",
    "broker.scheduling.scheduler",
    "bot.client",
    "trainer.check",
    "trainer.study.commands",
)
LAYERS: dict[str, Sequence[Sequence[str]]] = {
    "projects": (
        ("cleaning", "errors", "health", "log", "parse", "settings", "text"),
        ("db",),
        ("people",),
        ("projects",),
        ("rights",),
        ("record",),
        ("policies",),
        ("quotas",),
        ("lifecycle",),
        ("bans", "findings", "membership", "moderation", "notify", "updates"),
    ),
    "broker": (
        ("end_reasons", "fence", "lab_store", "store"),
        ("corpus_copies", "pieces"),
        ("runners",),
        ("allocations", "catalogue", "configs", "publications"),
        ("runs",),
        ("plots",),
        ("publishing", "reviews"),
        (
            "runners.carrier",
            "runners.elsewhere",
            "runners.lost_attempts",
            "runners.outage",
            "runners.output",
            "runners.reaper",
            "runners.spawning",
            "runners.staging",
            "runners.supervisor",
            "runners.trainer_command",
        ),
        ("scheduling",),
        ("reports",),
    ),
    "bot": (
        ("kept_forms", "mention", "rate_limit", "renderer", "tables", "text", "turns"),
        ("server",),
        ("app",),
        ("errors",),
        ("buttons",),
        ("cards",),
        ("delivery",),
        ("commands",),
        ("client",),
    ),
}
"""The parts of a package, lowest first; parts of one layer may import each other.

A runner knows nothing of the rest of the broker; what follows an attempt through a runner and the database lies higher.
"""


def height(name: str) -> int:
    """The layer of a module, or of a name in it, such as `broker.runs.attempts`."""
    package, *parts = name.split(".")
    heights = {part: number for number, layer in enumerate(LAYERS[package]) for part in layer}
    return heights.get(".".join(parts[:2]), heights.get(parts[0], -1))


@pytest.mark.parametrize("package", LAYERS)
def test_the_layers_of_a_package_import_downwards_only(package: str) -> None:
    known = {part.partition(".")[0] for layer in LAYERS[package] for part in layer}
    assert {path.stem for path in (ROOT / package).iterdir()} - {"__init__", "__pycache__"} == known
    for path in sorted((ROOT / package).rglob("*.py")):
        for name in imported(path):
            if name.startswith(f"{package}.") and module(path) != package:
                assert height(name) <= height(module(path)), f"{path} imports {name}"


@pytest.mark.parametrize("runner", ["slurm", "kubernetes"])
def test_a_runner_is_known_to_its_own_files_alone(runner: str) -> None:
    """What a module says in a docstring or a comment binds nothing; the registry has the one line that names it."""
    folder = ROOT / "broker" / "runners"
    knows = {*folder.glob(f"{runner}*.py"), folder / "registry.py"}
    files = {path for package in ("bot", "broker", "cli", "projects") for path in (ROOT / package).rglob("*.py")}
    for path in sorted(file for file in files - knows if "migrations" not in file.parts):
        words = named(path)
        assert not [word for word in words if runner in word.lower()], path


@cache
def named(path: Path) -> set[str]:
    """The names and texts in a file's code: identifiers, imports and string constants, but no docstrings."""
    found: set[str] = set()
    said = {node.value for node in nodes(path) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}
    for node in nodes(path):
        if node in said:
            continue
        for field in ("id", "attr", "arg", "name", "asname", "module", "value"):
            if isinstance(word := getattr(node, field, None), str):
                found.add(word)
    return found


@pytest.mark.parametrize("package", OURS)
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    files = {module(path): path for path in sorted((ROOT / package).rglob("*.py"))}
    graph = {
        own: {name if name in files else name.rpartition(".")[0] for name in imported(path)} & files.keys()
        for own, path in files.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_no_torch_is_loaded_where_none_is_needed() -> None:
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name"
    )
    subprocess.run([sys.executable, "-c", code, *NEED_NO_TORCH], check=True)


def test_the_command_line_imports_its_subcommands_lazily() -> None:
    code = "import sys, cli.main; sys.exit(any(name in sys.modules for name in ('discord', 'celery', 'sqlalchemy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
