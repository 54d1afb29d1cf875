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
    Identity,
    Job,
    Loan,
    Mailbox,
    Message,
    Outstanding,
    Publisher,
    PublisherInfo,
    Puller,
    Pusher,
    Receiver,
    Rejected,
    Subscriber,
    SubscriberInfo,
    Ticket,
    Timer,
    Undelivered,
    __version__,
    copied_bytes,
    monitors,
    record_receives,
)
from ._errors import (
    AddressInUse,
    Closed,
    Error,
    Evicted,
    Forked,
    InvalidTopic,
    PeerLost,
    PoolExhausted,
    Timeout,
    Unroutable,
    VersionMismatch,
)
from ._logging import log_to_logging

# With them comes NumPy: its import takes 100 ms, and is not left to the first send or receive. The extension comes
# before it: it refuses sub-interpreters, where NumPy would fail with less to say.
from . import _dtypes as _dtypes  # isort: skip
from . import _kinds as _kinds  # isort: skip
from . import _pickles as _pickles  # isort: skip

__all__ = [
    "INLINE_LIMIT",
    "AddressInUse",
    "Arrow",
    "Batch",
    "Closed",
    "Error",
    "Event",
    "EventQueue",
    "Evicted",
    "Forked",
    "Holder",
    "Identity",
    "InvalidTopic",
    "Job",
    "Loan",
    "Mailbox",
    "Message",
    "Outstanding",
    "PeerLost",
    "PoolExhausted",
    "Publisher",
    "PublisherInfo",
    "Puller",
    "Pusher",
    "Receiver",
    "Rejected",
    "Subscriber",
    "SubscriberInfo",
    "Ticket",
    "Timeout",
    "Timer",
    "Undelivered",
    "Unroutable",
    "VersionMismatch",
    "__version__",
    "copied_bytes",
    "log_to_logging",
    "monitors",
    "record_receives",
]
