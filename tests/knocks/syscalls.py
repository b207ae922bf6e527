"""An injector of faults below everything: the system's own calls of a child process fail, or kill it, in turn.

Linux hands each call that changes a file (write, fsync, rename, ...) to this process before it is done (seccomp's user
notification), whoever makes it: Python, torch, OpenCV's C files, a process that the child starts. Not seen: writes
through a memory map, and io_uring. Needs Linux 5.5 on x86-64 or arm64, and no compiler and no rights.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import select
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, NoReturn, Optional

# Numbers of each machine's calls; None: it has no such call.
CALLS: dict[str, tuple[Optional[int], Optional[int]]] = {  # x86-64, arm64
    "write": (1, 64), "pwrite64": (18, 68), "writev": (20, 66), "pwritev": (296, 70), "pwritev2": (328, 287),
    "sendfile": (40, 71), "copy_file_range": (326, 285), "ftruncate": (77, 46), "truncate": (76, 45),
    "fallocate": (285, 47), "fsync": (74, 82), "fdatasync": (75, 83), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "unlink": (87, None), "unlinkat": (263, 35), "rmdir": (84, None), "mkdir": (83, None),
    "mkdirat": (258, 34), "link": (86, None), "linkat": (265, 37), "chmod": (90, None), "fchmod": (91, 52),
    "fchmodat": (268, 53), "open": (2, None), "openat": (257, 56),
}  # fmt: skip
# Which argument names the file: of an open one by its number, of others by a path, perhaps from a folder on.
BY_HANDLE = dict.fromkeys(("write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "ftruncate"), 0)
BY_HANDLE.update({"fallocate": 0, "fsync": 0, "fdatasync": 0, "fchmod": 0, "copy_file_range": 2})
BY_PATH: dict[str, tuple[Optional[int], int]] = dict.fromkeys(
    ("truncate", "unlink", "rmdir", "mkdir", "chmod", "open"), (None, 0)
)
BY_PATH.update(dict.fromkeys(("unlinkat", "mkdirat", "fchmodat", "openat"), (0, 1)))
BY_PATH.update({"rename": (None, 1), "link": (None, 1), "renameat": (2, 3), "renameat2": (2, 3), "linkat": (2, 3)})
# What needs room on the disk: these alone fail where it is full.
NEEDS_ROOM = {"write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "copy_file_range", "fallocate"}
NEEDS_ROOM |= {"mkdir", "mkdirat", "open", "openat", "link", "linkat"}

ARCHITECTURES = {"x86_64": (0xC000003E, 0, 317), "aarch64": (0xC00000B7, 1, 277)}  # audit's number, column, seccomp
PR_SET_NO_NEW_PRIVS, SECCOMP_SET_MODE_FILTER, NEW_LISTENER, CONTINUE = 38, 1, 8, 1
NOTIF_RECV, NOTIF_SEND = 0xC0502100, 0xC0182101
REQUEST, ANSWER = struct.Struct("<QIIiIQ6Q"), struct.Struct("<QqiI")
LOAD, JUMP_EQUAL, JUMP_SET, RETURN = 0x20, 0x15, 0x45, 0x06  # of the kernel's filter machine
ALLOW, NOTIFY = 0x7FFF0000, 0x7FC00000
AT_CWD = (1 << 32) - 100
REPEATS = 300  # of writes to one file, one after the other, every so many-th counts: a checkpoint takes thousands


@dataclass(frozen=True)
class Fault:
    """What happens to the calls that change something below a folder: the number-th of them, from 1, or from it on.

    how: "count" nothing; "eio" the one call fails with EIO; "enospc" the one call fails with ENOSPC; "full" it and each
    later one that needs room fails with ENOSPC; "kill" the process is ended by SIGKILL in place of the call.
    """

    folder: Path
    how: str
    number: int = 0


@dataclass
class Seen:
    """What was seen of a child. calls: its calls below the folder, as `write models/best.pt`."""

    calls: list[str] = field(default_factory=list)
    hit: str = ""  # the (first) call that failed; "": there were fewer
    status: int = 0  # as os.waitstatus_to_exitcode gives it


def is_possible() -> bool:
    """Say whether this machine lets a process watch another's calls."""
    if sys.platform != "linux" or platform.machine() not in ARCHITECTURES or struct.calcsize("P") != 8:
        return False
    try:
        return run(lambda: 7, Fault(Path("/nowhere"), "count")).status == 7
    except OSError:
        return False


def run(work: Callable[[], int], fault: Fault) -> Seen:
    """Run `work` in a forked child, whose exit code it gives, with a fault. Raises OSError where that can't be."""
    ours, theirs = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        ours.close()
        _as_child(work, theirs)
    theirs.close()
    seen = Seen()
    try:
        with closing(ours):
            listener = socket.recv_fds(ours, 16, 1)[1][0]
    except IndexError:
        os.waitpid(child, 0)
        raise OSError(errno.ENOSYS, "calls can't be watched here") from None
    try:
        _answer(listener, child, fault, seen)
    finally:
        os.close(listener)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        seen.status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return seen


