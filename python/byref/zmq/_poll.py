"""Waiting for several sockets and descriptors at once."""

from __future__ import annotations

import select
import time
from collections.abc import Sequence
from typing import Any

from zmq.constants import Errno, PollEvent
from zmq.error import Again

from ._errors import fail
from ._socket import Socket

IN, OUT, ERR, PRI = (
    event.value for event in (PollEvent.POLLIN, PollEvent.POLLOUT, PollEvent.POLLERR, PollEvent.POLLPRI)
)
_ERRORS = select.POLLERR | select.POLLHUP | select.POLLNVAL


def zmq_poll(sockets: Sequence[tuple[Any, int]], timeout: int = -1) -> list[tuple[Any, int]]:
    """What is ready, and for what; waits up to so many milliseconds until something is."""
    deadline = None if timeout < 0 else time.monotonic() + timeout / 1000
    cores, descriptors = [], []
    for thing, flags in sockets:
        if isinstance(thing, Socket):
            cores.append((thing, thing._usable(), flags))
        else:
            number = thing if isinstance(thing, int) else getattr(thing, "fileno", None)
            if callable(number):
                number = number()
            if not isinstance(number, int):
                raise TypeError(f"Socket must be a 0MQ socket, an integer fd or have a fileno() method: {thing!r}")
            if number < 0:
                fail(Errno.EINVAL)
            descriptors.append((number, flags))
    while True:
        ready: list[tuple[Any, int]] = [
            (socket, found) for socket, core, flags in cores if (found := core.events() & flags)
        ]
        left = None if deadline is None else max(deadline - time.monotonic(), 0)
        late = left is not None and left == 0
        if not descriptors and len(cores) == 1 and not ready and not late:
            _, core, _ = cores[0]
            try:
                with core.lock:
                    core.wait(deadline)  # Which spins at first.
            except Again:
                return []
            continue
        if descriptors or (not ready and not late):
            poll = select.poll()
            for number, flags in descriptors:
                poll.register(number, _wanted(flags))
            bells = set()
            for _, core, _ in cores:
                bell = core.box.fileno()
                bells.add(bell)
                poll.register(bell, select.POLLIN)
            limit = 0 if ready else None if left is None else left * 1000
            heard = {number: events for number, events in poll.poll(limit) if number not in bells}
            ready += [
                (number, told)
                for number, flags in descriptors
                if number in heard and (told := _told(heard[number]) & (flags | ERR))
            ]
        if ready or late:
            return ready


def _wanted(flags: int) -> int:
    wanted = 0
    for ours, theirs in ((IN, select.POLLIN), (OUT, select.POLLOUT), (PRI, select.POLLPRI)):
        if flags & ours:
            wanted |= theirs
    return wanted


def _told(events: int) -> int:
    told = 0
    for theirs, ours in ((select.POLLIN, IN), (select.POLLOUT, OUT), (select.POLLPRI, PRI), (_ERRORS, ERR)):
        if events & theirs:
            told |= ours
    return told
