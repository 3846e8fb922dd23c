"""The house's one rule: imports run one way, and what need not know torch does not load it."""

import ast
import subprocess
import sys
from collections.abc import Sequence
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("trainer", "projects", "broker", "bot", "sandbox", "demo", "cli")
MAY_IMPORT = {
    "trainer": set[str](),
    "sandbox": set[str](),
    "projects": set[str](),
    "broker": {"projects", "trainer.config", "trainer.check", "trainer.contract"},
    "bot": {"projects", "broker"},
    "cli": {"projects", "broker", "bot", "demo.play"},
    "demo": {"projects", "broker", "cli.services", "sandbox"},
}


def imported(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it, as `package.module`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
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


LAYERS: dict[str, Sequence[Sequence[str]]] = {
    "broker": (
        ("allocations", "catalogue", "configs", "publications"),
        ("runs",),
        ("publishing", "reviews"),
        ("runners",),
        ("scheduling",),
        ("reports",),
    ),
    "bot": (
        ("plots", "rate_limit", "tables", "text"),
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
"""The parts of a package, lowest first; parts of one layer may import each other."""


@pytest.mark.parametrize("package", LAYERS)
def test_the_layers_of_a_package_import_downwards_only(package: str) -> None:
    height = {part: number for number, layer in enumerate(LAYERS[package]) for part in layer}
    assert {path.stem for path in (ROOT / package).iterdir()} - {"__init__", "__pycache__"} == set(height)
    for path in sorted((ROOT / package).rglob("*.py")):
        own = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        for name in imported(path):
            if name.startswith(f"{package}.") and own != "__init__":
                assert height[name.split(".")[1]] <= height[own], f"{path} imports {name}"


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


@pytest.mark.parametrize(
    "module",
    [
        "cli.main",
        "cli.admin",
        "cli.services",
        "broker.runners.supervisor",
        "broker.scheduling.scheduler",
        "bot.client",
        "trainer.check",
    ],
)
def test_no_torch_is_loaded_where_none_is_needed(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_command_line_imports_its_subcommands_lazily() -> None:
    code = "import sys, cli.main; sys.exit(any(name in sys.modules for name in ('discord', 'celery', 'sqlalchemy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