def _as_child(work: Callable[[], int], parent: socket.socket) -> NoReturn:
    code = 99
    try:
        os.setsid()
        listener = _listen()
        socket.send_fds(parent, [b"x"], [listener])
        os.close(listener)
        parent.close()
        code = work()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 98
    except BaseException as error:  # noqa: BLE001
        sys.stderr.write(f"uncaught {type(error).__name__}: {error}\n")
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _listen() -> int:
    """Have this process's calls told to whoever has the handle that is given. Raises OSError."""
    audit, column, seccomp = ARCHITECTURES[platform.machine()]
    program: list[tuple[int, int, int, int]] = [(LOAD, 0, 0, 4), (JUMP_EQUAL, 1, 0, audit), (RETURN, 0, 0, ALLOW)]
    program.append((LOAD, 0, 0, 0))
    for name, numbers in CALLS.items():
        number = numbers[column]
        if number is None:
            continue
        if name in ("open", "openat"):  # only what may make a file, or empties one
            flags = 24 if name == "open" else 32
            program += [(JUMP_EQUAL, 0, 4, number), (LOAD, 0, 0, flags), (JUMP_SET, 0, 1, os.O_CREAT | os.O_TRUNC)]
            program += [(RETURN, 0, 0, NOTIFY), (RETURN, 0, 0, ALLOW)]
        else:
            program += [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, NOTIFY)]
    program.append((RETURN, 0, 0, ALLOW))
    code = b"".join(struct.pack("<HBBI", *line) for line in program)
    held = ctypes.create_string_buffer(code, len(code))
    pointed = ctypes.create_string_buffer(struct.pack("<H6xQ", len(program), ctypes.addressof(held)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    listener = int(libc.syscall(seccomp, SECCOMP_SET_MODE_FILTER, NEW_LISTENER, pointed))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return listener


def _answer(listener: int, child: int, fault: Fault, seen: Seen) -> None:
    """Let calls be done, or not, until the child has ended."""
    column = ARCHITECTURES[platform.machine()][1]
    names = {numbers[column]: name for name, numbers in CALLS.items() if numbers[column] is not None}
    libc, repeats = ctypes.CDLL(None, use_errno=True), 0
    for request in _requests(libc, listener):
        identity, thread, _, number, _, _, *arguments = REQUEST.unpack(request)
        name, error = names[number], 0
        place = _place(name, thread, arguments, fault.folder)
        call = f"{name} {place}"
        repeats = repeats + 1 if seen.calls and seen.calls[-1] == call else 0
        if place is not None and (repeats % REPEATS == 0 or seen.hit):
            seen.calls.append(call)
            if _is_hit(fault, name, len(seen.calls), bool(seen.hit)):
                seen.hit = seen.hit or seen.calls[-1]
                if fault.how == "kill":
                    os.killpg(child, signal.SIGKILL)
                    return
                error = -errno.EIO if fault.how == "eio" else -errno.ENOSPC
        answer = ctypes.create_string_buffer(ANSWER.pack(identity, 0, error, 0 if error else CONTINUE))
        libc.ioctl(listener, ctypes.c_ulong(NOTIF_SEND), answer)  # fails where a signal ended the call: nothing to do


def _requests(libc: ctypes.CDLL, listener: int) -> Iterator[bytes]:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        events = poll.poll()[0][1]
        if not events & select.POLLIN:  # nobody is left who could ask
            return
        request = ctypes.create_string_buffer(REQUEST.size)
        if libc.ioctl(listener, ctypes.c_ulong(NOTIF_RECV), request) == 0:
            yield request.raw[: REQUEST.size]


def _is_hit(fault: Fault, name: str, number: int, was_hit: bool) -> bool:
    if fault.how == "count" or number < fault.number:
        return False
    if fault.how == "full":
        return name in NEEDS_ROOM
    return number == fault.number


def _place(name: str, thread: int, arguments: list[int], folder: Path) -> Optional[str]:
    """Give the path that a call changes, from the folder on; None for what lies elsewhere."""
    try:
        if name in BY_HANDLE:
            path = _of_handle(thread, arguments[BY_HANDLE[name]])
        else:
            at, where = BY_PATH[name]
            path = _text(thread, arguments[where])
            if not path.startswith("/"):
                base = AT_CWD if at is None else arguments[at] & ((1 << 32) - 1)
                path = f"{os.readlink(f'/proc/{thread}/cwd') if base == AT_CWD else _of_handle(thread, base)}/{path}"  # noqa: PTH115
    except OSError:
        return None
    above = f"{folder}/"
    return path[len(above) :] if path.startswith(above) else "." if path == str(folder) else None


def _of_handle(thread: int, handle: int) -> str:
    return os.readlink(f"/proc/{thread}/fd/{handle}")  # noqa: PTH115  # a Path would change what the kernel says


def _text(thread: int, address: int) -> str:
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:  # noqa: PTH123
        memory.seek(address)
        content = memory.read(1 << 12 if (address & 0xFFF) == 0 else 0x1000 - (address & 0xFFF))
        if b"\0" not in content:
            content += memory.read(1 << 12)
    return os.fsdecode(content.split(b"\0")[0])
