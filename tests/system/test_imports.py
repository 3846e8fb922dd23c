"""The house's one rule: imports run one way, and what need not know torch does not load it."""

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("trainer", "projects", "broker", "bot", "sandbox", "demo", "parts", "doctor", "keeping", "operating", "stoa")
MAY_IMPORT = {
    "trainer": set[str](),
    "sandbox": set[str](),
    "projects": set[str](),
    "broker": {"projects", "trainer.config", "trainer.check"},
    "bot": {"projects", "broker"},
    "parts": {"projects", "broker"},
    "doctor": {"projects", "broker", "bot"},
    "keeping": {"projects", "broker"},
    "operating": {"projects", "broker"},
    "demo": {"projects", "broker", "parts", "sandbox"},
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
    files = [ROOT / f"{package}.py"] if (ROOT / f"{package}.py").exists() else sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            if name.partition(".")[0] in OURS:
                assert any(f"{name}.".startswith(f"{door}.") for door in allowed), f"{path} imports {name}"


@pytest.mark.parametrize(("lower", "higher"), [("cards", ("delivery", "commands")), ("delivery", ("commands",))])
def test_within_the_bot_commands_stand_on_delivery_and_delivery_on_cards(lower: str, higher: Sequence[str]) -> None:
    files = sorted((ROOT / "bot" / lower).glob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            assert not any(name.startswith(f"bot.{package}.") for package in higher), f"{path} imports {name}"


@pytest.mark.parametrize(
    "module", ["stoa", "operating", "parts", "broker.supervisor", "broker.scheduler", "bot.client", "trainer.check"]
)
def test_no_torch_is_loaded_where_none_is_needed(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_command_line_imports_its_subcommands_lazily() -> None:
    code = "import sys, stoa; sys.exit(any(name in sys.modules for name in ('discord', 'celery', 'sqlalchemy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
