"""A Python in which another program stands before the trainer: `python -m trainer` is that program.

For runs that need not train, or not as the trainer does; what starts and follows them is all Stoa's own.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The rest of the package is the real trainer's: the broker imports its contract and its schema.
REST = f"__path__.append({str(ROOT / 'trainer')!r})\n"


def python_with_trainer(home: Path, program: str) -> Path:
    """A Python in a folder below `home`, whose trainer is this program's text."""
    package = home / "standin" / "trainer"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text(REST)
    (package / "__main__.py").write_text(program)
    return python_with(home / "python", package.parent)


def python_with(folder: Path, standin: Path) -> Path:
    """A virtual environment like this one, in which the packages in the folder `standin` come before Stoa's own."""
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True, exist_ok=True)
    (folder / "bin").mkdir(exist_ok=True)
    python = folder / "bin" / "python"
    if not python.is_symlink():
        python.symlink_to(Path(sys.executable).resolve())
    (folder / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n")
    ours = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    added = "; ".join(f"site.addsitedir({path!r})" for path in ours)
    (packages / "standin.pth").write_text(f"{standin}\n{ROOT}\nimport site; {added}\n")
    return python


def skew(python: Path, seconds: float) -> None:
    """Let all processes of this Python, which `python_with` has made, see a clock that is so many seconds ahead."""
    [packages] = (python.parents[1] / "lib").glob("*/site-packages")
    clock = (ROOT / "tests" / "wrong_clock.py").read_text()
    (packages / "wrong_clock.py").write_text(f"{clock}SECONDS = {seconds}\n")
    (packages / "a_wrong_clock.pth").write_text("import wrong_clock\n")  # before all that imports the time
