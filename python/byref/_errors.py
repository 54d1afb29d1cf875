"""The exceptions. Each says what happened, to which topic, and what to do."""


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


for _class in (Error, Timeout, Closed, PoolExhausted, Evicted, VersionMismatch, Forked, InvalidTopic):
    _class.__module__ = "byref"


class WouldBlock(Exception):
    """An attempt of `send_async` found no room; it is made again. Never raised to a caller."""
