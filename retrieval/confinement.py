"""What a process that parses foreign files may no longer do: anything but compute, read its libraries, and answer.

    memory      RLIMIT_AS; no core dump, which would hold documents
    files       RLIMIT_FSIZE 0, and system calls that open for writing, rename, remove or link are refused
    processes   RLIMIT_NPROC 0, and fork, thread and exec are refused
    network     system calls that make a socket are refused

Two layers hold this. The kernel's (seccomp) also binds libraries in C and any code that a broken one may come to run;
it is there on Linux on x86-64. Python's (an audit hook) is there everywhere, names what was tried, and also refuses to
open any file but the one to parse. Knows no file format.

Sources: seccomp(2), https://www.kernel.org/doc/html/latest/userspace-api/seccomp_filter.html; PEP 578.
"""

import ctypes
import logging
import os
import platform
import resource
import struct
import sys
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_REPO = Path(__file__).resolve().parents[1]
_OUR_PACKAGES = ("core", "retrieval")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_REFUSED_EVENTS = (
    *("socket.", "subprocess.", "shutil.", "tempfile.", "pty.", "urllib.", "http.", "ftplib.", "smtplib.", "imaplib."),
    *("os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "os.startfile", "os.kill", "os.truncate"),
    *("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.lchown"),
    *("os.utime", "os.setxattr", "os.removexattr", "pickle.", "webbrowser."),
)

# Numbers of x86-64, from the kernel's arch/x86/entry/syscalls/syscall_64.tbl.
_REFUSED_CALLS = {
    "socket": 41, "connect": 42, "accept": 43, "sendto": 44, "sendmsg": 46, "bind": 49, "listen": 50,
    "socketpair": 53, "accept4": 288, "sendmmsg": 307, "io_uring_setup": 425,
    "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "execveat": 322, "clone3": 435,
    "truncate": 76, "ftruncate": 77, "rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86, "unlink": 87,
    "symlink": 88, "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94, "utime": 132, "mknod": 133,
    "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "utimes": 235, "mkdirat": 258, "mknodat": 259,
    "fchownat": 260, "futimesat": 261, "unlinkat": 263, "renameat": 264, "linkat": 265, "symlinkat": 266,
    "fchmodat": 268, "utimensat": 280, "renameat2": 316, "openat2": 437,
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "pidfd_open": 434, "pidfd_getfd": 438,
    "pivot_root": 155, "chroot": 161, "mount": 165, "umount2": 166, "unshare": 272, "setns": 308,
    "init_module": 175, "finit_module": 313, "kexec_load": 246, "bpf": 321, "perf_event_open": 298,
    "add_key": 248, "request_key": 249, "keyctl": 250, "userfaultfd": 323, "open_by_handle_at": 304,
}  # fmt: skip
_OPENING_CALLS = {"open": (2, 1), "openat": (257, 2)}  # number, and which argument holds the flags

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_AUDIT_ARCH_X86_64 = 0xC000003E
_X32_BIT = 0x40000000  # the second table of calls that x86-64 has
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1  # the second: answer EPERM
_LOAD, _EQUAL, _AT_LEAST, _HAS_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_AT_NUMBER, _AT_ARCH, _AT_ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data


class Confinement:
    """The confinement of this process, which lasts as long as it does."""

    def __init__(self) -> None:
        """Prepare; nothing is refused yet."""
        places = {place for place in sys.path if place and Path(place).resolve() != _REPO}
        places |= {str(_REPO / package) for package in _OUR_PACKAGES}
        self._readable = tuple(f"{place.rstrip(os.sep)}{os.sep}" for place in places)
        self._file: str | None = None
        self._refusals: list[str] = []
        self.has_kernel_filter = False

    def begin(self, memory_bytes: int) -> None:
        """Confine this process, which must have one thread only, for good.

        Args:
            memory_bytes: Most address space.
        """
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True
        limits = {resource.RLIMIT_AS: memory_bytes}
        limits |= dict.fromkeys((resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC), 0)
        for limit, value in limits.items():
            resource.setrlimit(limit, (value, value))
        self.has_kernel_filter = _install_filter()
        sys.addaudithook(self._audit)

    def open_only(self, path: Path | None) -> None:
        """Name the file that may be read besides the libraries; None for no file."""
        self._file = None if path is None else os.fspath(path)

    def take_refusals(self) -> list[str]:
        """Return what Python code tried and was refused since the last call, and forget it."""
        found, self._refusals = self._refusals, []
        return found

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            if self._may_open(*arguments):
                return
        elif not event.startswith(_REFUSED_EVENTS):
            return
        self._refusals.append(event)
        raise PermissionError(f"{event}: a process that parses foreign files may not do this")

    def _may_open(self, path: object, _mode: object, flags: object) -> bool:
        if isinstance(path, int):  # a descriptor that is open already
            return True
        if not isinstance(path, str | bytes | os.PathLike) or (isinstance(flags, int) and flags & _WRITING):
            return False
        name = os.fsdecode(path)
        return name == self._file or (name.startswith(self._readable) and f"{os.sep}..{os.sep}" not in name)


def _install_filter() -> bool:
    """Have the kernel refuse system calls from now on; return whether it does."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    program = _build_filter()
    held = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("HP", len(program) // 8, ctypes.addressof(held))
    call = ctypes.CDLL(None, use_errno=True).prctl
    call.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_ulong]
    if call(_PR_SET_NO_NEW_PRIVS, 1, None, 0, 0) != 0 or call(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, described, 0, 0):
        logger.warning("the kernel takes no filter of system calls: %s", os.strerror(ctypes.get_errno()))
        return False
    return True


def _build_filter() -> bytes:
    """Return the program, eight bytes an instruction: code, jump if true, jump if false, constant."""
    numbers = sorted(_REFUSED_CALLS.values())
    steps = [
        (_LOAD, 0, 0, _AT_ARCH),
        (_EQUAL, 1, 0, _AUDIT_ARCH_X86_64),
        (_RETURN, 0, 0, _REFUSE),
        (_LOAD, 0, 0, _AT_NUMBER),
        (_AT_LEAST, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _REFUSE),
    ]
    for number in numbers:
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    for number, place in _OPENING_CALLS.values():
        flags = _AT_ARGUMENTS + 8 * place  # the lower half, on a machine that stores it first
        steps += [
            (_EQUAL, 0, 4, number),
            (_LOAD, 0, 0, flags),
            (_HAS_BITS, 0, 1, _WRITING),
            (_RETURN, 0, 0, _REFUSE),
            (_RETURN, 0, 0, _ALLOW),
        ]
    steps.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("HBBI", *step) for step in steps)
