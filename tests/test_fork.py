"""After os.fork(): the parent's endpoints say so, the child can make its own, and the parent feels nothing."""

import contextlib
import ctypes
import gc
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import byref
import numpy as np
import pytest

from tests.payloads import is_payload, payload
from tests.processes import Child, Line, eventually, maps, state_of

Spawn = Callable[..., Child]

MIB = 1 << 20
LIBC = ctypes.CDLL(None)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
MAP_FIXED_NOREPLACE = 0x100000


def inherited_calls(pub: byref.Publisher, sub: byref.Subscriber, loan: byref.Loan) -> dict[str, Callable[[], object]]:
    """Everything that can be asked of endpoints."""
    return {
        "send": lambda: pub.send(b"x"),
        "send large": lambda: pub.send(bytes(100_000)),
        "send array": lambda: pub.send(np.zeros((30, 40)).T),
        "send_many": lambda: pub.send_many([b"x", b"y"]),
        "send_many of nothing": lambda: pub.send_many([]),
        "loan": lambda: pub.loan(10_000),
        "flush": lambda: pub.flush(timeout=1),
        "wait_for_subscribers": lambda: pub.wait_for_subscribers(1, timeout=1),
        "subscribers": lambda: pub.subscribers,
        "publisher's stats": lambda: pub.stats(),
        "recv": lambda: sub.recv(timeout=1),
        "try_recv": lambda: sub.try_recv(),
        "recv_batch": lambda: sub.recv_batch(5, timeout=1),
        "iteration": lambda: next(sub),
        "wait_for_publishers": lambda: sub.wait_for_publishers(1, timeout=1),
        "publishers": lambda: sub.publishers,
        "lost": lambda: sub.lost,
        "subscriber's stats": lambda: sub.stats(),
        "fileno": lambda: sub.fileno(),
        "loan.send": lambda: loan.send(timeout=1),
    }


def outcome(call: Callable[[], object]) -> str:
    """What became of it."""
    try:
        return repr(call())
    except BaseException as problem:
        return f"{type(problem).__name__}: {problem}"


def fork_with_everything(line: Line, goodbye: str) -> None:
    """Has endpoints, views and loans; forks; the child tries them all, makes its own, and leaves."""
    pub, sub = byref.Publisher("t"), byref.Subscriber("t")
    pub.wait_for_subscribers(timeout=30)
    sub.wait_for_publishers(timeout=30)
    for seed in range(5):
        pub.send(payload(seed, 100_000))
    msg, dropped = sub.recv(timeout=30), sub.recv(timeout=30)
    view, mine, loan = np.asarray(msg), msg.writable(), pub.loan(50_000)
    child = os.fork()
    if not child:
        line.tell({name: outcome(call) for name, call in inherited_calls(pub, sub, loan).items()})
        line.tell([is_payload(view, 0, 100_000), is_payload(mine, 0, 100_000), bytes(msg) == bytes(view)])
        assert all(repr(thing).endswith(", of the parent process>") for thing in (pub, sub))
        del dropped
        with byref.Publisher("t") as own, byref.Subscriber("t") as reader:
            # The parent's publisher and subscriber are of this topic, too: they meet.
            own.wait_for_subscribers(2, timeout=30)
            reader.wait_for_publishers(2, timeout=30)
            own.send(payload(9, 100_000))
            while (got := reader.recv(timeout=30)).publisher.pid != os.getpid():
                pass
            line.tell(is_payload(got, 9, 100_000))
        if goodbye == "close":
            for thing in (pub, sub):
                thing.close()
            loan.discard()
        elif goodbye == "delete":
            del pub, sub, msg, view, mine, loan
        else:
            globals()["kept"] = (pub, sub, msg, view, mine, loan)
        return
    _, status = os.waitpid(child, 0)
    line.tell(os.waitstatus_to_exitcode(status))
    # Nothing happened to the parent.
    del dropped
    while sub.recv(timeout=30).publisher.pid != os.getpid():
        pass
    assert is_payload(view, 0, 100_000)
    loan.array[:] = payload(7, 50_000)
    loan.send(timeout=30)
    pub.send(b"last", timeout=30)
    received = [sub.recv(timeout=30)]
    while bytes(received[-1]) != b"last":
        received.append(sub.recv(timeout=30))
    line.tell(len([one for one in received if one.publisher.pid == os.getpid()]))
    sys.stdout.flush()


