"""The file system that a program sees: Python and the libraries, read-only, and an empty folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from puna.evaluate.sandbox.system import (
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    change_root,
    mount,
    restrict_mount,
)

LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
FOLDER = "/tmp"  # the only place to write
FILES = 1024  # at most in it


def interpreter() -> str:
    """The Python that runs programs: this one, but for what a virtual environment adds."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def visible() -> list[Path]:
    """Files and folders of the machine that a program may read; nothing of /home, /root or users.

    The one exception is Python's own libraries, where they lie there.
    """
    prefixes = (sys.base_prefix, sys.base_exec_prefix)
    wanted = {interpreter(), *LIBRARIES, *(f"{prefix}/lib" for prefix in prefixes)}
    found: list[Path] = []
    for path in sorted(map(Path, wanted)):
        inside = any(path.is_relative_to(other) for other in found)
        if (path.exists() or path.is_symlink()) and not inside:
            found.append(path)
    return found


def enter(folder: str, size: int) -> None:
    """Makes the root from an empty folder, in the caller's own mount namespace, and enters it.

    `size` bytes may be written to `FOLDER`. Raises OSError where the system refuses.
    """
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    root = Path(folder)
    for path in visible():
        _show(path, _below(root, path))
    for device in map(Path, DEVICES):
        _bind(device, _below(root, device))
    writable = _below(root, Path(FOLDER))
    writable.mkdir()
    options = f"size={size},nr_inodes={FILES},mode=1777"
    mount("tmpfs", str(writable), "tmpfs", MS_NOSUID | MS_NODEV, options)
    restrict_mount(folder, MS_RDONLY, below=False)
    change_root(folder)


def _show(path: Path, target: Path) -> None:
    if path.is_symlink():  # such as /lib -> usr/lib
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path.readlink())
        return
    _bind(path, target)
    restrict_mount(str(target), MS_RDONLY | MS_NOSUID | MS_NODEV, below=True)


def _bind(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    mount(str(path), str(target), None, MS_BIND | MS_REC)


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")
