"""Peers written by hand: what they say may be anything."""

import contextlib
import fcntl
import functools
import mmap
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

MAGIC = 0x6279_7265
VERSION = 8
FIRST = struct.pack("<II", MAGIC, VERSION)
# What a process says first when it connects; the answer is `FIRST`.
GREETING = FIRST + b"\0"
# The kinds of packets of a channel.
OPEN, SAY, RING, CLOSE = range(4)
# A publisher's answers, behind the first words.
WELCOME, NOT_THIS_TOPIC = b"\1", b"\2"
# What a ring must not be able to do any more: shrink, grow, be written by others, change this.
SEALED = 0x17


LEASE_SIZE = 4096 + (4 + 64) * 2**20


def memfd(size: int, seals: int | None = None, *, holes: bool = False, flags: int = 0) -> int:
    """Memory to pass to somebody, perhaps sealed, perhaps with nothing behind it."""
    fd = os.memfd_create("stranger", os.MFD_ALLOW_SEALING | flags)
    os.ftruncate(fd, size)
    if not holes:
        os.pwrite(fd, bytes(size), 0)
    if seals is not None:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def shared(size: int, *, holes: bool = False) -> tuple[int, mmap.mmap]:
    """Sealed memory that can still be written here, as an honest peer has it."""
    fd = memfd(size, holes=holes)
    own = mmap.mmap(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALED)
    return fd, own


def varint(number: int) -> bytes:
    """A number as it is encoded in packets."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def fake_publisher(rendezvous: Path, topic: str = "t", number: int = 0xDEADBEEF) -> socket.socket:
    """A socket in the place of a publisher of this topic."""
    start, prime = 0xCBF29CE484222325, 0x100000001B3
    hashed = functools.reduce(lambda value, byte: (value ^ byte) * prime % 2**64, topic.encode(), start)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.settimeout(20)
    listener.bind(str(rendezvous / f"tmp-{number:032x}"))
    listener.listen()
    os.rename(rendezvous / f"tmp-{number:032x}", rendezvous / f"{hashed:016x}-{number:032x}")
    return listener


def head(kind: int, number: int) -> bytes:
    """The beginning of a packet of that channel."""
    return struct.pack("<BI", kind, number)


def hello(
    name: str, topic: str, policy: int = 0, depth: int | None = None, history: int = 0, *, number: int = 0
) -> bytes:
    """Opens that channel to the publisher of that name; the policies are block, drop_oldest, latest."""
    text, called = topic.encode(), name.encode()
    wanted = b"\0" if depth is None else b"\1" + varint(depth)
    asked = varint(len(called)) + called + b"\0"  # It wants to subscribe.
    return head(OPEN, number) + asked + varint(len(text)) + text + varint(policy) + wanted + varint(history) + b"\0\1"


class Channel:
    """One channel of a connection, as if it were a socket of its own."""

    def __init__(self, end: socket.socket, number: int) -> None:
        """The connection is its own."""
        self.end = end
        self.number = number
        self._is_closed = False

    def __enter__(self) -> "Channel":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Hangs up."""
        self.end.close()

    def settimeout(self, seconds: float) -> None:
        """For whatever comes."""
        self.end.settimeout(seconds)

    def setblocking(self, blocking: bool) -> None:
        """Whether it waits."""
        self.end.setblocking(blocking)

    def send(self, packet: bytes) -> None:
        """Sends something on this channel."""
        self.end.send(head(SAY, self.number) + packet)

    def ring(self) -> None:
        """Rings on this channel."""
        self.end.send(head(RING, self.number))

    def send_with_descriptor(self, packet: bytes, fd: int) -> None:
        """Sends something and a descriptor, which is closed."""
        send_with_descriptor(self.end, head(SAY, self.number) + packet, fd)

    def recv(self, most: int) -> bytes:
        """What comes on this channel, the whole packet; nothing more when it is closed."""
        while not self._is_closed:
            packet = self.end.recv(most)
            self._is_closed = not packet or packet == head(CLOSE, self.number)
            if packet[1:5] == head(0, self.number)[1:] and not self._is_closed:
                return packet
        return b""


def accept_process(listener: socket.socket) -> socket.socket:
    """The first to connect and say something; who only looks whether anybody listens goes without a word."""
    while True:
        end, _ = listener.accept()
        end.settimeout(20)
        if end.recv(4096) == GREETING:
            return end
        end.close()


def accept_subscriber(listener: socket.socket) -> Channel:
    """The first channel that the first process to connect opens."""
    end = accept_process(listener)
    end.send(FIRST)
    kind, number = struct.unpack_from("<BI", end.recv(4096))
    assert kind == OPEN
    return Channel(end, number)


