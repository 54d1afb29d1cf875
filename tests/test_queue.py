"""Event queues: what can be called, when, by whom, and what happens when it goes wrong."""

import functools
import gc
import logging
import os
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import byref
import numpy as np
import pytest

from tests.conftest import Endpoints
from tests.payloads import is_payload, payload
from tests.processes import PATIENCE, ROOT, Child, Line, eventually, use_no_processor_time

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

Spawn = Callable[..., Child]


@pytest.fixture
def queue() -> Iterator[byref.EventQueue]:
    """A queue that is closed at the test's end."""
    with byref.EventQueue() as made:
        yield made


def connected(endpoints: Endpoints, topic: str = "t", subscribers: int = 1, **options: Any) -> byref.Publisher:
    """A publisher that its receivers have met."""
    pub = endpoints.publisher(topic, **options)
    pub.wait_for_subscribers(subscribers, timeout=20)
    return pub


def dispatch_until(queue: byref.EventQueue, done: Callable[[], bool]) -> None:
    """Dispatches until something is so."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline
        queue.dispatch(0.05)


# ---- what it is called with ------------------------------------------------------------------------------------------


def send_rows(line: Line, count: int) -> None:
    """Sends `count` messages of 8 bytes one by one, then as many as rows, and the end."""
    with byref.Publisher("t") as pub:
        pub.wait_for_subscribers(timeout=30)
        numbers = np.arange(2 * count, dtype="<u8")
        for number in numbers[:count]:
            pub.send(number.tobytes())
        pub.send_many(numbers[count:])
        pub.flush(timeout=30)
        line.hear()


@pytest.mark.parametrize("batch", [True, 7])
def test_batches(batch: bool | int, queue: byref.EventQueue, spawn: Spawn) -> None:
    batches: list[byref.Batch] = []
    queue.subscribe("t", batches.append, batch=batch)
    publisher = spawn(send_rows, 5000)
    dispatch_until(queue, lambda: sum(map(len, batches)) == 10_000)
    assert max(map(len, batches)) <= (7 if batch == 7 else 1000)
    assert len(batches) < 10_000
    numbers = np.concatenate([batch.array("<u8") for batch in batches])
    assert (numbers == np.arange(10_000)).all()
    publisher.tell()
    publisher.finish()


def test_batch_sizes_that_cannot_be(queue: byref.EventQueue) -> None:
    for wrong in (0, -1, "many"):
        with pytest.raises(ValueError, match="batch must be"):
            queue.subscribe("t", print, batch=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [False, True])
def test_events_come_in_order_with_messages(batch: bool, queue: byref.EventQueue, endpoints: Endpoints) -> None:
    got: list[Any] = []
    queue.subscribe("t", got.append, batch, events=True)
    pub = connected(endpoints)
    pub.send(b"1")
    pub.close()
    dispatch_until(queue, lambda: len(got) == 3)
    joined, between, left = got
    assert (joined.kind, left.kind) == ("joined", "left")
    assert joined.publisher == left.publisher
    assert isinstance(between, byref.Batch if batch else byref.Message)


# ---- what can be called ----------------------------------------------------------------------------------------------


class Sink:
    """Callable in several ways; they all append to the same list."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def method(self, msg: byref.Message) -> None:
        self.got.append(bytes(msg))

    def __call__(self, msg: byref.Message) -> None:
        self.method(msg)

    @staticmethod
    def static(sink: "Sink", msg: byref.Message) -> None:
        sink.method(msg)

    @classmethod
    def of_class(cls, sink: "Sink", msg: byref.Message) -> None:
        sink.method(msg)


def callables(sink: Sink) -> dict[str, Callable[[byref.Message], object]]:
    """Everything that has to work."""

    def function(msg: byref.Message) -> None:
        sink.method(msg)

    class WithCall(Sink):
        pass

    inherited = WithCall()
    inherited.got = sink.got
    return {
        "function": function,
        "lambda": lambda msg: sink.method(msg),
        "bound method": sink.method,
        "instance": sink,
        "instance of a subclass": inherited,
        "partial": functools.partial(Sink.method, sink),
        "partial of a partial": functools.partial(functools.partial(Sink.static), sink),
        "class method": functools.partial(Sink.of_class, sink),
        "class": type("Made", (), {"__init__": lambda _, msg: sink.method(msg)}),
    }


@pytest.mark.parametrize("kind", callables(Sink()))
def test_kinds_of_callables(kind: str, queue: byref.EventQueue, endpoints: Endpoints) -> None:
    sink = Sink()
    receiver = queue.subscribe("t", callables(sink)[kind])
    pub = connected(endpoints)
    for number in range(100):
        pub.send(str(number).encode())
    dispatch_until(queue, lambda: len(sink.got) == 100)
    assert sink.got == [str(number).encode() for number in range(100)]
    assert receiver.topic == "t"
    assert receiver.stats()["callbacks"] == receiver.stats()["received"] == 100


