"""What imports what: one way through the rooms, and torch only where it is needed."""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "puna"

# Each row may import the rows above it. Rooms of one set are peers and do not know each other.
ROOMS: tuple[set[str], ...] = (
    {"config", "tokenizer", "report"},
    {"chat", "catalog"},
    {"attention", "kernels", "plan"},
    {"model"},
    {"heads", "lora"},
    {"quantize", "data", "hub"},
    {"parallel"},
    {"formats"},
    {"engine"},
    {"train", "evaluate", "serve"},
    {"recipes"},
    {"commands"},
    {"cli"},
    {"__main__"},
    {"__init__"},  # what users import from the package, each from its room when asked for
)
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}


def imported_rooms(source: str, module: str) -> set[str]:
    """The rooms of `puna` that a module's text imports, at its top or inside functions."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            assert node.module is not None
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "puna" and len(part) > 1} & set(RANK)


def test_every_room_has_a_rank() -> None:
    rooms = {path.stem for path in PACKAGE.glob("*.py")}
    rooms |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms <= set(RANK)


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    rank = RANK[room]
    others = imported_rooms(path.read_text(encoding="utf-8"), path.name) - {room}
    wrong = [other for other in others if RANK[other] >= rank]
    assert not wrong, f"{room} must not import {wrong}"


def test_the_parser_sees_every_form_of_import() -> None:
    source = """
import puna.config
from puna.model import Llama
from puna import heads, __version__
import numpy, puna.data.text as text
def later():
    from puna.train.loop import train
"""
    assert imported_rooms(source, "x") == {"config", "model", "heads", "data", "train"}


def test_the_package_itself_imports_nothing() -> None:
    program = """
import sys, puna
assert not [name for name in sys.modules if name.startswith("puna.")]
for name in puna.__all__:
    assert getattr(puna, name)
assert "torch" not in sys.modules
try:
    puna.nonsense
except AttributeError as error:
    assert "nonsense" in str(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_torch_is_not_imported_without_need() -> None:
    modules = ["config", "tokenizer", "chat", "catalog", "quantize.storage", "cli"]
    for room in ("tokenizer", "formats"):
        modules += [f"{room}.{m.name}" for m in pkgutil.iter_modules([str(PACKAGE / room)])]
    modules.remove("formats.network")
    modules += ["serve.stack", "serve.running"]
    program = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module("puna." + name)
    for heavy in ("torch", "transformers", "matplotlib"):
        assert heavy not in sys.modules, f"puna.{{name}} imports {{heavy}}"
import puna.formats.network
assert "torch" in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


# What the first token need not wait for.
SLOW = {"complete": ("rich", "huggingface_hub"), "chat": ("rich", "huggingface_hub")}


@pytest.mark.parametrize(
    "arguments",
    [
        ["complete", "--max-tokens", "4"],
        ["chat", "--max-tokens", "4"],
        ["info", "cria"],
        ["convert", "cria", "OUT", "--format", "gguf", "--dtype", "q8_0"],
        ["quantize", "cria", "OUT", "--to", "q4_k_m"],
        ["plan", "serve", "--model", "70b", "--gpus", "8"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_import_nothing_without_need(arguments: list[str], tmp_path: Path) -> None:
    program = f"""
import sys
from puna.cli import main
sys.argv = ["puna", *{[a.replace("OUT", str(tmp_path / "out.gguf")) for a in arguments]!r}]
try:
    main()
except SystemExit as left:
    assert not left.code, left.code
for heavy in {("torch", *SLOW.get(arguments[0], ()))!r}:
    assert heavy not in sys.modules, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, capture_output=True, text=True, timeout=120, input="Hello!\n",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
