"""Messages passed by reference between Python and Rust programs.

A publisher writes a payload once; every subscriber, in any process of the host, gets a read-only view of those very
bytes that stays valid as long as anyone holds it.
"""

from ._byref import (
    INLINE_LIMIT,
    Arrow,
    Batch,
    Event,
    EventQueue,
    Holder,
    Loan,
    Message,
    Outstanding,
    Publisher,
    PublisherInfo,
    Receiver,
    Subscriber,
    SubscriberInfo,
    Ticket,
    Timer,
    __version__,
    copied_bytes,
    monitors,
    record_receives,
)
from ._errors import Closed, Error, Evicted, Forked, InvalidTopic, PoolExhausted, Timeout, VersionMismatch
from ._logging import log_to_logging

# With them comes NumPy: its import takes 100 ms, and is not left to the first send or receive. The extension comes
# before it: it refuses sub-interpreters, where NumPy would fail with less to say.
from . import _dtypes as _dtypes  # isort: skip
from . import _kinds as _kinds  # isort: skip
from . import _pickles as _pickles  # isort: skip

__all__ = [
    "INLINE_LIMIT",
    "Arrow",
    "Batch",
    "Closed",
    "Error",
    "Event",
    "EventQueue",
    "Evicted",
    "Forked",
    "Holder",
    "InvalidTopic",
    "Loan",
    "Message",
    "Outstanding",
    "PoolExhausted",
    "Publisher",
    "PublisherInfo",
    "Receiver",
    "Subscriber",
    "SubscriberInfo",
    "Ticket",
    "Timeout",
    "Timer",
    "VersionMismatch",
    "__version__",
    "copied_bytes",
    "log_to_logging",
    "monitors",
    "record_receives",
]
