"""The exceptions. Each says what happened, to which topic or address, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._byref import Identity, Undelivered


class Error(Exception):
    """Anything that goes wrong in byref itself."""


class Timeout(Error, TimeoutError):
    """The time given to a call ran out. A send that timed out reached nobody."""


class Closed(Error):
    """The publisher, subscriber, loan or message was closed, sent or released before."""


class PoolExhausted(Error, MemoryError):
    """The publisher's memory (`max_memory`) cannot take the payload; the text says who holds it."""


class Evicted(Error):
    """A publisher disconnected this subscriber for good, for the others' sake; the text says why."""


class VersionMismatch(Error):
    """A peer runs a byref whose protocol differs from this one's."""


class Forked(Error):
    """The object belongs to the parent of this forked process; create a new one here."""


class InvalidTopic(Error, ValueError):
    """Not the name of a topic; a pattern is for subscribers only, and its wildcards are whole levels."""


class AddressInUse(Error):
    """Another mailbox has the address: when it was to be claimed, or by having taken it over from this one."""

    address: str
    # Its process; 0 when that is out of sight.
    process: int
    # What that process is called, where the system tells.
    name: str | None


class Unroutable(Error):
    """Nobody has the address that was sent to. Nothing was sent."""

    address: str


class PeerLost(Error):
    """The mailbox that was sent to has ended; the message of this call was not sent. Or the server of a request has.

    What it had taken before may have been processed.
    """

    peer: Identity
    # The messages that were sent to it before and that it never took, as far as nobody has asked for them.
    undelivered: list[Undelivered]
    # For a request: whether the server had taken it, and may have acted on it.
    taken: bool | None = None


class NoServer(Error):
    """Nobody serves. Nothing was sent."""


class NoReply(Error):
    """The server dropped the request without a reply."""

    peer: Identity


class DeadlineExceeded(Timeout):
    """The time for a request is over; a reply that still comes is dropped."""


class Cancelled(Error):
    """The request was cancelled."""


class RemoteError(Error):
    """The service failed: its callable raised, or it said so with `request.fail(code, text)`."""

    peer: Identity
    # What it failed with: the name of an exception's class, or what was given to `fail`.
    code: int | str
    text: str
    # Where it happened, in the server; may be empty.
    traceback: str


_all = (Error, Timeout, Closed, PoolExhausted, Evicted, VersionMismatch, Forked, InvalidTopic, AddressInUse, Unroutable)
for _class in (*_all, PeerLost, NoServer, NoReply, DeadlineExceeded, Cancelled, RemoteError):
    _class.__module__ = "byref"


class WouldBlock(Exception):
    """An attempt of `send_async` found no room; it is made again. Never raised to a caller."""