def test_a_built_in_method_gets_the_messages_themselves(queue: byref.EventQueue, endpoints: Endpoints) -> None:
    kept: list[byref.Message] = []
    queue.subscribe("t", kept.append)
    pub = connected(endpoints)
    sent = [payload(seed, size) for seed, size in enumerate((0, 10, 300, 1 << 20))]
    for data in sent:
        pub.send(data)
    dispatch_until(queue, lambda: len(kept) == len(sent))
    assert [bytes(msg) for msg in kept] == [bytes(data) for data in sent]
    queue.close()
    assert is_payload(kept[3], 3, 1 << 20)


def test_a_class_that_changes_its_call_is_asked_once(queue: byref.EventQueue, endpoints: Endpoints) -> None:
    calls: list[str] = []

    class Changing:
        def __call__(self, _msg: byref.Message) -> None:
            calls.append("first")

    queue.subscribe("t", Changing())
    Changing.__call__ = lambda self, _: calls.append("second")  # type: ignore[method-assign]
    connected(endpoints).send(b"")
    dispatch_until(queue, lambda: bool(calls))
    assert calls == ["first"]


@pytest.mark.parametrize("wrong", [None, 7, "name", object()])
def test_what_cannot_be_called_is_refused(wrong: Any, queue: byref.EventQueue) -> None:
    with pytest.raises(TypeError, match="callable"):
        queue.subscribe("t", wrong)


