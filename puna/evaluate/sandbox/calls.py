"""Which calls of the kernel a program may not make: a filter for seccomp, made from one table.

Denied is what makes memory that no limit counts (memfd, System V), what looks into or signals the
processes that watch, new namespaces and mounts, and what ordinary programs never need and holes
were found in. The rest of the kernel is open; the namespaces and limits bound it.
"""

from __future__ import annotations

import errno
import platform
import struct

from puna.evaluate.sandbox.system import NEW_NAMESPACES, TIME_NAMESPACE

# Call -> its number on each machine (asm/unistd_64.h, asm-generic/unistd.h).
MACHINES = ("x86_64", "aarch64")
DENIED = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
}
CLONE, CLONE3 = (56, 220), (435, 435)
SIGNALS = {"kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131)}
_ARCHITECTURES = (0xC000003E, 0xC00000B7)  # linux/audit.h
_X32 = 0x40000000  # calls of another set, on x86-64

# linux/bpf_common.h, linux/seccomp.h; offsets in struct seccomp_data
_LOAD, _IF_EQUAL, _IF_LEAST, _IF_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000

Line = tuple[int, int, int, int]  # code, lines to skip if so, if not, value


def call_filter(machine: str | None = None) -> bytes:
    """The filter for a machine (this one); ValueError for one that is not in the table."""
    machine = machine or platform.machine()
    if machine not in MACHINES:
        raise ValueError(f"no table of calls for {machine!r} (there are {', '.join(MACHINES)})")
    at = MACHINES.index(machine)
    spaces = sum(NEW_NAMESPACES.values()) | TIME_NAMESPACE
    lines: list[Line] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, _ARCHITECTURES[at]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_IF_LEAST, 0, 1, _X32),
        _error(errno.EPERM),
        (_IF_EQUAL, 0, 1, CLONE3[at]),  # its flags lie in memory: libraries then take clone
        _error(errno.ENOSYS),
    ]
    for numbers in DENIED.values():
        lines += [(_IF_EQUAL, 0, 1, numbers[at]), _error(errno.EPERM)]
    lines += _first_argument(CLONE[at], [(_IF_BITS, 0, 1, spaces)])
    for numbers in SIGNALS.values():  # to the first process, which watches, or to all
        lines += _first_argument(numbers[at], [(_IF_EQUAL, 1, 0, 1), (_IF_EQUAL, 0, 1, 0xFFFFFFFF)])
    lines.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def _first_argument(call: int, refused: list[Line]) -> list[Line]:
    """A call that is refused where its first argument is such, else allowed."""
    body = [(_LOAD, 0, 0, _FIRST_ARGUMENT), *refused, _error(errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    return [(_IF_EQUAL, 0, len(body), call), *body]


def _error(number: int) -> Line:
    return (_RETURN, 0, 0, _ERROR | number)
