"""The house's one rule: imports run one way, and what need not know torch does not load it."""

import ast
import subprocess
import sys
from collections.abc import Sequence
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


LAYERS = (
    ("runners",),
    ("allocations", "catalogue", "configs", "publications"),
    ("runs",),
    ("publishing", "reviews"),
    ("runners.supervisor", "runners.output", "runners.reaper"),
    ("scheduling",),
    ("reports",),
)
"""The parts of the broker, lowest first; parts of one layer may import each other.

A runner knows nothing of the broker; what follows an attempt through a runner and the database lies higher.
"""


def height(module: str) -> int:
    """The layer of a module, such as `broker.runs.attempts`, by the longest name that a layer has of it."""
    heights = {part: number for number, layer in enumerate(LAYERS) for part in layer}
    parts = module.split(".")[1:]
    return next(heights[name] for end in (2, 1) if (name := ".".join(parts[:end])) in heights)


def test_the_brokers_layers_import_downwards_only() -> None:
    known = {part.partition(".")[0] for layer in LAYERS for part in layer}
    assert {path.stem for path in (ROOT / "broker").iterdir()} - {"__init__", "__pycache__"} == known
    for path in sorted((ROOT / "broker").rglob("*.py")):
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for name in imported(path):
            if name.startswith("broker.") and own != "broker.__init__":
                assert height(name) <= height(own), f"{path} imports {name}"


@pytest.mark.parametrize(("lower", "higher"), [("cards", ("delivery", "commands")), ("delivery", ("commands",))])
def test_within_the_bot_commands_stand_on_delivery_and_delivery_on_cards(lower: str, higher: Sequence[str]) -> None:
    files = sorted((ROOT / "bot" / lower).rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            assert not any(name.startswith(f"bot.{package}.") for package in higher), f"{path} imports {name}"


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
