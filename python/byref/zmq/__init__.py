"""A backend for pyzmq: its sockets, over byref's mailboxes.

`PYZMQ_BACKEND=byref.zmq python app.py`, or `byref exec --zmq -- python app.py`, runs a program of pyzmq on it. All that
pyzmq has in Python stays pyzmq's own; `import zmq` is what such a program goes on to say.
"""

from __future__ import annotations

from typing import Never

from byref.integrations._adapters import ADAPTERS

ADAPTERS["zmq"].check()

from zmq.constants import Errno  # noqa: E402

from ._context import Context  # noqa: E402
from ._devices import monitored_queue, proxy, proxy_steerable  # noqa: E402
from ._errors import fail, strerror, zmq_errno  # noqa: E402
from ._frame import Frame, Message  # noqa: E402
from ._poll import zmq_poll  # noqa: E402
from ._socket import IPC_PATH_MAX_LEN, Socket  # noqa: E402

PYZMQ_DRAFT_API = False


def zmq_version_info() -> tuple[int, int, int]:
    """The version of libzmq whose behaviour this has."""
    return 4, 3, 5


def has(capability: str | bytes) -> bool:
    """Whether a transport, or a security mechanism, is there."""
    if isinstance(capability, bytes):
        capability = capability.decode()
    return capability == "ipc"


def curve_keypair() -> Never:
    """CURVE is not there: messages do not leave the host."""
    fail(Errno.ENOTSUP)


def curve_public(private: str | bytes) -> Never:
    """CURVE is not there: messages do not leave the host."""
    fail(Errno.ENOTSUP)


__all__ = [
    "IPC_PATH_MAX_LEN",
    "PYZMQ_DRAFT_API",
    "Context",
    "Frame",
    "Message",
    "Socket",
    "curve_keypair",
    "curve_public",
    "has",
    "monitored_queue",
    "proxy",
    "proxy_steerable",
    "strerror",
    "zmq_errno",
    "zmq_poll",
    "zmq_version_info",
]
