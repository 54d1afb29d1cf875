"""The two processes of the soak: one sends, one receives and checks every byte."""

from __future__ import annotations

import time
from typing import Any

import byref
import numpy as np
from numpy.typing import NDArray

from tests.processes import Line

Words = NDArray[np.uint64]

_SMALL, _LARGE = "soak/small", "soak/large"
_WORDS = 8  # of a small message: 64 bytes
_BLOCK = 2048
# Of so many stretches one is sent, and of so many another one received, message by message.
_ONE_BY_ONE = 40
_STRETCH = 32 * _BLOCK
_LARGE_WORDS = (1 << 20) // 8
# The number is written into each page of a large message.
_STAMPED = slice(None, None, 512)
# Little, so that all of it is taken, and mapped, soon.
MAX_MEMORY = 16 << 20
# Whole machines are stopped for minutes now and then.
PATIENCE = 600.0


def _rows(first: int, count: int) -> Words:
    """The content of small messages: every word differs from all others."""
    start = first * _WORDS
    return np.arange(start, start + count * _WORDS, dtype=np.uint64).reshape(count, _WORDS)


def send(line: Line, small: int, large: int) -> None:
    """The sender."""
    with byref.Publisher(_SMALL, MAX_MEMORY) as publisher:
        publisher.wait_for_subscribers(timeout=PATIENCE)
        for first in range(0, small, _BLOCK):
            rows = _rows(first, min(_BLOCK, small - first))
            if first // _STRETCH % _ONE_BY_ONE == 0:
                for row in rows:
                    publisher.send(row, timeout=PATIENCE)
            else:
                publisher.send_many(rows, timeout=PATIENCE)
        publisher.flush(PATIENCE)
    with byref.Publisher(_LARGE, MAX_MEMORY) as publisher:
        publisher.wait_for_subscribers(timeout=PATIENCE)
        buffer = _rows(0, _LARGE_WORDS // _WORDS).reshape(-1)
        for sequence in range(large):
            buffer[_STAMPED] = sequence
            if sequence % 2:
                loan = publisher.loan(buffer.shape[0], np.uint64, timeout=PATIENCE)
                loan.array[:] = buffer
                loan.send(timeout=PATIENCE)
            else:
                publisher.send(buffer, timeout=PATIENCE)
        publisher.flush(PATIENCE)
    line.tell("sent")
    line.hear(PATIENCE)


def receive(line: Line, small: int, large: int) -> None:
    """The receiver; tells how far it came."""
    reported = time.monotonic()
    received = 0
    with byref.Subscriber(_SMALL) as subscriber:
        while received < small:
            if received // _STRETCH % _ONE_BY_ONE == 1:
                received += _take_one(subscriber, received)
            else:
                received += _take_batch(subscriber, received)
            if time.monotonic() > reported + 0.2:
                reported = time.monotonic()
                line.tell(received)
        _expect_no_more(subscriber, received)
    with byref.Subscriber(_LARGE) as subscriber:
        expected = _rows(0, _LARGE_WORDS // _WORDS).reshape(-1)
        for sequence in range(large):
            message = subscriber.recv(PATIENCE)
            expected[_STAMPED] = sequence
            assert message.sequence == sequence, f"{message} instead of {sequence}"
            assert np.array_equal(message.value, expected), f"{message} has wrong bytes"
            if time.monotonic() > reported + 0.2:
                reported = time.monotonic()
                line.tell(small + sequence)
        _expect_no_more(subscriber, large)
    line.tell("received")
    line.hear(PATIENCE)


def _take_one(subscriber: byref.Subscriber[Any], expected: int) -> int:
    message = subscriber.recv(PATIENCE)
    assert message.sequence == expected, f"{message} instead of {expected}"
    assert np.array_equal(message.value, _rows(expected, 1)[0]), f"{message} has wrong bytes"
    return 1


def _take_batch(subscriber: byref.Subscriber[Any], expected: int) -> int:
    batch = subscriber.recv_batch(_BLOCK, PATIENCE)
    rows = batch.array()
    assert int(batch.sequences[0]) == expected, f"{batch.sequences[0]} instead of {expected}"
    assert np.array_equal(rows, _rows(expected, len(batch))), f"messages from {expected} on have wrong bytes"
    return len(batch)


def _expect_no_more(subscriber: byref.Subscriber[Any], received: int) -> None:
    stats = subscriber.stats()
    assert (stats["received"], stats["lost"]) == (received, 0), f"{stats} after {received} messages"
    assert subscriber.try_recv() is None