def test_the_options_of_a_subscriber(queue: byref.EventQueue, endpoints: Endpoints) -> None:
    pub = endpoints.publisher(history=10)
    for number in range(20):
        pub.send(np.full(100, number))
    old: list[int] = []
    arrays: list[Any] = []
    queue.subscribe("t", lambda msg: old.append(msg.sequence), history=5)
    latest = queue.subscribe("t", lambda msg: arrays.append(msg.value), policy="latest", writable=True, name="newest")
    pub.wait_for_subscribers(2, timeout=20)
    assert {info.name for info in pub.subscribers} == {None, "newest"}
    assert latest.name == "newest"
    dispatch_until(queue, lambda: len(old) == 5)
    assert old == [15, 16, 17, 18, 19]
    for number in range(30):
        pub.send(np.full(100, number))
    dispatch_until(queue, lambda: len(old) == 35)
    dispatch_until(queue, lambda: bool(arrays))
    arrays[-1][:] = 0  # It is writable.
    assert latest.stats()["lost"] >= 0
    for wrong in ({"policy": "none"}, {"depth": 0}, {"depth": -1}, {"history": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            queue.subscribe("t", old.append, **wrong)  # type: ignore[arg-type]
    with pytest.raises(byref.InvalidTopic):
        queue.subscribe("/t", old.append)


# ---- many topics, publishers and processes ---------------------------------------------------------------------------


def publish_numbers(line: Line, topics: list[str], count: int) -> None:
    """Sends numbers to each topic in turn, small and large ones."""
    publishers = [byref.Publisher(topic) for topic in topics]
    for pub in publishers:
        pub.wait_for_subscribers(timeout=30)
    for number in range(count):
        for pub in publishers:
            pub.send(payload(number, 3000 if number % 5 == 0 else 20), timeout=30)
    for pub in publishers:
        pub.flush(timeout=30)
    line.hear()


def test_many_topics_and_publishers_keep_their_order(queue: byref.EventQueue, spawn: Spawn) -> None:
    topics = [f"topic/{number}" for number in range(6)]
    count, processes = 400, 3
    got: dict[tuple[str, str], list[int]] = defaultdict(list)
    problems: list[int] = []

    def receive(topic: str, msg: byref.Message) -> None:
        assert msg.topic == topic
        number = len(got[topic, msg.publisher.id])
        got[topic, msg.publisher.id].append(msg.sequence)
        if not is_payload(msg, number, 3000 if number % 5 == 0 else 20):
            problems.append(number)

    for topic in topics:
        queue.subscribe(topic, functools.partial(receive, topic))
    children = [spawn(publish_numbers, topics, count) for _ in range(processes)]
    total = len(topics) * count * processes
    dispatch_until(queue, lambda: sum(map(len, got.values())) == total)
    assert len(got) == len(topics) * processes
    assert all(numbers == list(range(count)) for numbers in got.values())
    assert problems == []
    assert queue.stats()["callbacks"] == total
    for child in children:
        child.tell()
        child.finish()


def publish_numbers_until_told(line: Line) -> None:
    """Sends numbers without a pause; when told to, tells how many those were."""
    with byref.Publisher("t") as pub:
        pub.wait_for_subscribers(timeout=30)
        count = 0
        while not line.has_something():
            for number in range(count, count + 20):
                pub.send(payload(number, 3000 if number % 5 == 0 else 20), timeout=30)
            count += 20
        line.hear()
        line.tell(count)
        pub.flush(timeout=30)
        line.hear()


def test_subscribed_under_full_traffic(queue: byref.EventQueue, spawn: Spawn) -> None:
    """Whoever comes late gets whole messages, without a gap, from its first one on."""
    child = spawn(publish_numbers_until_told)
    got: list[list[int]] = []
    wrong: list[int] = []

    def receiver() -> Callable[[byref.Message], None]:
        own: list[int] = []
        got.append(own)

        def receive(msg: byref.Message) -> None:
            number = msg.sequence
            own.append(number)
            if not is_payload(msg, number, 3000 if number % 5 == 0 else 20):
                wrong.append(number)

        return receive

    receivers = [queue.subscribe("t", receiver())]
    deadline = time.monotonic() + PATIENCE
    while len(receivers) < 10 or not all(got) or min(map(len, got)) < 100:
        assert time.monotonic() < deadline, f"{[len(own) for own in got]}"
        queue.dispatch(0.002)
        if len(receivers) < 10 and len(got[0]) > 100:
            receivers.append(queue.subscribe("t", receiver()))
    child.tell()
    while not child.has_something():
        assert time.monotonic() < deadline + PATIENCE
        queue.dispatch(0.002)
    last = child.hear() - 1
    dispatch_until(queue, lambda: all(own[-1] == last for own in got))
    dispatch_until(queue, lambda: queue.stats()["waiting"] == 0)
    assert len(receivers) == 10
    assert wrong == []
    for own in got:
        assert own == list(range(own[0], last + 1))
    child.tell()
    child.finish()


# ---- exceptions ------------------------------------------------------------------------------------------------------


def fails_now_and_then(got: list[int]) -> Callable[[byref.Message], None]:
    """Raises at every third message, after it noted it."""

    def receive(msg: byref.Message) -> None:
        got.append(msg.sequence)
        if msg.sequence % 3 == 1:
            raise LookupError(f"message {msg.sequence}")

    return receive


@pytest.mark.parametrize("how", ["run", "dispatch"])
def test_raise_loses_no_message(how: str, queue: byref.EventQueue, endpoints: Endpoints) -> None:
    got: list[int] = []
    queue.subscribe("t", fails_now_and_then(got))
    pub = connected(endpoints)
    for _ in range(300):
        pub.send(b"")
    raised = 0
    go = functools.partial(queue.run if how == "run" else queue.dispatch, timeout=20)
    while len(got) < 300:
        with pytest.raises(LookupError, match=r"message \d+") as caught:
            go()
        raised += 1
        assert int(str(caught.value).split()[1]) == got[-1]
        assert "topic 't'" in caught.value.__notes__[0]
        assert "fails_now_and_then" in caught.value.__notes__[0]
        if got[-1] == 298:
            dispatch_until(queue, lambda: len(got) == 300)
    assert got == list(range(300))
    assert raised == 100


def test_log_goes_on(endpoints: Endpoints, caplog: pytest.LogCaptureFixture) -> None:
    got: list[int] = []
    with byref.EventQueue(on_error="log", name="logged") as queue:
        receiver = queue.subscribe("t", fails_now_and_then(got))
        pub = connected(endpoints)
        for _ in range(30):
            pub.send(b"")
        dispatch_until(queue, lambda: len(got) == 30)
        assert not receiver.closed
    assert got == list(range(30))
    records = [record for record in caplog.records if record.name == "byref"]
    assert len(records) == 10
    assert all(record.levelno == logging.ERROR and record.exc_info is not None for record in records)
    assert isinstance(records[4].exc_info[1], LookupError)  # type: ignore[index]
    text = records[0].getMessage()
    assert "topic 't'" in text
    assert "fails_now_and_then" in text
    assert "'logged'" in text
    assert "raise LookupError" in caplog.text, "the traceback"


def test_detach_closes_that_receiver(endpoints: Endpoints, caplog: pytest.LogCaptureFixture) -> None:
    got: list[int] = []
    fine: list[int] = []
    with byref.EventQueue(on_error="detach") as queue:
        receiver = queue.subscribe("t", fails_now_and_then(got))
        queue.subscribe("t", lambda msg: fine.append(msg.sequence))
        pub = connected(endpoints, subscribers=2)
        for _ in range(30):
            pub.send(b"")
        dispatch_until(queue, lambda: len(fine) == 30)
        assert receiver.closed
        eventually(lambda: len(pub.subscribers) == 1, "the publisher knows")
    assert got == [0, 1]
    assert "detached" in caplog.text


@pytest.mark.parametrize("on_error", ["log", "detach"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_program_ends_every_run(
    on_error: Any, kind: type[BaseException], endpoints: Endpoints, caplog: pytest.LogCaptureFixture
) -> None:
    def receive(_: byref.Message) -> None:
        raise kind

    with byref.EventQueue(on_error=on_error) as queue:
        queue.subscribe("t", receive)
        connected(endpoints).send(b"")
        with pytest.raises(kind):
            queue.run(timeout=20)
    assert caplog.records == []


def test_settings_that_make_no_sense() -> None:
    for wrong in (
        {"on_error": "ignore"},
        {"slow_callback": 0},
        {"slow_callback": float("nan")},
        {"max_age": -1},
        {"backlog": -1},
        {"name": ""},
    ):
        with pytest.raises(ValueError, match="|".join([*wrong, "name of an event queue"])):
            byref.EventQueue(**wrong)  # type: ignore[arg-type]


# ---- from inside a callback ------------------------------------------------------------------------------------------


def test_subscribing_from_inside(queue: byref.EventQueue, endpoints: Endpoints) -> None:
    got: list[tuple[str, int]] = []
    pub, other = endpoints.publisher(history=100), endpoints.publisher("other", history=100)
    other.send(b"")

    def receive(msg: byref.Message) -> None:
        got.append((msg.topic, msg.sequence))
        if msg.topic == "t" and msg.sequence == 0:
            queue.subscribe("other", receive, history=10)

    queue.subscribe("t", receive)
    pub.wait_for_subscribers(timeout=20)
    pub.send(b"")
    dispatch_until(queue, lambda: len(got) == 2)
    assert got == [("t", 0), ("other", 0)]


def test_closing_itself_from_inside(queue: byref.EventQueue, endpoints: Endpoints) -> None:
    got: list[int] = []

    def receive(msg: byref.Message) -> None:
        got.append(msg.sequence)
        if msg.sequence == 3:
            receiver.close()
            receiver.close()

    receiver = queue.subscribe("t", receive)
    pub = connected(endpoints)
    for _ in range(10):
        pub.send(b"")
    assert queue.dispatch(20) == 4
    assert queue.dispatch(0.05) == 0
    assert got == [0, 1, 2, 3]
    assert receiver.closed
    gone = weakref.ref(receive)
    del receive
    assert gone() is None, "nobody refers to it"


def test_closing_others_from_inside(queue: byref.EventQueue, endpoints: Endpoints) -> None:
    """Whoever comes first closes the other, which is never called, though its messages were there."""
    got: list[str] = []
    receivers: dict[str, byref.Receiver] = {}

    def receive(name: str, _msg: byref.Message) -> None:
        got.append(name)
        for other, receiver in receivers.items():
            if other != name:
                receiver.close()

    for name in ("one", "two", "three"):
        receivers[name] = queue.subscribe("t", functools.partial(receive, name))
    pub = connected(endpoints, subscribers=3)
    for _ in range(200):
        pub.send(b"")
    dispatch_until(queue, lambda: len(got) == 200)
    assert len(set(got)) == 1


def test_stopping_from_inside(queue: byref.EventQueue, endpoints: Endpoints) -> None:
    got: list[int] = []

    def receive(msg: byref.Message) -> None:
        got.append(msg.sequence)
        if msg.sequence % 10 == 9:
            queue.stop()

    queue.subscribe("t", receive)
    pub = connected(endpoints)
    for _ in range(50):
        pub.send(b"")
    for turn in range(5):
        queue.run(timeout=20)
        assert got == list(range(10 * (turn + 1)))


def test_closing_the_queue_from_inside(queue: byref.EventQueue, endpoints: Endpoints) -> None:
    got: list[int] = []

    def receive(msg: byref.Message) -> None:
        got.append(msg.sequence)
        queue.close()

    receiver = queue.subscribe("t", receive)
    pub = connected(endpoints)
    for _ in range(5):
        pub.send(b"")
    queue.run(timeout=20)
    assert got == [0]
    assert receiver.closed
    with pytest.raises(byref.Closed):
        queue.run()


def test_running_from_inside_is_refused(queue: byref.EventQueue, endpoints: Endpoints) -> None:
    problems: list[str] = []

    def receive(_: byref.Message) -> None:
        for call in (queue.run, queue.dispatch, queue.start):
            try:
                call()
            except byref.Error as problem:
                problems.append(str(problem))

    queue.subscribe("t", receive)
    connected(endpoints).send(b"")
    assert queue.dispatch(20) == 1
    assert len(problems) == 3
    assert all("runs already" in problem for problem in problems)


# ---- closing ---------------------------------------------------------------------------------------------------------


def send_when_told(line: Line) -> None:
    """One message on a topic; then some on another."""
    with byref.Publisher("a") as first, byref.Publisher("b") as second:
        first.wait_for_subscribers(timeout=30)
        line.tell("ready")
        line.hear()
        time.sleep(0.2)
        first.send(b"a")
        line.hear()
        second.wait_for_subscribers(timeout=30)
        for number in range(30):
            second.send(str(number).encode())
        line.hear()


def test_a_receiver_is_closed_when_its_message_has_just_woken_the_queue(spawn: Spawn) -> None:
    """The queue's thread waits for the interpreter with it: the turn is nobody's, and the others' go on."""
    sender = spawn(send_when_told)
    got: list[bytes] = []
    with byref.EventQueue() as queue:
        closed = queue.subscribe("a", lambda msg: got.append(bytes(msg)))
        queue.start(daemon=True)
        assert sender.hear() == "ready"
        time.sleep(0.2)  # It sleeps.
        before = sys.getswitchinterval()
        sys.setswitchinterval(100)
        try:
            sender.tell()
            until = time.monotonic() + 1
            while time.monotonic() < until:
                pass  # Nobody else gets the interpreter.
            closed.close()
        finally:
            sys.setswitchinterval(before)
        queue.subscribe("b", lambda msg: got.append(bytes(msg)))
        sender.tell()
        eventually(lambda: len(got) == 30, "the other receiver gets its messages")
        assert got == [str(number).encode() for number in range(30)]
        queue.stop()
    sender.tell()


def test_closing_waits_for_the_callback_of_another_thread(queue: byref.EventQueue, endpoints: Endpoints) -> None:
    entered, leave = threading.Event(), threading.Event()
    seen: list[str] = []

    def receive(_: byref.Message) -> None:
        entered.set()
        leave.wait(20)
        seen.append("callback is over")

    receiver = queue.subscribe("t", receive)
    other = queue.subscribe("other", receive)
    pub = connected(endpoints)
    queue.start()
    pub.send(b"")
    pub.send(b"")
    assert entered.wait(20)
    other.close()  # Nobody calls that one.
    threading.Timer(0.2, leave.set).start()
    receiver.close()
    seen.append("closed")
    time.sleep(0.1)
    assert seen == ["callback is over", "closed"]
    assert receiver.stats()["callbacks"] == 1


def test_ctrl_c_while_closing_waits(queue: byref.EventQueue, endpoints: Endpoints) -> None:
    entered, leave = threading.Event(), threading.Event()

    def receive(_: byref.Message) -> None:
        entered.set()
        leave.wait(20)

    receiver = queue.subscribe("t", receive)
    connected(endpoints).send(b"")
    queue.start()
    assert entered.wait(20)
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        receiver.close()
    leave.set()
    receiver.close()


@pytest.mark.skipif(
    FREE_THREADED and sys.version_info < (3, 14), reason="3.13t keeps every function, and what it refers to, for ever"
)
@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("kind", ["instance", "bound method", "partial", "function"])
def test_the_callable_is_free_after_close(
    kind: str, running: bool, queue: byref.EventQueue, endpoints: Endpoints
) -> None:
    sink = Sink()
    callable_ = callables(sink)[kind]
    gc.collect()  # The kinds that are not used here.
    receiver = queue.subscribe("t", callable_)
    pub = connected(endpoints)
    pub.send(b"")
    if running:
        queue.start()
    else:
        assert queue.dispatch(20) == 1
    got, gone = sink.got, weakref.ref(sink)
    eventually(lambda: len(got) == 1, "it is called")
    del callable_, sink
    assert gone() is not None, "the queue keeps it"
    receiver.close()
    if FREE_THREADED:  # There the interpreter puts off what other threads drop, and leaves functions to the collector.
        eventually(lambda: gc.collect() >= 0 and gone() is None, "nothing of byref keeps it")
    assert gone() is None, "at once, without the garbage collector"
    pub.send(b"")
    if running:
        queue.stop()
    else:
        assert queue.dispatch(0.05) == 0


def test_cycles_through_a_queue_are_collected(endpoints: Endpoints) -> None:
    class Application:
        def __init__(self) -> None:
            self.queue = byref.EventQueue()
            self.receivers = [self.queue.subscribe("t", self.on_message), self.queue.subscribe("t", self)]
            self.got: list[int] = []

        def on_message(self, msg: byref.Message) -> None:
            self.got.append(msg.sequence)

        def __call__(self, msg: byref.Message) -> None:
            self.on_message(msg)

    application = Application()
    pub = connected(endpoints, subscribers=2)
    pub.send(b"")
    application.queue.dispatch(20)
    receiver, gone = application.receivers[0], weakref.ref(application)
    del application
    gc.collect()
    assert gone() is None
    assert receiver.closed
    eventually(lambda: not pub.subscribers, "the publisher is left")


def test_a_queue_with_its_receivers_leaves_nothing_open(endpoints: Endpoints) -> None:
    pub = endpoints.publisher()

    def round_() -> None:
        with byref.EventQueue(name="q") as queue:
            receivers = [queue.subscribe("t", print) for _ in range(5)]
            pub.wait_for_subscribers(5, timeout=20)
            queue.dispatch(0.01)
            receivers[0].close()
        eventually(lambda: not pub.subscribers, "the publisher is left")

    round_()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        round_()
    gc.collect()
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= before, "all descriptors are closed")


def test_a_receiver_without_a_handle_goes_on(queue: byref.EventQueue, endpoints: Endpoints) -> None:
    got: list[int] = []
    queue.subscribe("t", lambda msg: got.append(msg.sequence))
    gc.collect()
    connected(endpoints).send(b"")
    assert queue.dispatch(20) == 1


def test_after_close(queue: byref.EventQueue) -> None:
    receiver = queue.subscribe("t", print)
    fileno = queue.fileno()
    queue.close()
    queue.close()
    receiver.close()
    assert receiver.closed
    assert queue.fileno() == fileno
    for call in (queue.run, queue.dispatch, queue.start, queue.run_async, lambda: queue.subscribe("t", print)):
        with pytest.raises(byref.Closed, match="create a new one"):
            call()
    queue.stop()
    assert queue.stats()["receivers"] == []
    assert "closed" in repr(queue)
    assert "closed" in repr(receiver)
    assert receiver.stats()["received"] == 0


# ---- dispatch --------------------------------------------------------------------------------------------------------


def test_dispatch_without_time_handles_what_waits(queue: byref.EventQueue, endpoints: Endpoints) -> None:
    pub = endpoints.publisher()

    def receive(_: byref.Message) -> None:
        pub.send(b"one more for each")

    receivers = [queue.subscribe("t", receive, depth=5000), queue.subscribe("other", receive)]
    assert queue.dispatch() == 0
    pub.wait_for_subscribers(timeout=20)
    for expected in (1, 70, 300):
        while receivers[0].stats()["waiting"] < expected:
            pub.send(b"")
        waiting = receivers[0].stats()["waiting"]
        assert queue.dispatch() == waiting
        assert receivers[0].stats()["waiting"] == waiting, "what came meanwhile is left"


def test_dispatch_returns_when_nothing_is_left(queue: byref.EventQueue, endpoints: Endpoints) -> None:
    queue.subscribe("t", lambda _: None)
    pub = connected(endpoints)
    for _ in range(500):
        pub.send(b"")
    handled = 0
    while handled < 500:  # A timeout of ten minutes is none to wait for.
        handled += queue.dispatch(600)
    assert handled == 500
    threading.Timer(0.1, pub.send, (b"",)).start()
    assert queue.dispatch(None) == 1


def test_dispatch_begins_nothing_after_its_time(queue: byref.EventQueue, endpoints: Endpoints) -> None:
    queue.subscribe("t", lambda _: time.sleep(0.02))
    pub = connected(endpoints)
    for _ in range(100):
        pub.send(b"")
    eventually(lambda: queue.stats()["waiting"] == 100, "all wait")
    handled = queue.dispatch(0.1)
    assert 1 <= handled <= 6, "each takes a fifth of it, or longer on a busy machine"
    assert queue.stats()["waiting"] == 100 - handled


def test_the_descriptor_of_a_queue(queue: byref.EventQueue, endpoints: Endpoints) -> None:
    import select

    got: list[str] = []
    poller = select.poll()
    poller.register(queue.fileno(), select.POLLIN)
    topics = ["a", "b", "c"]
    for topic in topics:
        queue.subscribe(topic, lambda msg: got.append(msg.topic))
    publishers = [connected(endpoints, topic) for topic in topics]
    for round_ in range(100):
        pub = publishers[round_ * 7 % 3]
        pub.send(b"")
        if round_ % 2:
            pub.send(b"")
        expected = len(got) + 1 + round_ % 2
        deadline = time.monotonic() + 20
        while len(got) < expected:
            assert poller.poll(1000 * (deadline - time.monotonic()))
            queue.dispatch()
    while poller.poll(0):  # Bells of the past.
        assert queue.dispatch() == 0
    late = queue.subscribe("a", lambda msg: got.append("late"), name="late")
    assert poller.poll(0), "it is to be looked at"
    while not late.stats()["received"]:
        publishers[0].send(b"")
        poller.poll(100)
        queue.dispatch()


# ---- run, stop, threads ----------------------------------------------------------------------------------------------


def test_timeout_when_nothing_comes(queue: byref.EventQueue, endpoints: Endpoints) -> None:
    got: list[int] = []
    with pytest.raises(byref.Timeout, match="0 receivers"):
        queue.run(timeout=0.01)
    queue.subscribe("t", lambda msg: got.append(msg.sequence))
    for timeout in (0, 0.05):
        with pytest.raises(byref.Timeout, match="1 receivers of this event queue"):
            queue.run(timeout=timeout)
    pub = connected(endpoints)

    def send() -> None:
        for _ in range(5):
            pub.send(b"")
            time.sleep(0.15)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(byref.Timeout):  # Each message starts the time anew.
        queue.run(timeout=1.5)
    sender.join()
    assert got == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="timeout"):
        queue.run(timeout=-1)


def test_stop_before_run(queue: byref.EventQueue, endpoints: Endpoints) -> None:
    queue.subscribe("t", lambda _: None)
    connected(endpoints).send(b"")
    queue.stop()
    queue.stop()
    queue.run()  # Returns at once, before any message.
    assert queue.stats()["callbacks"] == 0
    assert queue.dispatch(20) == 1


def test_stop_from_another_thread(queue: byref.EventQueue) -> None:
    queue.subscribe("t", print)
    for _ in range(3):
        threading.Timer(0.05, queue.stop).start()
        queue.run()


def test_close_from_another_thread_ends_run(queue: byref.EventQueue) -> None:
    queue.subscribe("t", print)
    threading.Timer(0.05, queue.close).start()
    queue.run()


def test_a_thread_of_its_own(queue: byref.EventQueue, endpoints: Endpoints) -> None:
    threads: set[int] = set()
    count = 0

    def receive(_: byref.Message) -> None:
        nonlocal count
        count += 1
        threads.add(threading.get_ident())

    queue.subscribe("t", receive)
    pub = connected(endpoints)
    ended: list[Any] = []
    stopped = threading.Event()
    thread = queue.start(on_exit=ended.append, stop_event=stopped)
    assert not thread.daemon
    for call in (queue.run, queue.start, queue.dispatch):
        with pytest.raises(byref.Error, match="runs already"):
            call()
    for _ in range(1000):
        pub.send(b"")
    eventually(lambda: count == 1000, "all are received")
    assert threads == {thread.ident}
    assert not stopped.is_set()
    queue.stop()
    thread.join(20)
    assert stopped.is_set()
    assert ended == [None]
    again = queue.start(daemon=True)
    assert again.daemon
    pub.send(b"")
    eventually(lambda: count == 1001, "it goes on")
    queue.close()
    again.join(20)
    assert not again.is_alive()


def test_a_stop_event_of_the_users(queue: byref.EventQueue, endpoints: Endpoints) -> None:
    queue.subscribe("t", lambda _: None)
    pub = connected(endpoints)
    for busy in (False, True):
        stopping, over = threading.Event(), threading.Event()
        thread = queue.start(stop_event=stopping)

        def send(over: threading.Event = over) -> None:
            while not over.is_set():
                pub.send(b"")

        sender = threading.Thread(target=send)
        if busy:
            sender.start()
        time.sleep(0.1)
        assert thread.is_alive()
        stopping.set()
        thread.join(20)
        assert not thread.is_alive()
        over.set()
        if busy:
            while sender.is_alive():  # It may wait for room.
                queue.dispatch()
            sender.join()


def test_an_exception_ends_the_thread(queue: byref.EventQueue, endpoints: Endpoints) -> None:
    got: list[int] = []
    queue.subscribe("t", fails_now_and_then(got))
    pub = connected(endpoints)
    ended: list[Any] = []
    stopped = threading.Event()
    thread = queue.start(on_exit=ended.append, stop_event=stopped)
    pub.send(b"")
    pub.send(b"")
    pub.send(b"")
    assert stopped.wait(20)
    thread.join(20)
    assert isinstance(ended[0], LookupError)
    assert got == [0, 1]
    queue.start()
    eventually(lambda: got == [0, 1, 2], "it goes on with the next message")
    queue.stop()


def test_an_exception_without_on_exit_is_shown(queue: byref.EventQueue, endpoints: Endpoints) -> None:
    shown: list[Any] = []
    before = threading.excepthook
    threading.excepthook = lambda args: shown.append(args.exc_value)
    try:
        queue.subscribe("t", fails_now_and_then([]))
        pub = connected(endpoints)
        thread = queue.start()
        pub.send(b"")
        pub.send(b"")
        thread.join(20)
        assert not thread.is_alive()
    finally:
        threading.excepthook = before
    assert [type(one) for one in shown] == [LookupError]


# A built-in function that takes longer than sending, so that the queue never runs empty.
SLOW_BUILT_IN = list(range(500)).__contains__


def send_without_pause(line: Line) -> None:
    """Sends faster than anybody calls, until it is told to stop."""
    with byref.Publisher("t") as pub:
        pub.wait_for_subscribers(timeout=30)
        while not line.has_something():
            for _ in range(1000):
                pub.send(b"")


def test_other_threads_have_their_turns(queue: byref.EventQueue, spawn: Spawn) -> None:
    """A callable that never enters the interpreter's loop does not keep it from other threads."""
    queue.subscribe("t", SLOW_BUILT_IN)
    child = spawn(send_without_pause)
    queue.start()
    eventually(lambda: queue.stats()["callbacks"] > 1000, "it is busy")
    for _ in range(50):
        time.sleep(0.001)
    child.tell()
    child.finish()


def run_and_be_interrupted(line: Line) -> None:
    """Runs a queue, idle and busy, until Ctrl-C; tells how long that took."""
    from tests.test_signals import ROUNDS, interrupt_soon

    with byref.EventQueue() as queue, byref.Publisher("t") as pub:
        count = 0

        def receive(_: byref.Message) -> None:
            nonlocal count
            count += 1
            if count < 0:
                pub.send(b"")

        queue.subscribe("t", receive)
        pub.wait_for_subscribers(timeout=20)
        for _ in range(ROUNDS):
            sent: list[float] = []
            try:
                interrupt_soon(sent)
                queue.run()
                line.tell("returned")
            except KeyboardInterrupt:
                line.tell(time.monotonic() - sent[0])
        before = count
        pub.send(b"")
        line.tell(queue.dispatch(20) + count - before)


def test_ctrl_c_within_100_ms(spawn: Spawn) -> None:
    """The promise about time that all waits share."""
    from tests.test_signals import ROUNDS, typical

    child = spawn(run_and_be_interrupted)
    took = [child.hear() for _ in range(ROUNDS)]
    assert all(isinstance(one, float) for one in took), took
    assert typical(took) < 0.1, took
    assert child.hear() == 2
    child.finish()


def test_ctrl_c_under_load_of_a_built_in(queue: byref.EventQueue, spawn: Spawn) -> None:
    """Built-in functions give signal handlers no occasion; the queue does."""
    queue.subscribe("t", SLOW_BUILT_IN)
    child = spawn(send_without_pause)
    assert queue.dispatch(30) > 0
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        queue.run()
    child.tell()
    queue.start()
    child.finish()


EXITS = {
    "daemon, idle": "queue.start(daemon=True); time.sleep(0.1)",
    "daemon, busy": "queue.start(daemon=True); threading.Thread(target=send, daemon=True).start(); time.sleep(0.3)",
    "stopped at exit": "queue.start(); threading.Timer(0.2, queue.stop).start()",
    "closed at exit": "import atexit; atexit.register(queue.close); queue.start(daemon=True)",
    "never run": "pass",
    "in a cycle": "cycle = [queue]; cycle.append(cycle); queue.subscribe('t', cycle.append)",
}


@pytest.mark.parametrize("how", EXITS)
def test_the_interpreter_exits(how: str) -> None:
    program = f"""
import byref, threading, time
pub = byref.Publisher("t")
queue = byref.EventQueue(name="exits")
queue.subscribe("t", lambda msg: None)
pub.wait_for_subscribers(timeout=20)
def send():
    while True:
        pub.send(bytes(100))
{EXITS[how]}
print("end")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


# ---- fork, idle ------------------------------------------------------------------------------------------------------


def fork_with_a_queue(line: Line) -> None:
    """The child can do nothing with its parent's queue, and everything with its own."""
    queue = byref.EventQueue(name="parent's")
    receiver = queue.subscribe("t", print)
    calls: dict[str, Callable[[], object]] = {
        "run": queue.run,
        "dispatch": queue.dispatch,
        "start": queue.start,
        "stop": queue.stop,
        "subscribe": lambda: queue.subscribe("t", print),
        "fileno": queue.fileno,
        "stats": queue.stats,
        "receiver's stats": receiver.stats,
    }
    child = os.fork()
    if not child:
        outcomes = {}
        for name, call in calls.items():
            try:
                outcomes[name] = repr(call())
            except Exception as problem:
                outcomes[name] = type(problem).__name__
        receiver.close()
        queue.close()
        own = byref.EventQueue(name="child's")
        got: list[bytes] = []
        own.subscribe("t", lambda msg: got.append(bytes(msg)))
        with byref.Publisher("t") as pub:
            pub.wait_for_subscribers(2, timeout=20)
            pub.send(b"hello")
            while not got:
                own.dispatch(1)
        line.tell(outcomes)
        os._exit(0)
    os.waitpid(child, 0)
    line.tell(queue.dispatch(20))
    eventually(lambda: [one["name"] for one in byref.monitors()] == ["parent's"], "the child's is gone")
    queue.close()


def test_a_forked_child(spawn: Spawn) -> None:
    child = spawn(fork_with_a_queue)
    outcomes = child.hear()
    assert set(outcomes.values()) == {"Forked"}, outcomes
    assert child.hear() == 1
    child.finish()


def idle_queue(line: Line, receivers: int, thresholds: bool) -> None:
    """Has many receivers and nothing to do."""
    options: dict[str, Any] = {"slow_callback": 1.0, "backlog": 100, "max_age": 1.0} if thresholds else {}
    got: list[int] = []
    with byref.EventQueue(name="idle", **options) as queue:
        for number in range(receivers):
            queue.subscribe(f"t/{number}", lambda msg: got.append(msg.sequence))
        publishers = [byref.Publisher(f"t/{number}") for number in range(receivers)]
        for pub in publishers:
            pub.wait_for_subscribers(timeout=60)
            pub.send(b"")
        queue.start()
        eventually(lambda: len(got) == receivers, "all have been awake")
        line.tell("idle")
        line.hear(90)
        for pub in publishers:
            pub.send(b"")
        eventually(lambda: len(got) == 2 * receivers, "all wake up")


@pytest.mark.parametrize("thresholds", [False, True])
def test_an_idle_queue_uses_no_processor_time(thresholds: bool, spawn: Spawn) -> None:
    child = spawn(idle_queue, 100, thresholds)
    assert child.hear() == "idle"
    assert use_no_processor_time([child.pid])
    child.tell()
    child.finish()
