"""What a stranger can do to a subscriber."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
from collections.abc import Callable

from tests.strangers import (
    FIRST,
    RING_SIZE,
    SEALED,
    VERSION,
    Channel,
    head,
    inline_record,
    memfd,
    pooled_record,
    segment,
    shared,
    welcome,
)  # fmt: skip

from .tools import TOPIC, Ring, Stranger, say

POOL_SIZE = 1 << 16


def says_garbage(stranger: Stranger) -> None:
    """Changed welcomes, with a descriptor that may be right."""
    with stranger.visitors() as visitors:
        for end in visitors:
            numbers = [stranger.rng.choice([0, stranger.number()]) for _ in range(2)]
            capacity = stranger.rng.choice([16, 1 << 32, 1 << 20, 0, 3, stranger.number(16)])
            packet = welcome(stranger.rng.choice([TOPIC, "another"]), *numbers, capacity)
            if stranger.rng.random() < 0.5:
                packet = stranger.garbage(packet)
            right = stranger.rng.random() < 0.5
            fd = memfd(RING_SIZE, SEALED) if right else stranger.wrong_descriptor(RING_SIZE)
            say(lambda end=end, packet=packet, fd=fd: end.send_with_descriptor(packet, fd))


class Impolite(Stranger):
    """Does not answer a greeting as others do."""

    def agree(self, end: socket.socket) -> None:
        """It says something else later."""


def speaks_another_version(stranger: Stranger) -> None:
    """With its topic, with another one, or with nonsense for a topic."""
    stranger = Impolite(stranger.rendezvous, stranger.rng, stranger.seconds)
    with stranger.visitors() as visitors:
        for end in visitors:
            version = struct.pack("<I", stranger.rng.choice([0, VERSION - 1, VERSION + 1, 2**32 - 1]))
            said = stranger.rng.choice([b"", b"t", b"other", stranger.rng.randbytes(50)])
            say(lambda end=end, version=version, said=said: end.end.send(FIRST[:4] + version + said))


def hangs_up(stranger: Stranger) -> None:
    """On everybody, at once or after the welcome."""
    ring = Ring()
    with stranger.visitors() as visitors:
        for end in visitors:
            if stranger.rng.random() < 0.5:
                ring.hand_to(end)
            end.close()
    ring.close()


def has_a_ring_of_holes(stranger: Stranger) -> None:
    """A large ring that has no memory, or none but in its first region: reading it would cost the reader."""
    capacity = 1 << 22
    fd = memfd(512 + 2 * 256 * capacity, SEALED, holes=True)
    grown, ring = shared(512 + 2 * 256 * capacity, holes=True)
    ring[: 512 + 256 * 64] = bytes(512 + 256 * 64)
    struct.pack_into("<Q", ring, 8 * (39 + 1), 1)  # The second region begins at position 1,
    record = inline_record(0, 0, b"")
    ring[512 + 8 : 512 + 256], ring[512 : 512 + 8] = record[8:], record[:8]
    struct.pack_into("<4Q", ring, 512 + 256, 2, 0, 1 << 62, 1)  # which its marker says, too.
    before = os.fstat(grown).st_blocks
    with stranger.visitors() as visitors:
        for end in visitors:
            packet, which = welcome(TOPIC, capacity=capacity), stranger.rng.choice([fd, grown])
            say(lambda end=end, packet=packet, which=which: end.send_with_descriptor(packet, os.dup(which)))
    assert os.fstat(fd).st_blocks == 0, "somebody read the holes"
    assert os.fstat(grown).st_blocks == before, "somebody read the next region"
    ring.close()
    os.close(grown)
    os.close(fd)


def _with_each_visitor(stranger: Stranger, act: Callable[[Ring, Channel], None], *pool: int) -> None:
    """Welcomes each subscriber to a ring of its own, hands out these segments, and acts."""
    with stranger.visitors() as visitors, contextlib.ExitStack() as rings:
        for end in visitors:
            ring = Ring()
            rings.callback(ring.close)
            if ring.hand_to(end):
                for number, fd in enumerate(pool):
                    say(lambda end=end, number=number, fd=fd: end.send_with_descriptor(segment(number), os.dup(fd)))
                act(ring, end)


def writes_its_ring(stranger: Stranger) -> None:
    """Records and counters of every kind, right and wrong ones in turns, in a ring, and in the pool behind it."""
    rng = stranger.rng
    fd, pool = shared(POOL_SIZE)

    def act(ring: Ring, end: Channel) -> None:
        for _ in stranger.rounds():
            for _ in range(rng.randrange(1, 12)):
                position = ring.position
                if rng.random() < 0.6:
                    ring.append(inline_record(position, position, rng.randbytes(rng.randrange(200))))
                else:
                    length = rng.choice([0, 64, 4096, POOL_SIZE, stranger.number(POOL_SIZE)])
                    count = rng.choice([1, 1, 2, 64, rng.getrandbits(32)])
                    offset = rng.choice([0, 64, stranger.number(POOL_SIZE)])
                    ring.append(pooled_record(position, position, count, length, offset), count)
            if rng.random() < 0.3:
                ring.counter(rng.choice([16, 17, 32, 33, 34, 35, 36, 40, 41]), stranger.number(ring.position))
            if rng.random() < 0.2:
                place = 8 * rng.randrange(64, RING_SIZE // 8)
                struct.pack_into("<Q", ring.memory, place, stranger.number(ring.position))
            place = rng.randrange(POOL_SIZE - 64)
            pool[place : place + 64] = rng.randbytes(64)
            if not say(end.ring):
                break

    _with_each_visitor(stranger, act, fd)
    os.close(fd)


def publishes_holes(stranger: Stranger) -> None:
    """Messages in memory that is not there."""
    fd = memfd(1 << 30, SEALED, holes=True)

    def act(ring: Ring, end: Channel) -> None:
        offset = stranger.rng.randrange(1 << 29)
        ring.append(pooled_record(0, 0, stranger.rng.choice([1, 2]), 1 << stranger.rng.randrange(1, 29), offset))
        say(end.ring)

    _with_each_visitor(stranger, act, fd)
    assert os.fstat(fd).st_blocks == 0, "somebody read the holes"
    os.close(fd)


def passes_wrong_segments(stranger: Stranger) -> None:
    """A right ring, and segments that are none."""

    def act(ring: Ring, end: Channel) -> None:
        fd = stranger.wrong_descriptor(POOL_SIZE)
        say(lambda: end.send_with_descriptor(segment(0), fd))
        ring.append(pooled_record(0, 0, 1, 64))
        say(end.ring)

    _with_each_visitor(stranger, act)


def floods_with_segments(stranger: Stranger) -> None:
    """More than anybody has, one over and over, and large ones."""
    small, large = memfd(4096, SEALED), memfd(1 << 37, SEALED, holes=True)

    def act(ring: Ring, end: Channel) -> None:
        again, fd = stranger.rng.random() < 0.3, stranger.rng.choice([small, large])
        packets = (segment(0 if again else number) for number in itertools.count())
        packet = next(packets)
        for _ in stranger.rounds():
            while say(lambda packet=packet: end.send_with_descriptor(packet, os.dup(fd))):
                packet = next(packets)

    _with_each_visitor(stranger, act)
    os.close(small)
    os.close(large)


def floods(stranger: Stranger) -> None:
    """Packets that make no sense, in the channel or outside of it, for some; wake-ups without end for the others."""
    met = itertools.count()

    def act(ring: Ring, end: Channel) -> None:
        kind = next(met) % 3
        if kind == 0:
            head_of_any = head(
                stranger.rng.randrange(6), stranger.rng.choice([end.number, 1, 2, stranger.rng.getrandbits(32)])
            )
            say(lambda: end.end.send((head_of_any + stranger.rng.randbytes(20))[: stranger.rng.randrange(1, 25)]))
            return
        if kind == 1:
            say(lambda: end.send(b"\xff" + stranger.rng.randbytes(stranger.rng.choice([0, 30, 4000]))))
            return
        for _ in stranger.rounds():
            while say(end.ring):
                pass

    _with_each_visitor(stranger, act)


def litters(stranger: Stranger) -> None:
    """The rendezvous directory full of names: files, dead sockets, queues that answer nonsense."""
    rng = stranger.rng
    made = []
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            prefix = rng.choice([f"{rng.getrandbits(64):016x}-", "queue-", "tmp-", ""])
            path = stranger.rendezvous / f"{prefix}{rng.getrandbits(127):032x}"
            made.append(path)
            kind = rng.randrange(3)
            if kind == 0:
                path.touch()
                continue
            end = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            end.bind(str(path))
            if kind == 1:
                end.listen()
        for _ in stranger.rounds():
            pass
    for path in made:
        path.unlink(missing_ok=True)


ATTACKS = (
    says_garbage, speaks_another_version, hangs_up, has_a_ring_of_holes, writes_its_ring, publishes_holes,
    passes_wrong_segments, floods_with_segments, floods, litters,
)  # fmt: skip