def check_fork(spawn: Spawn, goodbye: str) -> None:
    """One round."""
    parent = spawn(fork_with_everything, goodbye)
    outcomes: dict[str, Any] = parent.hear()
    wrong = {name: text for name, text in outcomes.items() if not text.startswith("Forked: ") or "'t'" not in text}
    assert wrong == {}
    assert parent.hear() == [True, True, True]
    assert parent.hear() is True
    assert parent.hear() == 0, parent.output()
    # Two that were waiting when it forked, the loan, and the last.
    assert parent.hear() == 4
    parent.finish()
    assert parent.output() == ""


def test_a_forked_child_closes_what_it_inherited(spawn: Spawn) -> None:
    check_fork(spawn, "close")


def test_a_forked_child_deletes_what_it_inherited(spawn: Spawn) -> None:
    check_fork(spawn, "delete")


def test_a_forked_child_exits_with_what_it_inherited(spawn: Spawn) -> None:
    check_fork(spawn, "keep")


def own_memory() -> list[tuple[int, int]]:
    """Where this process may write what others read."""
    return [(start, end) for start, end, perms, name in maps() if "memfd:byref" in name and perms == "rw-s"]


def fork_with_a_message(line: Line) -> None:
    """A forked child looks at a message in every way, puts something where its parent writes, and lets go of all."""
    pub = byref.Publisher("t", max_memory=8 * MIB)
    with byref.Subscriber("t") as sub:
        pub.wait_for_subscribers(timeout=30)
        pub.send(payload(0, MIB))
        msg = sub.recv(timeout=30)
    # From here on nothing but the message keeps that connection.
    other = byref.Subscriber("t", policy="latest")
    pub.wait_for_subscribers(timeout=30)
    other.wait_for_publishers(timeout=30)
    written = own_memory()
    child = os.fork()
    if not child:
        line.tell(own_memory())
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
        for start, end in written:
            assert LIBC.mmap(start, end - start, mmap.PROT_READ, flags, -1, 0) == start
        views: list[Any] = [msg.value, np.asarray(msg), np.from_dlpack(msg), msg.writable()]
        line.tell([is_payload(view, 0, MIB) for view in views])
        other.close()
        pub.close()
        del msg, views, sub, other, pub
        gc.collect()
        mapped = [(start, end) for start, end, _, _ in maps()]
        line.tell([any(low <= start and end <= high for low, high in mapped) for start, end in written])
        os._exit(0)
    line.tell([len(written), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])])
    for seed in range(1, 40):
        pub.send(payload(seed, MIB), timeout=30)
    line.tell([is_payload(msg, 0, MIB), is_payload(other.recv(timeout=30), 39, MIB)])


def test_a_forked_child_looks_at_a_message_and_lets_go(spawn: Spawn) -> None:
    parent = spawn(fork_with_a_message)
    assert parent.hear() == [], "nothing that its parent writes is mapped in the child"
    assert parent.hear() == [True] * 4
    stays = parent.hear()
    assert stays == [True] * len(stays), "the child unmaps nothing that is its own"
    assert parent.hear() == [len(stays), 0]
    assert len(stays) >= 4, "ring, pool and leases"
    assert parent.hear() == [True, True], "the parent's message has stayed, and new ones come"
    parent.finish()


