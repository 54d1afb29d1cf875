"""Proxies: threads of the program that hand messages on, by reference, from socket to socket."""

from __future__ import annotations

import struct
from typing import Any

from zmq.constants import SocketType

from ._core import Core
from ._poll import IN, OUT, zmq_poll
from ._socket import Socket
from ._wire import Part


def _core(socket: Any) -> Core:
    if not isinstance(socket, Socket):
        raise TypeError(f"expected a socket, got: {socket!r}")
    return socket._usable()


def proxy(frontend: Any, backend: Any, capture: Any = None) -> int:
    """Hand on what comes at either side, until the context is terminated."""
    return proxy_steerable(frontend, backend, capture, None)


def proxy_steerable(frontend: Any, backend: Any, capture: Any = None, control: Any = None) -> int:
    """A proxy that obeys PAUSE, RESUME, STATISTICS and TERMINATE from a socket."""
    front, back = _core(frontend), _core(backend)
    captured = _core(capture) if capture is not None else None
    ways = [(frontend, front, backend, back)]
    if front is not back:
        ways.append((backend, back, frontend, front))
    counts = {core: [0, 0, 0, 0] for core in (front, back)}
    paused = False
    while True:
        wanted = [(source, IN) for source, _, _, _ in ways] if not paused else []
        if control is not None:
            wanted.append((control, IN))
        ready = dict(zmq_poll(wanted, -1))
        if control is not None and control in ready:
            orders = _core(control)
            order = bytes(orders.receive(0)[0]).rstrip(b"\0")
            if order == b"STATISTICS":
                orders.send([struct.pack("<Q", number) for core in (front, back) for number in counts[core]], 0)
            elif orders.kind == SocketType.REP:
                orders.send([b""], 0)
            if order == b"TERMINATE":
                return 0
            paused = order == b"PAUSE" or (paused and order != b"RESUME")
            continue
        for source, taking, target, giving in ways:
            if source in ready and (giving is taking or zmq_poll([(target, OUT)], 0)):
                parts = taking.receive(0)
                if captured is not None:
                    captured.send(list(parts), 0)
                giving.send(parts, 0)
                _count(counts[taking], counts[giving], parts)
            elif source in ready:
                zmq_poll([(target, OUT)], 10)


def _count(taking: list[int], giving: list[int], parts: list[Part]) -> None:
    size = sum(len(part) for part in parts)
    taking[0] += 1
    taking[1] += size
    giving[2] += 1
    giving[3] += size


def monitored_queue(
    in_socket: Any, out_socket: Any, mon_socket: Any, in_prefix: bytes = b"in", out_prefix: bytes = b"out"
) -> int:
    """A proxy that also sends all that it hands on to a third socket, with what says which way it went in front."""
    first, second, monitor = _core(in_socket), _core(out_socket), _core(mon_socket)
    # Between two ROUTERs the first part names whom it came from, the second whom it goes to.
    swapped = first.kind == second.kind == SocketType.ROUTER
    while True:
        ready = dict(zmq_poll([(in_socket, IN), (out_socket, IN)], -1))
        for source, taking, giving, prefix in (
            (in_socket, first, second, in_prefix),
            (out_socket, second, first, out_prefix),
        ):
            if source in ready:
                parts = taking.receive(0)
                if swapped and len(parts) > 1:
                    parts[0], parts[1] = parts[1], parts[0]
                giving.send(parts, 0)
                monitor.send([bytes(prefix), *parts], 0)
