"""Addresses: `ipc://path`, `tcp://host:port`, `inproc://name`."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import socket
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zmq.constants import Errno

from ._errors import fail

# Bytes of a path that a Unix socket can have.
PATH_LIMIT = 107


@dataclass(frozen=True)
class Endpoint:
    """Where a socket listens, or connects to."""

    protocol: str
    # A socket's address for `ipc` and `tcp`; the name for `inproc`.
    place: Any
    family: int = 0


def split(address: str) -> tuple[str, str]:
    """The protocol and the rest."""
    protocol, separator, rest = address.partition("://")
    if not separator or not protocol or not rest:
        fail(Errno.EINVAL)
    if protocol not in ("ipc", "tcp", "inproc"):
        fail(
            Errno.EPROTONOSUPPORT,
            f"Protocol not supported ({protocol}: byref has ipc, tcp within one host, and inproc)",
        )
    return protocol, rest


def parse(address: str, binding: bool, ipv6: bool) -> Endpoint:
    """What an address means; raises as libzmq does."""
    protocol, rest = split(address)
    if protocol == "inproc":
        return Endpoint(protocol, rest)
    if protocol == "ipc":
        return Endpoint(protocol, _path(rest, binding), socket.AF_UNIX)
    if not binding:
        rest = rest.rpartition(";")[2]  # A source address says only which way it goes.
    host, separator, port = rest.rpartition(":")
    if not separator:
        fail(Errno.EINVAL)
    if binding and port == "*":
        port = "0"
    if not port.isdigit() or int(port) > 65535 or (not binding and int(port) == 0):
        fail(Errno.EINVAL)
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    host = host.strip("[]")
    if binding and host == "*":
        return Endpoint(protocol, ("::" if ipv6 else "0.0.0.0", int(port)), family)
    return _resolved(host, int(port), binding, ipv6)


def _path(path: str, binding: bool) -> str:
    if path == "*" and binding:
        return os.path.join(tempfile.mkdtemp(prefix="byref-zmq-"), "socket")
    if len(os.fsencode(path)) > PATH_LIMIT:
        fail(
            errno.ENAMETOOLONG,
            f'ipc path "{path}" is longer than {PATH_LIMIT} characters (sizeof(sockaddr_un.sun_path)).',
        )
    return "\0" + path[1:] if path.startswith("@") else path


def _resolved(host: str, port: int, binding: bool, ipv6: bool) -> Endpoint:
    if binding and (address := _of_interface(host)):
        return Endpoint("tcp", (address, port), socket.AF_INET)
    try:
        found = socket.getaddrinfo(host, port, 0 if ipv6 else socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        fail(errno.ENODEV if binding else Errno.EINVAL)
    family, _, _, _, place = min(found, key=lambda entry: entry[0] != socket.AF_INET6)
    return Endpoint("tcp", place, family)


def _of_interface(name: str) -> str | None:
    """The IPv4 address of a network interface."""
    if not name or len(name) > 15 or name not in (entry[1] for entry in socket.if_nameindex()):
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            answer = fcntl.ioctl(asking, 0x8915, struct.pack("256s", name.encode()))  # SIOCGIFADDR
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


def listen(endpoint: Endpoint, backlog: int) -> socket.socket:
    """A socket that listens there; raises as libzmq does, and EADDRINUSE also for a path at which somebody listens."""
    listening = socket.socket(endpoint.family, socket.SOCK_STREAM)
    listening.setblocking(False)
    try:
        if endpoint.protocol == "tcp":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if endpoint.family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listening.bind(endpoint.place)
        else:
            _bind_path(listening, endpoint.place)
        listening.listen(backlog)
    except OSError as problem:
        listening.close()
        text = None
        if problem.errno == errno.ENOENT:
            text = f'No such file or directory for ipc path "{endpoint.place}".'
        fail(problem.errno or Errno.EINVAL, text)
    return listening


def _bind_path(listening: socket.socket, path: str) -> None:
    """Bind a path; a socket that nobody listens at any more makes room."""
    if path.startswith("\0"):
        listening.bind(path)
        return
    # Under another name at first: so nobody meets a socket that does not listen yet, and the last step takes the name.
    if os.path.lexists(path):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trying:
            trying.settimeout(1)
            try:
                trying.connect(path)
            except ConnectionRefusedError:
                pass
            except OSError as problem:
                if problem.errno != errno.ENOTSOCK:
                    raise OSError(errno.EADDRINUSE, "in use") from problem
            else:
                raise OSError(errno.EADDRINUSE, "in use")
    if os.path.lexists(path) and not Path(path).is_socket():
        raise OSError(errno.EADDRINUSE, "there is a file that is no socket")
    stand_in = f"{path[: PATH_LIMIT - 9]}.{secrets.token_hex(4)}"
    listening.bind(stand_in)
    listening.listen()
    os.rename(stand_in, path)


def name_of(endpoint: Endpoint, listening: socket.socket) -> str:
    """The address as others can connect to it."""
    if endpoint.protocol == "ipc":
        path: str = endpoint.place
        return "ipc://" + ("@" + path[1:] if path.startswith("\0") else path)
    host, port = listening.getsockname()[:2]
    return f"tcp://[{host}]:{port}" if endpoint.family == socket.AF_INET6 else f"tcp://{host}:{port}"
