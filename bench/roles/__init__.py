"""What the processes of a trial do, by kind of trial.

A role gets a channel to the other process, the name of the system, the address to meet at, and the trial's
own arguments. Times are nanoseconds of the system-wide monotonic clock: those taken in one process can be
subtracted from those taken in the other.
"""

from itertools import islice

from bench.peers import Buffer, Messages, Send

SIZE = 64
"""Bytes of a message, where a trial is not about sizes."""

BURST = 1000
"""Messages that are sent in one go where the queues of all systems must take them."""


def payload(size: int) -> bytes:
    """The content of a message."""
    return (bytes(range(256)) * (size // 256 + 1))[:size]


def end_of(message: bytes) -> bytes:
    """The message after the last: if any was lost or doubled, it does not come where it is expected."""
    return message[::-1]


def warm_up(size: int) -> int:
    """Messages of a stream that are sent first and not measured."""
    return min(1000, (64 << 20) // size)


def send_same(send: Send, message: bytes, count: int) -> None:
    for _ in range(count):
        send(message)


def receive_same(messages: Messages, expected: bytes, count: int) -> None:
    for message in islice(messages, count):  # noqa: B007, the last one is looked at
        pass
    check(message, expected)


def check(message: Buffer, expected: bytes) -> None:
    if bytes(message) != expected:
        raise ValueError("a message received is not the one sent")
