"""What strangers work with."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.strangers import (
    FIRST,
    GREETING,
    OPEN,
    RING_SIZE,
    SEALED,
    Channel,
    fake_publisher,
    hello,
    memfd,
    shared,
    welcome,
)  # fmt: skip

TOPIC = "t"
MFD_HUGETLB = 4
# So many sockets a stranger has open at a time: on a fast machine, in a second, it could have more than descriptors.
MOST_VISITORS = 400


class Stranger:
    """One process that knows the protocol, chance, and where the others meet."""

    def __init__(self, rendezvous: Path, rng: random.Random, seconds: float) -> None:
        self.rendezvous = rendezvous
        self.rng = rng
        # So long one attack goes on.
        self.seconds = seconds
        # The name of the publisher that it connected to last.
        self.called = ""

    def rounds(self) -> Iterator[None]:
        """Again and again, for as long as an attack may take."""
        until = time.monotonic() + self.seconds
        while time.monotonic() < until:
            yield
            time.sleep(0.0005)

    def number(self, honest: int = 0) -> int:
        """A number, near one that means something as a rule."""
        rng = self.rng
        near = rng.randrange(-3, 4)
        kinds = (rng.randrange(20), honest + near, (1 << 62) + near, 2**64 - rng.randrange(1, 5), rng.getrandbits(64))
        return rng.choice(kinds) % 2**64

    def garbage(self, packet: bytes) -> bytes:
        """A packet with some bytes changed, lost, or added."""
        changed = bytearray(packet)
        for _ in range(self.rng.randrange(1, 6)):
            place = self.rng.randrange(len(changed) + 1)
            changed[place : place + self.rng.randrange(3)] = self.rng.randbytes(self.rng.randrange(3))
        return bytes(changed) or b"\0"

    def wrong_descriptor(self, size: int) -> int:
        """Something that is not sealed memory of `size` bytes with ordinary pages all over."""
        rng = self.rng
        kind = rng.randrange(9)
        if kind == 0:
            return os.open(rng.choice(["/dev/null", "/dev/zero", "/", "/proc/self/exe"]), os.O_RDONLY)
        if kind == 1:
            ends = os.pipe()
            os.close(ends[1])
            return ends[0]
        if kind == 2:
            return memfd(size, holes=True)
        if kind == 3:
            return memfd(max(size - 4096, 1), SEALED, holes=True)
        if kind == 4:
            return memfd(size, SEALED & ~(1 << rng.choice([0, 1, 2, 4])), holes=True)
        if kind == 5:
            return self.huge_pages()
        if kind == 6:
            return os.open(self.rendezvous, os.O_PATH)
        if kind == 7:
            return memfd(rng.choice([0, 1, 4095]), SEALED)
        return memfd(1 << rng.randrange(30, 45), SEALED, holes=True)

    def huge_pages(self) -> int:
        """A sealed segment of them; memory that is too short where there are none."""
        try:
            return memfd(2 << 20, SEALED, holes=True, flags=MFD_HUGETLB)
        except OSError:
            return memfd(1, SEALED)

    # ---- as a subscriber ----

    def publishers(self) -> list[Path]:
        """The sockets of those that are there."""
        return [path for path in self.rendezvous.iterdir() if len(path.name) == 49]

    def knock(self) -> socket.socket:
        """Connects to a publisher."""
        end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        end.setblocking(False)
        with contextlib.suppress(OSError, IndexError):  # Its backlog may be full.
            path = self.rng.choice(self.publishers())
            self.called = path.name
            end.connect(str(path))
        return end

    def greet(self) -> socket.socket:
        """The same, and says that it is a process like others."""
        end = self.knock()
        say(lambda: end.send(GREETING))
        return end

    def hello(self, policy: int = 0, depth: int | None = None, history: int = 0, *, number: int = 0) -> bytes:
        """Opens a channel to that publisher."""
        return hello(self.called, TOPIC, policy, depth, history, number=number)

    # ---- as a publisher ----

    @contextlib.contextmanager
    def visitors(self) -> Iterator[Iterator[Channel]]:
        """Poses as a publisher, for as long as an attack may take; the subscribers that say hello."""
        name_taken = self.rng.getrandbits(127)
        met: deque[Channel] = deque()
        with fake_publisher(self.rendezvous, TOPIC, name_taken) as listener:
            listener.settimeout(0.05)
            yield self._meet(listener, met)
            for end in met:
                end.close()
        for path in self.rendezvous.glob(f"*-{name_taken:032x}"):
            with contextlib.suppress(OSError):
                path.unlink()

    def _meet(self, listener: socket.socket, met: deque[Channel]) -> Iterator[Channel]:
        for _ in self.rounds():
            try:
                end = listener.accept()[0]
            except TimeoutError:
                continue
            visitor = Channel(end, 0)
            met.append(visitor)
            if len(met) > MOST_VISITORS:
                met.popleft().close()
            end.settimeout(self.seconds)
            packets: list[bytes] = []
            is_there = say(lambda end=end, packets=packets: packets.extend([end.recv(4096), end.recv(4096)]))
            end.setblocking(False)
            if is_there and packets[0] == GREETING and packets[1][:1] == bytes([OPEN]):
                self.agree(end)
                visitor.number = struct.unpack_from("<I", packets[1], 1)[0]
                yield visitor

    def agree(self, end: socket.socket) -> None:
        """Answers a process that greets."""
        say(lambda: end.send(FIRST))


class Ring:
    """A ring that can be written in every way."""

    def __init__(self) -> None:
        self.fd, self.memory = shared(RING_SIZE)
        self.counter(33, 2**64 - 1)
        self.position = 0

    def counter(self, word: int, value: int) -> None:
        """One of the words in front of the records (see `ring.rs`)."""
        struct.pack_into("<Q", self.memory, 8 * word, value)

    def append(self, record: bytes, messages: int = 1) -> None:
        """The next record, its counters as they have to be."""
        place = 512 + self.position % 16 * 256
        self.memory[place + 8 : place + 256] = record[8:]
        self.memory[place : place + 8] = record[:8]
        self.position += 1
        self.counter(16, self.position)
        self.counter(17, self.position + messages - 1)

    def hand_to(self, end: Channel) -> bool:
        """Welcomes a subscriber; whether it was there to hear it."""
        return say(lambda: end.send_with_descriptor(welcome(TOPIC), os.dup(self.fd)))

    def close(self) -> None:
        """Gives it back."""
        self.memory.close()
        os.close(self.fd)


def say(call: Callable[[], object]) -> bool:
    """Calls it; `False` when the other side has hung up, or its queue is full."""
    try:
        call()
    except (BlockingIOError, TimeoutError):
        return False
    except OSError as problem:
        if problem.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ETOOMANYREFS, errno.EMSGSIZE):
            raise
        return False
    return True


def is_left_alone(end: socket.socket | Channel) -> bool:
    """Whether the other side has hung up."""
    with contextlib.suppress(BlockingIOError):
        try:
            while end.recv(4096):
                pass
        except ConnectionError:
            pass
        return True
    return False


def seal(fd: int) -> None:
    """As an honest peer does it."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALED)
