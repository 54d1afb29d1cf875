"""multiprocessing's Connection, `send_bytes` and `recv_bytes`: faster than its Queue, which pickles in a thread.

Objects go by `send` and `recv`, which is what a Queue does inside: pickles in one piece, through the same kind of pipe.

Over one pipe for each direction, as `Pipe(duplex=False)` has it: half as fast again as the socket of a
duplex `Pipe()`. The pipes have names, since the processes of a trial do not inherit from each other.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat, starmap
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.peers import Address, BlockingPeer, Messages, ObjectPeer, Send


class Multiprocessing(BlockingPeer, ObjectPeer):
    package = None
    configuration = (
        "Connection, send_bytes and recv_bytes, over a pipe for each direction; objects pickled by send and recv; "
        "round trips on one core"
    )
    one_cpu_below = float("inf")

    @contextmanager
    def service(self, address: Address) -> Iterator[None]:
        pipes = [_path(address), _path(address.at("forth")), _path(address.at("back"))]
        try:
            for pipe in pipes:
                os.mkfifo(pipe)
            yield
        finally:
            for pipe in pipes:
                pipe.unlink(missing_ok=True)

    @contextmanager
    def sender(self, address: Address, size: int) -> Iterator[Send]:
        with Connection(_open(address), readable=False) as connection:
            yield connection.send_bytes

    @contextmanager
    def receiver(self, address: Address, size: int) -> Iterator[Messages]:
        with Connection(_open(address), writable=False) as connection:
            yield starmap(connection.recv_bytes, repeat(()))

    @contextmanager
    def object_sender(self, address: Address, name: str) -> Iterator[Send]:
        with Connection(_open(address), readable=False) as connection:
            yield connection.send

    @contextmanager
    def object_receiver(self, address: Address, name: str) -> Iterator[Iterator[Any]]:
        with Connection(_open(address), writable=False) as connection:
            yield starmap(connection.recv, repeat(()))


def _path(address: Address) -> Path:
    return Path(tempfile.gettempdir(), address.name)


def _open(address: Address) -> int:
    """Open a pipe without waiting for the other side to do so."""
    return os.open(_path(address), os.O_RDWR)


PEER = Multiprocessing()
