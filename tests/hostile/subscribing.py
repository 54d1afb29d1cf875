"""What a stranger can do to a publisher."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator

from tests.strangers import GREETING, LEASE_SIZE, OPEN, RING, SAY, SEALED, head, memfd, send_with_descriptor, shared

from .tools import Stranger, say

CURSOR, GENERATION, SLEEPING = 8 * 16, 8 * 17, 8 * 32
CLOSED = 2**64 - 1


def says_garbage(stranger: Stranger) -> None:
    """Changed greetings and hellos, with and without a descriptor."""
    for _ in stranger.rounds():
        with stranger.knock() as end:
            greeting = stranger.garbage(GREETING) if stranger.rng.random() < 0.1 else GREETING
            say(lambda end=end, greeting=greeting: end.send(greeting))
            packet = stranger.garbage(stranger.hello()) if stranger.rng.random() < 0.9 else stranger.rng.randbytes(5000)
            if stranger.rng.random() < 0.5:
                fd = stranger.wrong_descriptor(LEASE_SIZE)
                say(lambda end=end, packet=packet, fd=fd: send_with_descriptor(end, packet, fd))
            else:
                say(lambda end=end, packet=packet: end.send(packet))


def passes_no_lease(stranger: Stranger) -> None:
    """A right hello and a wrong descriptor, or hundreds of them."""
    for _ in stranger.rounds():
        fds = [stranger.wrong_descriptor(LEASE_SIZE) for _ in range(stranger.rng.choice([1, 1, 2, 250]))]
        with stranger.greet() as end:
            say(lambda end=end, fds=fds: socket.send_fds(end, [stranger.hello()], fds))
        for fd in fds:
            os.close(fd)


def stands_at_the_door(stranger: Stranger) -> None:
    """Hundreds of connections that say nothing."""
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(stranger.knock())
        for _ in stranger.rounds():
            stack.enter_context(stranger.knock())


def comes_and_goes(stranger: Stranger) -> None:
    """Hellos of somebody who is gone before the answer."""
    for _ in stranger.rounds():
        for _ in range(20):
            with stranger.greet() as end:
                for number in range(0, 2 * stranger.rng.randrange(1, 4), 2):
                    fd, packet = memfd(LEASE_SIZE, SEALED, holes=True), stranger.hello(1, number=number)
                    say(lambda end=end, fd=fd, packet=packet: send_with_descriptor(end, packet, fd))


@contextlib.contextmanager
def taken_in(stranger: Stranger) -> Iterator[tuple[socket.socket, memoryview]]:
    """A subscriber like others, and its lease."""
    rng = stranger.rng
    fd, lease = shared(LEASE_SIZE, holes=True)
    with stranger.greet() as end, lease:
        packet = stranger.hello(rng.randrange(3), rng.choice([None, 1, stranger.number()]), stranger.number())
        say(lambda: send_with_descriptor(end, packet, fd))
        with memoryview(lease) as words:
            yield end, words


def writes_its_lease(stranger: Stranger) -> None:
    """Cursors that run backwards, holds on everything, sleeps without end."""
    rng = stranger.rng
    with taken_in(stranger) as (_, lease):
        for _ in stranger.rounds():
            for _ in range(20):
                place = rng.choice([CURSOR, GENERATION, SLEEPING, 8 * rng.randrange(512)])
                struct.pack_into("<Q", lease, place, stranger.number(rng.randrange(10_000)))
                slot = rng.choice([rng.randrange(64), rng.randrange(1 << 20)])
                struct.pack_into("<I", lease, 4096 + 4 * slot, rng.choice([0, 1, 2**32 - 1]))
            if rng.random() < 0.2:
                struct.pack_into("<Q", lease, CURSOR, CLOSED)


def floods(stranger: Stranger) -> None:
    """Rings as fast as they go, nonsense at last, and none is read: all wake-ups pile up."""
    with taken_in(stranger) as (end, lease):
        epoch = 0
        for _ in stranger.rounds():
            nonsense = head(SAY, 0) + stranger.rng.randbytes(stranger.rng.randrange(1, 100))
            while say(lambda nonsense=nonsense: end.send(head(RING, 0) if stranger.rng.random() < 0.99 else nonsense)):
                epoch += 1
                struct.pack_into("<Q", lease, SLEEPING, epoch)


def answers_at_once(stranger: Stranger) -> None:
    """Takes every wake-up, sleeps anew, and rings without having been asked."""
    with taken_in(stranger) as (end, lease):
        epoch = 0
        for _ in stranger.rounds():
            for _ in range(50):
                epoch += 1
                struct.pack_into("<Q", lease, SLEEPING, epoch)
                say(lambda: end.recv(4096))
                say(lambda: end.send(head(RING, 0)))


def opens_without_end(stranger: Stranger) -> None:
    """Channel after channel, to somebody or to nobody, some of them with a lease; as a rule no answer is read."""
    rng = stranger.rng
    for _ in stranger.rounds():
        with stranger.greet() as end:
            reads = rng.random() < 0.3
            refused = 0
            number = 0
            while number < 40_000 and refused < 20:
                packet = stranger.hello(number=number) if rng.random() < 0.5 else head(OPEN, number) + rng.randbytes(9)
                if rng.random() < 0.02:
                    fd = memfd(LEASE_SIZE, SEALED, holes=True)
                    is_sent = say(lambda end=end, packet=packet, fd=fd: send_with_descriptor(end, packet, fd))
                else:
                    is_sent = say(lambda end=end, packet=packet: end.send(packet))
                if reads:
                    say(lambda end=end: end.recv(4096))
                if is_sent:
                    number, refused = number + 2, 0
                else:
                    refused += 1
                    time.sleep(0.001)


def passes_bells_without_end(stranger: Stranger) -> None:
    """A new one each time, and every one is broken."""
    with taken_in(stranger) as (end, lease):
        epoch = 0
        for _ in stranger.rounds():
            for _ in range(20):
                own, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
                own.close()
                packet = head(SAY, 0) + bytes([0, stranger.rng.randrange(128)])
                say(lambda packet=packet, theirs=theirs: send_with_descriptor(end, packet, theirs.detach()))
                theirs.close()
                epoch += 1
                struct.pack_into("<Q", lease, SLEEPING, epoch)


ATTACKS = (
    says_garbage, passes_no_lease, stands_at_the_door, comes_and_goes, writes_its_lease, floods, answers_at_once,
    opens_without_end, passes_bells_without_end,
)  # fmt: skip
