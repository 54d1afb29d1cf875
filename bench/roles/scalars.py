"""Containers of Python's own scalars, sent as they are and as pickles; and a data frame beside its own export."""

import gc
import time
from collections.abc import Callable
from typing import Any

import byref
import numpy as np
import pandas as pd
import pyarrow as pa

from bench.peers import Address

_TURNS = 12
"""How often the two that are compared take turns; the best turn of each counts."""


def _record(number: int) -> dict[str, Any]:
    return {"id": number, "name": f"user {number}", "price": number / 2, "active": number % 2 == 0, "note": None}


def _configuration() -> dict[str, Any]:
    rates = {"camera": 30.0, "lidar": 10.0, "imu": 200.0}
    limits = {"speed": 1.5, "turn": [0.1, 0.2, 0.3], "nested": {"a": 1, "b": None, "c": True, "d": "text"}}
    matrix = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    topics = ["camera/front", "camera/back", "lidar"]
    return {
        "name": "robot", "version": 3, "rates": rates, "topics": topics, "limits": limits, "calibration": matrix,
        "serial": "A-1234", "enabled": False,
    }  # fmt: skip


VALUES: dict[str, Callable[[], Any]] = {
    "300,000 ints": lambda: [number * 7919 % 1_000_003 for number in range(300_000)],
    "300,000 floats": lambda: [number / 7 for number in range(300_000)],
    "100,000 short strings": lambda: [f"item {number}" for number in range(100_000)],
    "1,000 dicts of 5 scalars": lambda: [_record(number) for number in range(1000)],
    "a dict of 5 scalars": lambda: _record(7),
    "a nested configuration": _configuration,
}
"""What is sent, by name."""


def _frame() -> pd.DataFrame:
    rows = 20_000
    words = [f"word {row % 100}" for row in range(rows)]
    return pd.DataFrame(
        {
            "number": np.arange(rows),
            "measure": np.random.default_rng(1).random(rows),
            "name": [f"name {row}" for row in range(rows)],
            "object": pd.Series(words, dtype=object),
        }
    )


def compare(_system: str, address: Address, count: int) -> tuple[float, list[float]]:
    """Send each of `VALUES` and take the value that the receiver has; return how long that takes, beside a pickle.

    Last comes the same of a data frame, compared with its export by pyarrow. Before these: the seconds of everything.
    """
    begin, ratios = time.perf_counter(), []
    with byref.Publisher(address.name) as pub, byref.Subscriber(address.name, allow_pickle=True) as sub:
        pub.wait_for_subscribers(timeout=10)

        def received(send: Callable[[Any], Any], value: Any) -> Any:
            send(value)
            return sub.recv(timeout=10).value

        for make in VALUES.values():
            value = make()
            for send in (pub.send, pub.send_pickle):
                if received(send, value) != value:
                    raise ValueError("a value received is not the one sent")
            sent, pickled = (
                lambda value=value: received(pub.send, value),
                lambda value=value: received(pub.send_pickle, value),
            )
            ratios.append(_ratio(sent, pickled, count))
        frame = _frame()
        if not received(pub.send, frame).equals(pa.Table.from_pandas(frame)):
            raise ValueError("a data frame received is not the one sent")
        ratios.append(_ratio(lambda: received(pub.send, frame), lambda: pa.Table.from_pandas(frame), count))
    return time.perf_counter() - begin, ratios


def _ratio(one: Callable[[], Any], other: Callable[[], Any], count: int) -> float:
    """How long one takes, compared with the other, in turns of `count` milliseconds."""
    start = time.perf_counter_ns()
    other()
    repeats = max(1, round(count * 1e6 / (time.perf_counter_ns() - start)))
    best = [_time(one, repeats), _time(other, repeats)]
    for _ in range(_TURNS):
        best = [min(best[0], _time(one, repeats)), min(best[1], _time(other, repeats))]
    return best[0] / best[1]


def _time(function: Callable[[], Any], repeats: int) -> int:
    gc.collect()
    start = time.perf_counter_ns()
    for _ in range(repeats):
        function()
    return time.perf_counter_ns() - start
