"""Error numbers, as libzmq gives them."""

from __future__ import annotations

import errno
import os
import threading
from typing import Never

from zmq.constants import Errno
from zmq.error import Again, ContextTerminated, ZMQError

# Where the options stand that are there, and those that are not.
OPTIONS = "see the table of options in docs/integrations/pyzmq.md of byref"

_TEXTS = {
    Errno.EFSM: "Operation cannot be accomplished in current state",
    Errno.ENOCOMPATPROTO: "The protocol is not compatible with the socket type",
    Errno.ETERM: "Context was terminated",
    Errno.EMTHREAD: "No thread available",
    errno.EHOSTUNREACH: "Host unreachable",
}
_last = threading.local()


def strerror(number: int) -> str:
    """What an error number means."""
    return _TEXTS.get(number) or os.strerror(number)


def zmq_errno() -> int:
    """The number of this thread's last error."""
    return getattr(_last, "number", 0)


def fail(number: int, text: str | None = None) -> Never:
    """Raise the exception that pyzmq raises for this number."""
    _last.number = number
    if number == errno.EAGAIN:
        raise Again(number)
    if number == Errno.ETERM:
        raise ContextTerminated(number)
    raise ZMQError(number, text)
