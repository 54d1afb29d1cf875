"""The systems under test: one module each, with a `PEER` in it that says how the system is set up."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from importlib.metadata import version
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

MODULES = {"byref": "byref_", "pyzmq": "zmq_", "pyomq": "pyomq_", "iceoryx2": "iceoryx2_"}
"""The module of each system, by the name of its package on PyPI."""

START_TIMEOUT = 10.0
"""Seconds that a sender may wait for its receiver to be connected."""

Buffer = Any
"""What the buffer protocol accepts (a type for it exists from Python 3.12)."""

Send = Callable[[Buffer], Any]
"""Sends one message; blocks while the receiver is too far behind, so that nothing is lost."""

Messages = Iterator[Buffer]
"""Blocks until the next message is there, which is valid until the one after it is asked for."""


class Address(NamedTuple):
    """Where the two processes of a trial meet. A peer uses what it needs of it."""

    name: str
    port: int

    def at(self, suffix: str) -> "Address":
        """The address of one of several channels of a trial."""
        return self._replace(name=f"{self.name}-{suffix}")


class Peer(ABC):
    """How a system is set up for the trials; all messages of a trial are `size` bytes long."""

    configuration: str
    """The settings that were chosen, for the report."""

    one_cpu_below = 0
    """Round trips of fewer bytes than this are faster when both processes share one processor."""

    @abstractmethod
    def sender(self, address: Address, size: int) -> AbstractContextManager[Send]:
        """Connect to the receiver, which is open already."""

    @abstractmethod
    def receiver(self, address: Address, size: int) -> AbstractContextManager[Messages]:
        """Be ready for one sender."""

    @contextmanager
    def duplex(self, address: Address, size: int, first: bool, channel: Connection) -> Iterator[tuple[Send, Messages]]:
        """One end of a two-way connection: two one-way ones, unless the system has something better."""
        outbound, inbound = ("forth", "back") if first else ("back", "forth")
        with self.receiver(address.at(inbound), size) as messages:
            meet(channel)
            with self.sender(address.at(outbound), size) as send:
                yield send, messages


def load(system: str) -> Peer:
    """The peer of that name; ImportError if its package is not installed."""
    return import_module(f"{__name__}.{MODULES[system]}").PEER


def describe(system: str) -> str:
    """Version and settings of a system, or why it cannot be used."""
    try:
        return f"{version(system)}, {load(system).configuration}"
    except ImportError as error:
        return f"cannot be used: {error}"


def meet(channel: Connection) -> None:
    """Return once the other process of the trial has come to the same point."""
    channel.send(None)
    channel.recv()