def welcome(topic: str, start: int = 0, first: int = 0, capacity: int = 16) -> bytes:
    """The answer of a publisher number 5, without a name."""
    text = topic.encode()
    numbers = varint(start) + varint(first) + varint(capacity)
    return FIRST + WELCOME + b"\5" + varint(len(text)) + text + b"\0" + numbers + b"\0"


def segment(number: int) -> bytes:
    """What comes with the descriptor of segment `number` of a pool."""
    return b"\4" + varint(number)


def pooled_record(position: int, sequence: int, count: int, length: int, offset: int = 0) -> bytes:
    """The record of `count` messages that take `length` bytes of segment 0."""
    words = (position + 1, 0, 1 << 63 | count, sequence, 0, offset, length, 0)
    return struct.pack("<8Q", *words).ljust(256, b"\0")


def inline_record(position: int, sequence: int, payload: bytes) -> bytes:
    """The record of a message that lies in it."""
    return struct.pack("<4Q", position + 1, 0, len(payload), sequence).ljust(32, b"\0") + payload.ljust(224, b"\0")


# Of 16 records.
RING_SIZE = 8 * 64 + 256 * 16


def _ring(records: list[bytes], tail: int | None, next_sequence: int, closed: bool) -> int:
    head = [0] * 64
    head[16:18] = len(records) if tail is None else tail, next_sequence
    head[33], head[35], head[36] = 2**64 - 1, int(closed), 2**64 - 1
    content = struct.pack("<64Q", *head) + b"".join(records)
    fd = memfd(RING_SIZE)
    os.pwrite(fd, content, 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALED)
    return fd


def send_with_descriptor(end: socket.socket, packet: bytes, fd: int) -> None:
    """Sends a packet and a descriptor, which is closed."""
    try:
        end.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))])
    finally:
        os.close(fd)


@contextlib.contextmanager
def liar(
    rendezvous: Path, records: list[bytes], *, tail: int | None = None, next_sequence: int = 0, closed: bool = False
) -> Iterator[Channel]:
    """A publisher on topic "t" whose ring begins with these records, and that says of it what it likes.

    Its pool is a page. Gives its end of the first subscriber's channel.
    """
    with fake_publisher(rendezvous) as listener, accept_subscriber(listener) as end:
        end.send_with_descriptor(welcome("t"), _ring(records, tail, next_sequence, closed))
        end.send_with_descriptor(segment(0), memfd(4096, SEALED))
        yield end


class Stranger:
    """A publisher on topic "t" that publishes whatever it is told to, one message after the other.

    As a context it waits for its subscriber, the first that connects.
    """

    _POOL = 1 << 20
    _GLOSSARY = 16 << 20
    _RECORDS = 16

    def __init__(self, rendezvous: Path, glossary: bytes) -> None:
        """Takes the place of a publisher whose glossary begins so."""
        self._listener = fake_publisher(rendezvous)
        self._explained = glossary
        self._sent = 0

    def __enter__(self) -> "Stranger":
        self._end = accept_subscriber(self._listener)
        self._ring = self._share(welcome("t"), 8 * 64 + 256 * self._RECORDS)
        self._pool = self._share(segment(0), self._POOL)
        glossary = self._share(segment(2**32 - 1), self._GLOSSARY)
        glossary[: len(self._explained)] = self._explained
        return self

    def __exit__(self, *_exception: object) -> None:
        self._end.close()
        self._listener.close()

    def publish(self, payload: bytes, attributes: bytes, offset: int = 0) -> None:
        """One more message, in place of the one before."""
        behind = offset + (len(payload) + 7) // 8 * 8
        self._pool[offset : offset + len(payload)] = payload
        self._pool[behind : behind + len(attributes)] = attributes
        position = self._sent
        refers = 1 << 32
        words = (0, 1 << 63 | 1, position, 0, offset, len(payload), len(attributes) | refers)
        at = 512 + 256 * (position % self._RECORDS)
        self._ring[at + 8 : at + 64] = struct.pack("<7Q", *words)
        self._put(32, max(position - 8, 0))
        self._ring[at : at + 8] = struct.pack("<Q", position + 1)
        self._sent += 1
        self._put(16, self._sent)
        self._put(17, self._sent)

    def _put(self, word: int, value: int) -> None:
        self._ring[8 * word : 8 * word + 8] = struct.pack("<Q", value)

    def _share(self, packet: bytes, size: int) -> mmap.mmap:
        """Memory that the subscriber maps and this writes."""
        fd = memfd(size)
        memory = mmap.mmap(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALED)
        if packet.startswith(FIRST):
            memory[8 * 33 : 8 * 34] = b"\xff" * 8  # Nobody waits for a cursor.
        self._end.send_with_descriptor(packet, fd)
        return memory
