"""What this process copied, by cause, and the fixtures that tests of other programs use."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import byref
import numpy as np
import pyarrow as pa
import pytest

from tests.conftest import Endpoints
from tests.processes import ROOT


class Counter:
    """What was copied since the last look."""

    def __init__(self) -> None:
        self._last = byref.copied_bytes()

    def __call__(self) -> dict[str, int]:
        now = byref.copied_bytes()
        since = {cause: now[cause] - self._last[cause] for cause in now}
        self._last = now
        return {cause: count for cause, count in since.items() if count}


def test_causes(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    assert set(byref.copied_bytes()) == {"send", "receive", "writable", "copy"}
    copied = Counter()
    pub.send(bytes(100))
    assert copied() == {"send": 100}
    msg = sub.recv(timeout=20)
    assert copied() == {"receive": 100}
    np.asarray(msg)
    memoryview(msg)
    assert copied() == {}
    msg.writable()
    assert copied() == {"writable": 100}
    assert len(bytes(msg)) == 100
    assert copied() == {"copy": 100}
    pub.send(bytes(1 << 20))
    msg = sub.recv(timeout=20)
    msg.writable()
    assert copied() == {"send": 1 << 20}
    with pub.loan(50_000) as array:
        array[:] = 1
    sub.recv(timeout=20)
    assert copied() == {}
    strided = np.arange(20_000)[::2]
    pub.send(strided)
    sub.recv(timeout=20)
    assert copied() == {"send": 80_000}


def test_parts_arrow_data_and_pickles(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(allow_pickle=True)
    copied = Counter()
    values: list[Any] = [pa.table({"a": range(5000)}), {"x": np.arange(9)[::2], "y": [b"z"], "t": 1}, [pa.array(["a"])]]
    for value in values:
        pub.send(value)
        msg = sub.recv(timeout=20)
        assert msg.value is not None
        assert copied() == {"send": msg.nbytes}
    pub.send_pickle({"array": np.zeros(1000)})
    msg = sub.recv(timeout=20)
    assert msg.value["array"].sum() == 0
    assert copied() == {"send": msg.nbytes}
    with pub.loan_batch(pa.schema([("a", pa.int64())]), 1000) as columns:
        columns["a"][:] = 1
    assert sub.recv(timeout=20).value.num_rows == 1000
    assert copied() == {}


def test_what_was_not_sent_was_not_copied(endpoints: Endpoints) -> None:
    pub, _ = endpoints.pair(max_memory=1 << 20)
    copied = Counter()
    for refused in (bytes(1 << 21), [np.zeros(1 << 18)]):
        with pytest.raises(byref.PoolExhausted):
            pub.send(refused)
    with pytest.raises(TypeError):
        pub.send({"a": np.zeros(100), "b": object()})
    assert copied() == {}


def test_batches(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    copied = Counter()
    pub.send_many(np.zeros((100, 50)))
    assert copied() == {"send": 40_000}
    batch = sub.recv_batch(100, timeout=20)
    batch.array()
    assert copied() == {}
    for _ in range(10):
        pub.send(bytes(50))
    batch = sub.recv_batch(10, timeout=20)
    assert copied() == {"send": 500, "receive": 500}
    for _ in range(2):
        pub.send(np.zeros(1000))
    sub.recv_batch(2, timeout=20).array()
    assert copied() == {"send": 16_000, "copy": 16_000}


def test_the_count_survives_its_endpoints_and_is_never_too_low_meanwhile() -> None:
    copied, over, counts = Counter(), threading.Event(), [byref.copied_bytes()["send"]]

    def look() -> None:
        while not over.is_set():
            counts.append(byref.copied_bytes()["send"])

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(30):
        with byref.Publisher("t") as pub, byref.Subscriber("t") as sub:
            pub.wait_for_subscribers(timeout=20)
            pub.send(bytes(100))
            sub.recv(timeout=20)
    over.set()
    thread.join()
    assert copied() == {"send": 3000, "receive": 3000}
    assert counts == sorted(counts)
    assert counts[-1] - counts[0] <= 3000


# ---- the fixtures ----

HEAD = """
import byref, byref.testing, numpy as np, pytest
from byref.testing import no_copies, no_leaks

byref.testing._PATIENCE = 0.5

kept = []

@pytest.fixture
def pair():
    with byref.Publisher("t") as pub, byref.Subscriber("t") as sub:
        pub.wait_for_subscribers(timeout=30)
        yield pub, sub

"""

PASSES = """
def test_views(no_leaks, no_copies, pair):
    pub, sub = pair
    pub.send({"a": np.zeros(1000)})
    assert sub.recv(timeout=30).value["a"].sum() == 0

def test_allowed(no_copies, pair):
    no_copies.allow("receive", "copy")
    pub, sub = pair
    pub.send(b"small")
    bytes(sub.recv(timeout=30))

def test_loans(no_copies, pair):
    no_copies.forbid("send")
    pub, sub = pair
    with pub.loan(5000) as array:
        array[:] = 1
    assert sub.recv(timeout=30).nbytes == 5000

def test_typing_errors(no_copies):
    for call in (no_copies.allow, no_copies.forbid):
        with pytest.raises(ValueError, match="recieve"):
            call("recieve")

def test_old_leaks_are_not_mine(no_leaks):
    pass
"""

FAILS = {
    "copy": ("""
def test(no_copies, pair):
    pub, sub = pair
    pub.send(bytes(5000))
    bytes(sub.recv(timeout=30))
""", "5000 bytes (copy)"),
    "receive": ("""
def test(no_copies, pair):
    pub, sub = pair
    pub.send(bytes(50))
    sub.recv(timeout=30)
""", "50 bytes (receive)"),
    "send": ("""
def test(no_copies, pair):
    no_copies.forbid("send")
    pair[0].send(bytes(5000))
""", "5000 bytes (send)"),
    "a view is kept": ("""
def test(no_leaks, pair):
    pub, sub = pair
    pub.send(np.zeros(1000))
    kept.append(sub.recv(timeout=30).value)
""", "mapping of byref-pool"),
    "a publisher is left open": ("""
def test(no_leaks):
    kept.append(byref.Publisher("t"))
""", "byref-ring"),
}  # fmt: skip


def run(tmp_path: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Runs a file of tests in a pytest of its own."""
    path = tmp_path / "test_it.py"
    path.write_text(HEAD + textwrap.dedent(text))
    call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(path)]
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)


def test_the_fixtures_pass(tmp_path: Path) -> None:
    done = run(tmp_path, PASSES)
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout


def test_the_fixtures_fail(tmp_path: Path) -> None:
    tests = [text.replace("def test(", f"def test_{number}(") for number, (text, _) in enumerate(FAILS.values())]
    done = run(tmp_path, "".join(tests))
    assert done.returncode == 1, done.stdout

    for what, (_, said) in FAILS.items():
        assert said in done.stdout, f"{what}\n{done.stdout}"
    assert f"{len(FAILS)} errors" in done.stdout
