"""ezmsg's messages by reference: `install()`, and programs that use ezmsg go on as they are.

ezmsg stays what it is: graph, units, settings, profiling, and TCP to peers that lack this adapter. Between processes
that have it, and within one, byref carries the messages. docs/integrations/ezmsg.md says what becomes different.
"""

from __future__ import annotations

from typing import Any

from ..._errors import Error

__all__ = ["PublisherClosed", "PublisherEnded", "PublisherLost", "install", "stats"]


class PublisherEnded(Error):
    """A publisher ended; all that it had sent was received before. Each subscriber is told once.

    The subscriber goes on: others may publish to it, now or later.
    """

    # The topic that it published on.
    topic: str
    # Its process; 0 when that is out of sight.
    process: int

    def __init__(self, topic: str, process: int) -> None:
        super().__init__(topic, process)
        self.topic, self.process = topic, process


class PublisherLost(PublisherEnded):
    """Its process died."""

    def __str__(self) -> str:
        return f"topic {self.topic!r}: the publisher in process {self.process} died; what it had sent was received"


class PublisherClosed(PublisherEnded):
    """It was closed."""

    def __str__(self) -> str:
        return (
            f"topic {self.topic!r}: the publisher in process {self.process} was closed; what it had sent was received"
        )


def install() -> None:
    """Have byref carry the messages of ezmsg, in this process and for endpoints that are made from now on.

    Calling it again has no effect. `ImportError` when ezmsg is not installed, or is of a version in which the places
    that the adapter exchanges are not what they were.
    """
    from . import _seam

    _seam.install()


def stats() -> dict[str, Any]:
    """What publishers of this process sent: `messages` by byref, and of these `by_reference`.

    The latter are objects that cannot be pickled: they reach only subscribers of this process, as themselves.
    """
    from ._sender import sent

    return dict(sent)