def fork_from_a_busy_process(line: Line) -> None:
    """Forks while threads send and receive: whatever locks they hold at that instant stay taken in the child."""
    pub, sub = byref.Publisher("t"), byref.Subscriber("t")
    pub.wait_for_subscribers(timeout=30)

    def send() -> None:
        while True:
            pub.send(bytes(1000))

    def receive() -> None:
        for msg in sub:
            assert msg.nbytes == 1000

    for work in (send, receive):
        threading.Thread(target=work, daemon=True).start()
    for _ in range(20):
        child = os.fork()
        if not child:
            pub.close()
            sub.close()
            ok = outcome(lambda: pub.send(b"")).startswith("Forked") and outcome(sub.recv).startswith("Forked")
            topic = f"own/{os.getpid()}"  # Other parents have children at the same time.
            with byref.Publisher(topic) as own, byref.Subscriber(topic) as reader:
                own.wait_for_subscribers(timeout=30)
                own.send(b"mine")
                ok = ok and bytes(reader.recv(timeout=30)) == b"mine"
            os._exit(0 if ok else 1)
        line.tell(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def test_forks_of_a_busy_process(spawn: Spawn) -> None:
    """The first fork of each parent meets what is made at the first message."""
    for parent in [spawn(fork_from_a_busy_process) for _ in range(6)]:
        assert [parent.hear() for _ in range(20)] == [0] * 20
        parent.finish()


def fork_beside_waiting_threads(line: Line, seconds: float) -> None:
    """Forks while many threads go to sleep and are woken; each child uses byref with threads of its own."""
    pub, subs = byref.Publisher("t"), [byref.Subscriber("nobody") for _ in range(4)]
    go_on = True

    def wait_for(call: Callable[[], object]) -> None:
        while go_on:
            with contextlib.suppress(byref.Timeout):
                call()

    waits = [lambda sub=sub: sub.recv(timeout=0.0003) for sub in subs * 3]
    waits += [lambda: pub.wait_for_subscribers(9, timeout=0.0003)] * 4
    threads = [threading.Thread(target=wait_for, args=(wait,)) for wait in waits]
    for thread in threads:
        thread.start()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        child = os.fork()
        if not child:
            signal.alarm(30)
            line.tell(use_byref_with_threads(f"own/{os.getpid()}"))
            os._exit(0)
        deadline = time.monotonic() + 60
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            assert time.monotonic() < deadline, "a child hangs, and hears no alarm"
            time.sleep(0.002)
        assert ended[1] == 0, "a child hangs (its alarm is 14), or fails"
    go_on = False
    for thread in threads:
        thread.join()
    line.tell("done")


def use_byref_with_threads(topic: str) -> int:
    """How many of five messages threads receive that wait for each other."""
    with byref.Publisher(topic) as own, byref.Subscriber(topic) as reader:
        own.wait_for_subscribers(timeout=20)
        got: list[int] = []

        def receive() -> None:
            while len(got) < 5:
                with contextlib.suppress(byref.Timeout):
                    got.append(reader.recv(timeout=0.02).sequence)

        # So many that a table of all threads which wait would have to grow.
        threads = [threading.Thread(target=receive) for _ in range(40)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            own.send(bytes(300))
        for thread in threads:
            thread.join()
        return len(got)


def test_forks_beside_threads_that_wait(spawn: Spawn) -> None:
    """No lock has a state elsewhere that another thread may have been changing."""
    parent = spawn(fork_beside_waiting_threads, 15)
    children = []
    while (told := parent.hear()) != "done":
        children.append(told)
    assert len(children) > 5
    assert set(children) == {5}, "each child has received its five messages"
    parent.finish()


def fork_in_a_thread(line: Line, wait: str) -> None:
    """A thread forks; the child waits in byref, and is told to stop by a signal."""
    pub, sub = byref.Publisher("t"), byref.Subscriber("t")
    pub.wait_for_subscribers(timeout=30)

    def fork() -> None:
        child = os.fork()
        if child:
            line.tell(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            return
        topic = f"own/{os.getpid()}"
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with byref.Publisher(topic) as own, byref.Subscriber(topic, depth=1) as reader:
            own.wait_for_subscribers(timeout=30)
            own.send(b"x")
            try:
                line.tell(os.getpid())
                if wait == "send":
                    own.send(b"y")
                elif wait == "wait":
                    own.wait_for_subscribers(2)
                else:
                    reader.recv()
                    reader.recv()
            except KeyboardInterrupt:
                os._exit(7)
            os._exit(1)

    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
    # Nothing happened to the parent.
    pub.send(b"z")
    line.tell(bytes(sub.recv(timeout=30)).decode())


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("wait", ["recv", "send", "wait"])
def test_a_child_that_a_thread_forked_obeys_signals(wait: str, stop: signal.Signals, spawn: Spawn) -> None:
    parent = spawn(fork_in_a_thread, wait)
    child = parent.hear()
    eventually(lambda: state_of(child) == "S", "it waits")
    time.sleep(0.1)
    os.kill(child, stop)
    assert parent.hear() == 7
    assert parent.hear() == "z"
    parent.finish()
