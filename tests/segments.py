"""The memory of publishers' segments, wherever it is kept: mapped, open, or in a socket that nobody reads."""

import array
import ctypes
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager

_POOL = "memfd:byref-pool"
_SYS_PIDFD_GETFD = 438
_SO_PEEK_OFF = 42
_LIBC = ctypes.CDLL(None, use_errno=True)


def kept_memory(pid: int | str, sockets: bool = True) -> dict[int, int]:
    """Bytes that the system has given to each segment (by inode) that a process keeps from going.

    `sockets`: also by not reading those. It has to be stopped for that.
    """
    found = dict(_mapped(pid))
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            what = os.readlink(entry.path)
        except FileNotFoundError:  # Of this process: the one that lists the directory.
            continue
        if _POOL in what:
            found.update([_size(os.stat(entry.path))])
        elif sockets and what.startswith("socket:"):
            with _taken(int(pid), int(entry.name)) as end:
                found.update(_in_flight(end))
    return found


def _mapped(pid: int | str) -> Iterator[tuple[int, int]]:
    with open(f"/proc/{pid}/maps") as rows:
        for row in rows:
            if _POOL in row:
                span, _, _, _, inode, *_ = row.split()
                try:
                    yield _size(os.stat(f"/proc/{pid}/map_files/{span}"))
                except FileNotFoundError:  # It was unmapped just now.
                    continue
                except PermissionError:  # Only root may look there; what is mapped is no less than what there is.
                    start, _, end = span.partition("-")
                    yield int(inode), int(end, 16) - int(start, 16)


def _size(found: os.stat_result) -> tuple[int, int]:
    return found.st_ino, found.st_blocks * 512


@contextmanager
def _taken(pid: int, fd: int) -> Iterator[socket.socket]:
    """A duplicate of another process's socket."""
    process = os.pidfd_open(pid)
    try:
        taken = _LIBC.syscall(_SYS_PIDFD_GETFD, process, fd, 0)
        if taken < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
    finally:
        os.close(process)
    with socket.socket(fileno=taken) as end:
        yield end


def _in_flight(end: socket.socket) -> Iterator[tuple[int, int]]:
    """Looks at the packets that wait, and leaves them there."""
    listens = end.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if (end.family, end.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET) or listens:
        return
    # A look behind the last packet would never end, in the kernel.
    unread = array.array("i", [0])
    fcntl.ioctl(end, termios.FIONREAD, unread)
    end.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
    # A forked process shares its parent's sockets, which that reads, and which may have been hung up.
    try:
        while unread[0] > 0:
            # Not `socket.recv_fds`, which takes no notice of its flags.
            packet, passed, _, _ = end.recvmsg(1 << 16, socket.CMSG_LEN(16), socket.MSG_PEEK | socket.MSG_DONTWAIT)
            unread[0] -= len(packet)
            for _, _, content in passed:
                for (fd,) in struct.iter_unpack("i", content[: len(content) // 4 * 4]):
                    if _POOL in os.readlink(f"/proc/self/fd/{fd}"):
                        yield _size(os.fstat(fd))
                    os.close(fd)
    except (BlockingIOError, ConnectionError):
        return
    finally:
        end.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, struct.pack("i", -1))
