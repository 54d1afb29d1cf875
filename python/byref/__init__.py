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
    Loan,
    Message,
    Publisher,
    PublisherInfo,
    Receiver,
    Subscriber,
    SubscriberInfo,
    copied_bytes,
    monitors,
)
from ._errors import Closed, Error, Forked, InvalidTopic, PoolExhausted, Timeout, VersionMismatch

__all__ = [
    "INLINE_LIMIT",
    "Arrow",
    "Batch",
    "Closed",
    "Error",
    "Event",
    "EventQueue",
    "Forked",
    "InvalidTopic",
    "Loan",
    "Message",
    "PoolExhausted",
    "Publisher",
    "PublisherInfo",
    "Receiver",
    "Subscriber",
    "SubscriberInfo",
    "Timeout",
    "VersionMismatch",
    "copied_bytes",
    "monitors",
]
