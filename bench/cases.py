"""What is measured, with which systems, and what byref is to reach."""

import itertools
import os
import socket
import statistics
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from bench import rust
from bench.contents import CONTENTS
from bench.metrics import Case, Metric, Target, at_least, at_most
from bench.peers import BATCH, Address, BlockingPeer, ObjectPeer, load
from bench.roles import (
    BURST,
    SIZE,
    broadcasts,
    coroutines,
    crowds,
    graphs,
    idle,
    jobs,
    loans,
    memory,
    objects,
    requests,
    rows,
    scalars,
    streams,
    topics,
    trips,
)
from bench.trials import Role, Trial, run_alone, run_pair, run_star

KIB, MIB = 1 << 10, 1 << 20

BLOCKING = ("byref", "pyzmq", "pyomq", "zenoh", "iceoryx2", "multiprocessing")
ALL = (*BLOCKING, "ezmsg", "dora")
RUST_SUBSCRIBER = "Rust subscriber"
CACHE_LINE = "cache line"
MEMCPY = "memcpy"
PYARROW = "pyarrow alone"
EXECUTOR = "concurrent.futures"

SEEDS = "seeds"
"""The group of cases in which programs of other systems run on byref."""

RATES, TRIPS = "million messages per second (longer is better)", "round trip, median in µs (shorter is better)"
"""The panels of the chart."""


