"""Compiles the native code into the package; without a compiler Puna is installed as it is."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeCode(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        compiling = _load(Path(self.root) / "puna" / "kernels" / "compiling.py")
        problems = compiling.compile_libraries()
        for problem in problems:
            self.app.display_warning(f"native code was not compiled: {problem}")
        if len(problems) == len(compiling.levels()):
            self.app.display_warning("Puna will quantize with numpy, many times slower")
            return
        build_data["artifacts"].append("puna/kernels/*.so")
        build_data["pure_python"] = False
        # Any Python 3: the libraries are loaded with ctypes.
        system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{system}"


def _load(path: Path) -> ModuleType:
    """A module of the package, which is not installed yet."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
