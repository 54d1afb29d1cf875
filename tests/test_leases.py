"""Whatever shows a message holds its lease: data of other libraries, objects that were unpickled, parts."""

from __future__ import annotations

import ctypes
import gc
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import byref
import duckdb
import nanoarrow
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from tests import arrow_data
from tests.conftest import Endpoints
from tests.payloads import is_payload, payload
from tests.processes import Child, Line, eventually, is_in_pool, maps, pool_ranges
from tests.test_lifetime import whole_pool_is_free

Spawn = Callable[..., Child]

MIB = 1 << 20
NUMBERS = np.arange(MIB // 8)
TABLE = pa.table({"n": NUMBERS})
SENT: dict[str, Any] = {
    "array": pa.array(NUMBERS), "table": TABLE, "frame": TABLE, "relation": TABLE, "nanoarrow": TABLE,
    "pickle": {"n": NUMBERS}, "parts": {"n": NUMBERS, "raw": NUMBERS.tobytes()}, "buffer": [NUMBERS.tobytes()],
    "element": [NUMBERS],
}  # fmt: skip
TAKES: dict[str, Callable[[byref.Message], Any]] = {
    "array": pa.array, "table": lambda msg: msg.value, "frame": lambda msg: pl.DataFrame(msg.value),
    "relation": lambda msg: duckdb.from_arrow(msg.value), "nanoarrow": lambda msg: nanoarrow.Array(msg),
    "pickle": lambda msg: msg.value["n"], "parts": lambda msg: msg.value, "buffer": lambda msg: msg.value[0][8:],
    "element": lambda msg: msg.value[0],
}  # fmt: skip


def total(form: str, view: Any) -> int:
    """The sum of the numbers that a view shows."""
    if form == "array":
        return int(view.to_numpy().sum())
    if form == "table":
        return int(view["n"].chunk(0).to_numpy().sum())
    if form == "frame":
        return int(view["n"].sum())
    if form == "relation":
        return int(view.sum("n").fetchall()[0][0])
    if form == "nanoarrow":
        return int(np.asarray(nanoarrow.c_array(view).view().child(0).buffer(1)).sum())
    if form == "parts":
        assert bytes(view["raw"]) == view["n"].tobytes()
        return int(view["n"].sum())
    return int(np.frombuffer(view, np.int64).sum())


TOTAL = int(NUMBERS.sum())


def send(pub: byref.Publisher, form: str) -> None:
    """Sends what such a view is taken of."""
    (pub.send_pickle if form == "pickle" else pub.send)(SENT[form])


def publish(line: Line, form: str) -> None:
    """Sends one message of a form, then as many others as are asked for."""
    with byref.Publisher("t", max_memory=16 * MIB) as pub:
        pub.wait_for_subscribers(timeout=30)
        send(pub, form)
        while (count := line.hear()) is not None:
            for seed in range(count):
                pub.send(payload(seed, MIB))
            line.tell("sent")


@pytest.mark.parametrize("form", TAKES)
def test_it_outlives_message_subscriber_and_publisher(form: str, spawn: Spawn) -> None:
    sub = byref.Subscriber("t", allow_pickle=True)
    publisher = spawn(publish, form)
    view = TAKES[form](sub.recv(timeout=30))
    publisher.tell(40)
    for seed in range(40):
        assert is_payload(sub.recv(timeout=30), seed, MIB)
    assert publisher.hear() == "sent"
    sub.close()
    publisher.kill()
    del sub
    gc.collect()
    assert total(form, view) == TOTAL
    assert pool_ranges()
    del view
    gc.collect()
    assert eventually(lambda: gc.collect() is not None and not pool_ranges(), "the memory goes with the last view")


@pytest.mark.parametrize("form", TAKES)
def test_it_is_given_back_once_from_any_thread(form: str, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=16 * MIB, allow_pickle=True)
    for _ in range(3):
        views: list[Any] = []
        for _ in range(3):
            send(pub, form)
            msg = sub.recv(timeout=20)
            views.append(TAKES[form](msg))
            with pytest.raises(BufferError, match="views"):
                msg.release()
            del msg
        assert [total(form, view) for view in views] == [TOTAL] * 3
        assert not whole_pool_is_free(pub, 15 * MIB)
        worker = threading.Thread(target=views.clear)
        worker.start()
        worker.join()
        gc.collect()
        assert eventually(lambda: whole_pool_is_free(pub, 15 * MIB), "all memory is free again")


def test_a_message_whose_views_are_gone_can_be_released(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(allow_pickle=True)
    for form, take in TAKES.items():
        send(pub, form)
        msg = sub.recv(timeout=20)
        view = take(msg)
        assert total(form, view) == TOTAL
        del view
        gc.collect()
        msg.release()
        with pytest.raises(byref.Closed):
            _ = msg.value


def test_capsules_that_nobody_takes(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=16 * MIB)
    for _ in range(10):
        pub.send(TABLE)
        msg = sub.recv(timeout=20)
        capsules = [msg.__arrow_c_schema__(), msg.__arrow_c_array__(), msg.__arrow_c_stream__()]
        with pytest.raises(BufferError, match="views"):
            msg.release()
        del capsules
        msg.release()
    assert eventually(lambda: whole_pool_is_free(pub, 15 * MIB), "all memory is free again")


def end_with_everything_alive(line: Line) -> None:
    """Ends while views of all kinds are there."""
    pub, sub = byref.Publisher("t"), byref.Subscriber("t", allow_pickle=True)
    pub.wait_for_subscribers(timeout=30)
    kept = globals()["kept"] = [pub, sub]
    for form, take in TAKES.items():
        send(pub, form)
        msg = sub.recv(timeout=30)
        kept.append([msg, msg.value, take(msg), msg.__arrow_c_stream__() if "arr" in form else None])
        kept[-1].append(kept)  # type: ignore[arg-type]
    kept.append(pub.loan_batch(TABLE.schema, 100))
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    line.tell("ends")


def test_interpreter_exit_with_everything_alive(spawn: Spawn) -> None:
    for _ in range(2):
        child = spawn(end_with_everything_alive)
        assert child.hear() == "ends"
        child.finish()
        assert child.output() == ""


# ---- isolation ----


def address_in(form: str, view: Any) -> int:
    """An address within what a view shows."""
    if isinstance(view, pa.Array | pa.Table):
        return arrow_data.addresses(view)[0][0]
    if form == "frame":
        return int(view["n"].to_numpy(allow_copy=False).ctypes.data)
    return int(np.asarray(view["n"] if form == "parts" else view).ctypes.data)


WRITTEN = ["array", "table", "frame", "pickle", "parts", "buffer"]


def overwrite(line: Line, form: str, where: str) -> None:
    """Writes on what it received, from another process or from its own publisher."""
    with byref.Subscriber("t", allow_pickle=True) as sub:
        own = byref.Publisher("t") if where == "same process" else None
        if own is not None:
            own.wait_for_subscribers(2, timeout=30)  # Its own, and that of the test.
            send(own, form)
        view = TAKES[form](sub.recv(timeout=30))
        address = address_in(form, view)
        assert is_in_pool(address)
        line.tell("writes")
        ctypes.memset(address, 255, 8)
        line.tell("still here")


@pytest.mark.parametrize("form", WRITTEN)
@pytest.mark.parametrize("where", ["other process", "same process"])
def test_who_writes_kills_only_itself(form: str, where: str, spawn: Spawn, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(allow_pickle=True)
    writer = spawn(overwrite, form, where)
    if where == "other process":
        pub.wait_for_subscribers(2, timeout=30)
    send(pub, form)
    mine = TAKES[form](sub.recv(timeout=30))
    assert writer.hear() == "writes"
    assert writer.wait() == -signal.SIGSEGV
    assert total(form, mine) == TOTAL
    send(pub, form)
    while total(form, TAKES[form](sub.recv(timeout=30))) != TOTAL:
        pass


def test_nothing_of_a_message_is_mapped_for_writing(endpoints: Endpoints, spawn: Spawn) -> None:
    sub = endpoints.subscriber(allow_pickle=True)
    child = spawn(publish, "parts")
    view = sub.recv(timeout=30).value
    assert total("parts", view) == TOTAL
    assert {perms for _, _, perms, name in maps() if "memfd:byref-" in name and "lease" not in name} == {"r--s"}
    child.tell()
    child.finish()