def _with_roles(system: str, run: Callable[..., Any], *arguments: Any) -> Any:
    """Let `run` call roles with a system and a new address, while the system's service runs."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = Address(f"byref-bench-{os.getpid()}-{next(_trial_numbers)}", port)
    with load(system).service(address):
        return run(system, address, *arguments)


_trial_numbers = itertools.count()


def _pair(first: Role, second: Role, system: str, *arguments: Any) -> tuple[Any, Any]:
    return _with_roles(system, partial(run_pair, first, second), *arguments)


def _stream(sender: Role, receiver: Role, system: str, length: int, *arguments: Any, each: float = 1e-6) -> Trial:
    """A stream of messages; its rate, where each of the `length` counts for so much."""
    start, end = _pair(sender, receiver, system, length, *arguments)
    seconds = (end - start) / 1e9
    return Trial(seconds, (each * length / seconds,))


def _iterated(system: str, length: int, content: str = "same") -> Trial:
    if isinstance(load(system), BlockingPeer):
        return _stream(streams.send_stream, streams.receive_stream, system, length, content)
    return _stream(coroutines.send_stream, coroutines.receive_stream, system, length)


def _sized(system: str, length: int, size: int) -> Trial:
    return _stream(streams.send_stream, streams.receive_stream, system, length, "same", size, each=size / 1e9)


def _awaited(system: str, length: int) -> Trial:
    sender = streams if isinstance(load(system), BlockingPeer) else coroutines
    return _stream(sender.send_stream, coroutines.receive_stream, system, length)


def _objects(system: str, length: int, name: str, each: float = 1e-6) -> Trial:
    roles = objects if isinstance(load(system), ObjectPeer) else coroutines
    return _stream(roles.send_objects, roles.receive_objects, system, length, name, each=each)


def _tables(system: str, length: int) -> Trial:
    gigabytes = CONTENTS["table"].nbytes / 1e9
    if system == MEMCPY:
        return _alone(objects.copy_memory, length, gigabytes, CONTENTS["table"].nbytes)
    return _objects(system, length, "table", gigabytes)


def _alone(role: Role, length: int, each: float, *arguments: Any) -> Trial:
    """What one process does `length` times; its rate, as of `_stream`."""
    seconds = run_alone(role, length, *arguments)
    return Trial(seconds, (each * length / seconds,))


def _batches_of_arrow(system: str, length: int) -> Trial:
    if system == PYARROW:
        return _alone(objects.import_batches, length, 1e-3)
    return _objects(system, length, "batch", 1e-3)


def _scalars(system: str, length: int) -> Trial:
    seconds, ratios = _with_roles(system, partial(run_alone, scalars.compare), length)
    return Trial(seconds, tuple(ratios))


def _called(system: str, length: int, kind: str = "function") -> Trial:
    return _stream(streams.send_stream, partial(streams.receive_called, kind=kind), system, length)


_OTHER_CALLABLES = ("bound method", "partial", "instance")


def _callables(system: str, length: int) -> Trial:
    iterated, function = _iterated(system, length), _called(system, length)
    others = [_called(system, length, kind) for kind in _OTHER_CALLABLES]
    iterator_rate, function_rate = iterated.values[0], function.values[0]
    more = 1e3 / function_rate - 1e3 / iterator_rate
    ratios = (other.values[0] / function_rate for other in others)
    return Trial(function.seconds, (iterator_rate, function_rate, more, *ratios))


def _batches(system: str, length: int) -> Trial:
    return _stream(rows.send_rows, rows.receive_rows, system, length, each=BATCH / 1e6)


def _from_rust(system: str, length: int) -> Trial:
    if system == RUST_SUBSCRIBER:
        return rust.trial("rate", "byref", length)
    receive = partial(rows.receive_rows_from_rust, rust.program())
    return _with_roles(system, partial(run_alone, receive), length)


def _bursts(system: str, length: int) -> Trial:
    costs, _ = _pair(streams.send_bursts, streams.receive_bursts, system, length)
    return Trial(sum(costs) * BURST / 1e9, (statistics.median(costs),))


def _round_trip(system: str, length: int, size: int, pause: float = 0) -> Trial:
    roles = trips if isinstance(load(system), BlockingPeer) else coroutines
    times, _ = _pair(roles.ping, roles.pong, system, length, size, pause)
    return Trial(sum(times) / 1e9, (_microseconds(times, 50), _microseconds(times, 99)))


def _requests(system: str, length: int, size: int) -> Trial:
    times, _ = _pair(requests.ask, requests.answer, system, length, size)
    return Trial(sum(times) / 1e9, (_microseconds(times, 50), _microseconds(times, 99)))


def _requests_of_many(system: str, length: int) -> Trial:
    run = partial(run_star, requests.answer_all, requests.ask_among_others, requests.CLIENTS)
    rate, p99 = _with_roles(system, run, length, SIZE)
    return Trial(length * requests.CLIENTS / rate, (rate / 1e3, p99))


_RECEIVERS = (1, 4, 16)


def _fan_out(system: str, length: int) -> Trial:
    costs = [_pair(crowds.send_to_many, crowds.poll_by_many, system, length, n)[0] for n in _RECEIVERS]
    return Trial(sum(costs) * length * BURST / 1e9, (*costs, costs[-1] / costs[0]))


_SLEEPERS = (1, 10, 100)


def _sleepers(system: str, length: int) -> Trial:
    times = [_pair(broadcasts.send_to_sleepers, broadcasts.sleep, system, length, n)[0] for n in _SLEEPERS]
    return Trial(sum(map(sum, times)) / 1e9, tuple(_microseconds(each, 50) for each in times))


def _burst(system: str, length: int) -> Trial:
    receivers = _SLEEPERS[-1]
    start, end = _pair(broadcasts.send_burst, broadcasts.receive_burst, system, length, receivers)
    return Trial((end - start) / 1e9, (1e3 * length * receivers / (end - start),))


_PACED_READERS = (1, 4)


def _beside(system: str, length: int, size: int, others: str) -> Trial:
    values: list[float] = []
    for readers in _PACED_READERS:
        sent, received = _pair(broadcasts.send_paced, broadcasts.receive_paced, system, length, size, readers, others)
        times = [end - start for ends in received for start, end in zip(sent, ends, strict=True)]
        values += (_microseconds(times, 50), _microseconds(times, 99), statistics.quantiles(times, n=1000)[-1] / 1e3)
    return Trial(len(_PACED_READERS) * length * broadcasts.PACE, tuple(values))


_SENDERS = 8


def _fan_in(system: str, length: int) -> Trial:
    def stream(senders: int) -> tuple[float, float]:
        run = partial(run_star, crowds.receive_from_many, crowds.send_among_many, senders)
        count = length // senders
        nanoseconds, unfairness = _with_roles(system, run, count)
        return 1e3 * count * senders / nanoseconds, unfairness

    (one, _), (many, unfairness) = stream(1), stream(_SENDERS)
    return Trial(length / many / 1e6, (one, many, many / one, unfairness))


def _jobs(system: str, length: int) -> Trial:
    run = partial(run_star, jobs.push, jobs.work, jobs.WORKERS, system)
    address = Address(f"byref-bench-{os.getpid()}-{next(_trial_numbers)}", 0)
    if system != EXECUTOR:
        with load(system).service(address):
            seconds = run(address, length)
    else:
        seconds = run(address, length)
    return Trial(seconds, (length / seconds / 1e6,))


def _graph(system: str, length: int, size: int, receivers: int, stages: int = 0) -> Trial:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = Address("", port)
    with load("ezmsg").service(address):
        took = run_star(graphs.publish, graphs.receive, receivers, system, address, length, size, stages)
    return Trial(took / 1e9, (1e6 * length / took,))


_LOAN_SIZES = (4 * KIB, 64 * KIB, MIB, 16 * MIB)


def _delivery(system: str, length: int) -> Trial:
    values = []
    for size in _LOAN_SIZES:
        starts, ends = _pair(loans.send_loaned, loans.poll_loaned, system, length, size)
        values.append(_microseconds([end - start for start, end in zip(starts, ends, strict=True)], 50))
    return Trial(len(values) * length * loans.PACE_NS / 1e9, (*values, values[-1] / values[0]))


def _idle(system: str, length: int) -> Trial:
    percent, _ = _pair(idle.watch_idle, idle.stay_idle, system, length)
    return Trial(length, (percent,))


_QUEUED_RECEIVERS = 100


def _idle_queue(system: str, length: int) -> Trial:
    percent, _ = _pair(idle.watch_idle, idle.stay_idle_in_queue, system, length, _QUEUED_RECEIVERS)
    return Trial(length, (percent,))


_TOPICS = 1000


def _memory(system: str, length: int) -> Trial:
    stages = _pair(memory.publish_on_many, memory.subscribe_to_many, system, length, _TOPICS)
    return Trial(length, tuple(sum(each) / MIB for each in zip(*stages, strict=True)))


_QUEUED_TOPICS = 800


def _crowded_queue(system: str, length: int) -> Trial:
    _, nanoseconds = _pair(topics.feed_queue, topics.time_queue, system, length, _QUEUED_TOPICS)
    return Trial(nanoseconds[0] * length / 1e9, tuple(each / 1e3 for each in nanoseconds))


def _many_topics(system: str, length: int) -> Trial:
    took = _pair(topics.publish_on_all, topics.receive_from_all, system, length)
    return Trial(sum(took), took)


def _microseconds(nanoseconds: Iterable[int], percentile: int) -> float:
    """A percentile of times, in microseconds."""
    return statistics.quantiles(nanoseconds, n=100, method="inclusive")[percentile - 1] / 1e3


def _size(size: int) -> str:
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB" if size >= KIB else f"{size} B"


def _rate(targets: tuple[Target, ...] = ()) -> tuple[Metric]:
    return (Metric("rate", "M msg/s", targets),)


def _times(*targets: Target) -> tuple[Metric, Metric]:
    return Metric("p50", "µs", targets), Metric("p99", "µs")


def _sized_rate(size: int) -> Case:
    title = f"iterator, {_size(size)}, copied in by send"
    return Case(
        f"rate-{size}", title, (Metric("rate", "GB/s"),), partial(_sized, size=size), BLOCKING, length=200 * MIB // size
    )


def _round_trips(size: int, systems: tuple[str, ...], *targets: Target) -> Case:
    title = f"round trip, {_size(size)}, back to back"
    trial = partial(_round_trip, size=size)
    return Case(f"round-trip-{size}", title, _times(*targets), trial, systems, length=200, chart=TRIPS)


def _of_ezmsg(name: str, title: str, bound: float, size: int, length: int, **places: int) -> Case:
    return Case(
        f"ezmsg-{name}",
        f"a program of ezmsg, with and without byref's adapter: {title}",
        (Metric("rate", "thousand msg/s", at_least(bound, "ezmsg")),),
        partial(_graph, size=size, **places),
        ("byref", "ezmsg"),
        length=length,
        note="all are processes; recv(), for which ezmsg alone makes a deep copy; 32 buffers, ezmsg's default",
        group=SEEDS,
    )


def _paced(size: int, others: str) -> Case:
    figures = [
        Metric(f"{n} reader{'s' * (n > 1)}, {name}", "µs", at_most(1, "pyzmq", "iceoryx2") if name != "p99.9" else ())
        for n in _PACED_READERS
        for name in ("p50", "p99", "p99.9")
    ]
    title, note = {
        "a stream": (f"a stream of {SIZE} B between two other processes", "the stream is the system's own"),
        "busy loops": ("two processes that never sleep", "more processes than processors want to run, on two of these"),
    }[others]
    return Case(
        f"beside-{others.split()[-1]}-{size}",
        f"{_size(size)} at 1 kHz beside {title}, from send to receipt",
        tuple(figures),
        partial(_beside, size=size, others=others),
        ("byref", "pyzmq", "iceoryx2"),
        length=2_000,
        adaptive=False,
        note=f"{note}; iceoryx2's readers poll",
    )


def _parts(name: str, way: str) -> Case:
    return Case(
        "parts" if name == "parts" else "parts-pickled",
        f"dict of ten arrays of 1 MiB, {way}",
        (Metric("rate", "msg/s", at_least(5, "multiprocessing", "ezmsg")),),
        partial(_objects, name=name, each=1),
        ("byref", "multiprocessing", "ezmsg"),
        length=50,
        note="multiprocessing: a pickle of one piece; ezmsg: a pickle with its buffers beside it, in shared memory",
    )


CASES = (
    Case(
        "rate",
        "iterator, one buffer sent over and over",
        _rate(at_least(10, "pyzmq", "pyomq")),
        _iterated,
        ALL,
        length=20_000,
        chart=RATES,
    ),
    Case(
        "rate-built",
        "iterator, packed by the sender, unpacked and summed when received",
        _rate(at_least(4, "pyzmq", "pyomq")),
        partial(_iterated, content="built"),
        (*BLOCKING, "dora"),
        length=20_000,
        chart=RATES,
    ),
    Case(
        "callback",
        "callback, a plain function",
        _rate(at_least(6, "pyzmq")),
        _called,
        BLOCKING,
        length=20_000,
        note="byref: EventQueue; the others: a loop that calls the function, which is faster than zenoh's own callback",
        chart=RATES,
    ),
    Case(
        "callables",
        "callback, what is called",
        (
            *(Metric(name, "M msg/s") for name in ("iterator", "function")),
            Metric("function, more than iterator", "ns", at_most(150)),
            *(Metric(f"{name} : function", "", at_least(0.8)) for name in _OTHER_CALLABLES),
        ),
        _callables,
        ("byref",),
        length=20_000,
        note="what is called counts the messages, which the iterator need not; its time is part of the difference",
    ),
    Case(
        "batch",
        "rows of an array sent as messages, received as NumPy arrays",
        _rate(at_least(70, "pyzmq")),
        _batches,
        ("byref", "pyzmq", "pyomq"),
        length=20,
        note="byref: send_many and recv_batch; the others have no such calls: one by one, joined to arrays",
        chart=RATES,
    ),
    Case(
        "rust-to-python",
        "sent one by one from Rust, received as NumPy arrays",
        _rate(at_least(0.9, RUST_SUBSCRIBER)),
        _from_rust,
        ("byref", RUST_SUBSCRIBER),
        length=200_000,
    ),
    Case(
        "asyncio",
        "asyncio, async for",
        _rate(at_least(5, "pyzmq")),
        _awaited,
        ("byref", "pyzmq", "pyomq", "ezmsg"),
        length=20_000,
        note="byref, pyzmq, pyomq: the sender is not asynchronous",
        chart=RATES,
    ),
    _sized_rate(4 * KIB),
    _sized_rate(MIB),
    Case(
        "arrow-table",
        "Arrow table of 100 MB",
        (Metric("rate", "GB/s", (*at_least(0.8, MEMCPY), *at_least(3, "pyzmq"), *at_least(3, "dora"))),),
        _tables,
        ("byref", "pyzmq", "dora", MEMCPY),
        length=10,
        note="pyzmq: Arrow's IPC stream; dora: a message for each of the table's 8 chunks",
    ),
    _parts("parts", "by send"),
    _parts("pickle", "by send_pickle"),
    Case(
        "arrow-batch",
        "Arrow record batch of 1 KiB",
        (Metric("rate", "thousand msg/s", (*at_least(0.5, PYARROW), *at_least(20, "dora"))),),
        _batches_of_arrow,
        ("byref", "pyzmq", "dora", PYARROW),
        length=5_000,
        note="pyzmq: Arrow's IPC message, without the schema, which its receiver has to know",
    ),
    Case(
        "scalars",
        "containers of Python's scalars, send and value, compared with send_pickle and value",
        (
            *(Metric(f"{name} : the same as a pickle", "", at_most(1)) for name in scalars.VALUES),
            Metric("pandas DataFrame : pyarrow.Table.from_pandas alone", "", at_most(1.25)),
        ),
        _scalars,
        ("byref",),
        length=30,
        adaptive=False,
        note="sender and receiver are one process; of the data frame nearly all of the time is that of its export",
    ),
    Case(
        "send",
        f"send, in bursts of {BURST} while the receiver receives",
        (Metric("p50", "ns", at_most(0.1, "pyzmq")),),
        _bursts,
        BLOCKING,
        length=400,
        adaptive=False,
    ),
    _round_trips(SIZE, ALL, *at_most(0.1, "pyzmq")),
    Case(
        "round-trip-paced",
        f"round trip, {_size(SIZE)}, with 1 ms between two",
        _times(*at_most(1, "pyzmq"), *at_most(1, "multiprocessing")),
        partial(_round_trip, size=SIZE, pause=0.001),
        ALL,
        length=600,
        adaptive=False,
        note="both sides sleep between two, but for iceoryx2, which polls",
        chart=TRIPS,
    ),
    _round_trips(4 * KIB, BLOCKING),
    _round_trips(MIB, BLOCKING),
    Case(
        "request",
        f"request and reply, {_size(SIZE)}, back to back",
        _times(*at_most(0.1, "pyzmq")),
        partial(_requests, size=SIZE),
        requests.SYSTEMS,
        length=1_000,
        note="pyzmq: REQ and REP",
    ),
    Case(
        f"request-{MIB}",
        f"request and reply of {_size(MIB)}, back to back, built in loans",
        _times(*at_most(0.2, "pyzmq")),
        partial(_requests, size=MIB),
        requests.SYSTEMS,
        length=200,
        note="pyzmq: REQ and REP, of buffers that are there, copy=False",
    ),
    Case(
        "request-clients",
        f"requests of {requests.CLIENTS} clients at once to one server, {_size(SIZE)}",
        (Metric("rate", "thousand requests per second", at_least(4, "pyzmq")), Metric("p99", "µs")),
        _requests_of_many,
        requests.SYSTEMS,
        length=500,
        adaptive=False,
        note="pyzmq: REQ and ROUTER",
    ),
    Case(
        "fan-out",
        f"send to awake subscribers, {SIZE} B, CPU time of the sending thread",
        (
            *(Metric(f"{n} subscriber{'s' * (n > 1)}", "ns") for n in _RECEIVERS),
            Metric(f"{_RECEIVERS[-1]} : {_RECEIVERS[0]}", "", at_most(2)),
        ),
        _fan_out,
        ("byref",),
        length=100,
        adaptive=False,
        note="byref alone: in the others, much of the work is done by other threads or the kernel",
    ),
    Case(
        "sleepers",
        f"send to sleeping subscribers, each a process, {SIZE} B: wall time of send, p50",
        tuple(
            Metric(f"{n} subscriber{'s' * (n > 1)}", "µs", at_most(bound))
            for n, bound in zip(_SLEEPERS, (25, 60, 300), strict=True)
        ),
        _sleepers,
        ("byref", "pyzmq"),
        length=100,
        adaptive=False,
        note="pyzmq: XPUB; its send hands over to another thread, which wakes the subscribers",
    ),
    Case(
        "burst",
        f"burst of messages to {_SLEEPERS[-1]} subscribers that slept, each a process",
        (Metric("deliveries", "M msg/s", at_least(1.5, "pyzmq")),),
        _burst,
        ("byref", "pyzmq"),
        length=5_000,
        adaptive=False,
        note="from the first send until the last subscriber has received all",
    ),
    *(_paced(size, others) for others in ("a stream", "busy loops") for size in (SIZE, MIB)),
    Case(
        "fan-in",
        f"{_SENDERS} publishers, one subscriber",
        (
            Metric("one publisher", "M msg/s"),
            Metric(f"{_SENDERS} publishers", "M msg/s"),
            Metric(f"{_SENDERS} : 1", "", at_least(0.7)),
            Metric("farthest off a fair share", "%", at_most(20)),
        ),
        _fan_in,
        ("byref", "pyzmq", "pyomq"),
        length=40_000,
        note=f"all {_SENDERS} publishers are processes; shares while all have messages waiting",
    ),
    Case(
        "jobs",
        f"empty jobs to {jobs.WORKERS} processes, each acknowledged when it is done",
        (
            Metric(
                "rate",
                "M jobs/s",
                (
                    *at_least(4, "pyzmq"),
                    *at_least(20, "multiprocessing"),
                    *at_least(50, EXECUTOR),
                ),
            ),
        ),
        _jobs,
        ("byref", "pyzmq", "multiprocessing", EXECUTOR),
        length=5_000,
        note=f"at most {jobs.PENDING} are unfinished; byref: Pusher and Puller with prefetch={jobs.PREFETCH}; "
        "pyzmq: PUSH/PULL, and acknowledgements on a second pair; multiprocessing: Pool.imap_unordered; "
        "concurrent.futures: submit",
    ),
    Case(
        "delivery",
        "loan.send() to try_recv(), filled beforehand, not touched by the receiver, which polls",
        (
            *(Metric(_size(size), "µs") for size in _LOAN_SIZES),
            Metric(f"{_size(_LOAN_SIZES[-1])} : {_size(_LOAN_SIZES[0])}", "", at_most(1.5)),
        ),
        _delivery,
        ("byref",),
        length=200,
        adaptive=False,
    ),
    Case(
        "idle",
        "subscriber to which nothing comes",
        (Metric("CPU", "%", at_most(0)),),
        _idle,
        BLOCKING,
        length=5,
        adaptive=False,
        repeated=False,
    ),
    Case(
        "idle-queue",
        f"queue with {_QUEUED_RECEIVERS} receivers to which nothing comes",
        (Metric("CPU", "%", at_most(0)),),
        _idle_queue,
        ("byref",),
        length=5,
        adaptive=False,
        repeated=False,
    ),
    Case(
        "memory",
        f"{_TOPICS} publishers in one process, a pattern subscriber in another: memory of both",
        (
            Metric("all have met", "MiB", at_most(64)),
            Metric("3 messages of 64 B and one of 100 KB on each", "MiB", at_most(300)),
            Metric("and many of 64 B, received one by one", "MiB", at_most(300)),
        ),
        _memory,
        ("byref",),
        length=1000,
        adaptive=False,
        repeated=False,
        note="shared and private memory, and page tables, beyond what the interpreters take",
    ),
    Case(
        "crowded-queue",
        f"queue with {_QUEUED_TOPICS} receivers, each of a topic of its own, published by another process",
        (
            Metric("callback, one busy", "µs", at_most(0.5)),
            Metric("callback, all busy", "µs", at_most(0.4)),
            Metric("empty dispatch", "µs", at_most(1)),
            Metric("subscribe", "µs", at_most(300)),
        ),
        _crowded_queue,
        ("byref",),
        length=20_000,
        adaptive=False,
        note="subscribe: the publishers are there already",
    ),
    Case(
        "many-topics",
        f"{_TOPICS} publishers in one process, a pattern that matches all in another",
        (
            Metric("to make the publishers", "s", at_most(0.2)),
            Metric("from Subscriber(...) to a message of each", "s", at_most(0.5)),
        ),
        _many_topics,
        ("byref",),
        length=_TOPICS,
        adaptive=False,
    ),
    Case(
        "rust-rate",
        "Rust, sequence checked",
        _rate(at_least(10, "iceoryx2")),
        partial(rust.trial, "rate"),
        ("byref", "iceoryx2"),
        length=200_000,
        chart=RATES,
    ),
    Case(
        "rust-round-trip",
        f"Rust, round trip, {_size(SIZE)}, back to back",
        _times(*at_most(0.6, "iceoryx2"), *at_most(1.5, CACHE_LINE)),
        partial(rust.trial, "round-trip"),
        ("byref", "iceoryx2", CACHE_LINE),
        length=20_000,
        chart=TRIPS,
    ),
    _of_ezmsg("64", f"{SIZE} B", 4, SIZE, 5_000, receivers=1),
    _of_ezmsg("1048576", f"arrays of {_size(MIB)}", 3, MIB, 200, receivers=1),
    _of_ezmsg("stages", f"three stages, arrays of {_size(MIB)}", 2, MIB, 200, receivers=2, stages=1),
    _of_ezmsg("two", f"two subscribers, arrays of {_size(MIB)}", 2, MIB, 200, receivers=2),
)
