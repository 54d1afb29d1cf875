"""Requests and replies: byref's clients and servers beside pyzmq's REQ, REP, ROUTER and DEALER."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import byref
import numpy as np
import zmq

from bench.peers import Address, meet

SYSTEMS = ("byref", "pyzmq")
CLIENTS = 16


def ask(channel: Connection, system: str, address: Address, count: int, size: int) -> list[int]:
    """Ask `count` times, one request after the other; return the nanoseconds of each."""
    message = os.urandom(size)
    times = []
    with _asking(system, address, size) as request:
        meet(channel)
        for _ in range(20):
            request(message)
        for _ in range(count):
            start = time.perf_counter_ns()
            reply = request(message)
            times.append(time.perf_counter_ns() - start)
        assert memoryview(reply).nbytes == size
        meet(channel)
    return times


def answer(channel: Connection, system: str, address: Address, count: int, size: int) -> None:
    """Answer what `ask` asks, with as many bytes."""
    with _answering(system, address, size) as answer_one:
        meet(channel)
        for _ in range(20 + count):
            answer_one()
        meet(channel)


def answer_all(channels: list[Connection], system: str, address: Address, count: int, size: int) -> tuple[float, float]:
    """Answer all clients at once; return the requests in a second, and the clients' p99 in microseconds."""
    with _answering(system, address, size, many=True) as answer_one:
        for channel in channels:
            meet(channel)
        for _ in channels:
            answer_one()
        for channel in channels:
            meet(channel)
        start = time.perf_counter_ns()
        for _ in range(count * len(channels)):
            answer_one()
        seconds = (time.perf_counter_ns() - start) / 1e9
        slowest = [channel.recv() for channel in channels]
    return count * len(channels) / seconds, float(np.median(slowest))


def ask_among_others(channel: Connection, system: str, address: Address, count: int, size: int) -> None:
    """Ask `count` times, together with other clients; tell the p99 in microseconds."""
    message = os.urandom(size)
    times = []
    with _asking(system, address, size) as request:
        meet(channel)
        request(message)
        meet(channel)
        for _ in range(count):
            start = time.perf_counter_ns()
            request(message)
            times.append(time.perf_counter_ns() - start)
        channel.send(float(np.percentile(times, 99)) / 1e3)


@contextmanager
def _asking(system: str, address: Address, size: int) -> Iterator[Callable[[bytes], object]]:
    """What sends a request and gives its reply."""
    if system == "byref":
        with byref.Client(address.name) as client:

            def ask_in_loan(_message: bytes) -> object:
                loan = client.loan(size)
                loan.array[:1] = 1
                return client.request(loan)

            client.wait_for_server(timeout=10)
            yield client.request if size < 4096 else ask_in_loan
        return
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.connect(f"ipc:///tmp/{address.name}")

        def request(message: bytes) -> object:
            socket.send(message, copy=size < 4096)
            return socket.recv(copy=size < 4096)

        yield request


@contextmanager
def _answering(system: str, address: Address, size: int, many: bool = False) -> Iterator[Callable[[], object]]:
    """What takes a request and answers it."""
    if system == "byref":
        with byref.Server(address.name) as server:

            def answer_small() -> None:
                request = server.recv()
                request.reply(bytes(request))

            def answer_in_loan() -> None:
                request = server.recv()
                loan = request.loan(size)
                loan.array[:1] = 1
                request.reply(loan)

            yield answer_small if size < 4096 else answer_in_loan
        return
    large = bytes(size)
    with zmq.Context() as context, context.socket(zmq.ROUTER if many else zmq.REP) as socket:
        socket.bind(f"ipc:///tmp/{address.name}")

        def route() -> None:
            socket.send_multipart(socket.recv_multipart())

        def reply() -> None:
            request = socket.recv(copy=size < 4096)
            if size < 4096:
                socket.send(request)
            else:
                socket.send(large, copy=False)

        yield route if many else reply
