"""The calls of Linux that Python 3.11 has no function for, through ctypes. Raise OSError."""

from __future__ import annotations

import ctypes
import errno
import os

# linux/sched.h
NEW_NAMESPACES = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "names": 0x04000000,  # host name
    "ipc": 0x08000000,
    "user": 0x10000000,
    "process": 0x20000000,
    "network": 0x40000000,
}
TIME_NAMESPACE = 0x00000080

# sys/mount.h
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2

# linux/mount.h; the number of mount_setattr is the same on all machines
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000

# linux/prctl.h
_PDEATHSIG, _SET_DUMPABLE, _SET_SECCOMP, _CAPBSET_DROP, _NO_NEW_PRIVS = 1, 4, 22, 24, 38
_SECCOMP_MODE_FILTER = 2
_LAST_CAPABILITY = 63
_CAPABILITY_VERSION = 0x20080522


def unshare(flags: int) -> None:
    """Gives the caller new namespaces; the one of processes holds its children only."""
    _check(_libc().unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    done = _libc().mount(
        source.encode(), target.encode(), kind and kind.encode(), flags, options.encode() or None
    )
    _check(done, f"mount {target}")


def restrict_mount(target: str, flags: int, *, below: bool) -> None:
    """Adds MS_RDONLY, NOSUID or NODEV (whose bits are the same here) to a mount. Linux 5.12."""

    class Attributes(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]

    attributes = Attributes(set=flags)
    done = _libc().syscall(
        _MOUNT_SETATTR,
        _AT_FDCWD,
        ctypes.c_char_p(target.encode()),
        _AT_RECURSIVE if below else 0,
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    _check(done, f"mount_setattr {target}")


def change_root(folder: str) -> None:
    """Makes a mounted folder the root; of the old one nothing can be reached afterwards."""
    os.chdir(folder)
    _check(_libc().pivot_root(b".", b"."), "pivot_root")
    _check(_libc().umount2(b".", MNT_DETACH), "umount2")
    os.chdir("/")


def die_with_parent() -> None:
    """Asks for SIGKILL when the parent ends."""
    _prctl(_PDEATHSIG, 9)


def hide_memory() -> None:
    """No process of the same user may look into this one."""
    _prctl(_SET_DUMPABLE, 0)


def bar_privileges() -> None:
    """Nothing that is executed from here on may give rights that the caller has not, or drops."""
    for capability in range(_LAST_CAPABILITY + 1):
        if _libc().prctl(_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            if ctypes.get_errno() != errno.EINVAL:  # the kernel knows no more of them
                _check(-1, "prctl of capabilities")
            break
    _prctl(_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Gives up all rights of a root."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    _check(_libc().capset(header, (ctypes.c_uint32 * 6)()), "capset")


def filter_calls(instructions: bytes) -> None:
    """Holds the caller and all that come of it to a program of seccomp (8 bytes a line)."""

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("lines", ctypes.c_char_p)]

    program = Program(len(instructions) // 8, instructions)
    _prctl(_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int, more: object = 0) -> None:
    _check(_libc().prctl(option, value, more, 0, 0), f"prctl {option}")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
