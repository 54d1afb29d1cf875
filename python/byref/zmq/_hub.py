"""The thread of a process that accepts and makes connections, and sends on what waits for room.

Programs' own calls send and receive. This thread does what must go on while a program calls nothing.
"""

from __future__ import annotations

import atexit
import heapq
import itertools
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

Task = Callable[[], None]

_log = logging.getLogger("byref.zmq")


class Hub:
    """Calls functions when descriptors are ready, and at times."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._poll: select.epoll | None = None
        self._bell = -1
        self._watched: dict[int, Task] = {}
        self._soon: deque[Task] = deque()
        self._later: list[tuple[float, int, Task]] = []
        self._order = itertools.count()
        self._thread: threading.Thread | None = None
        self._ending = False

    def _start(self) -> None:
        """Start the thread; the lock is held."""
        if self._thread is None and not self._ending:
            self._poll = select.epoll()
            self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._poll.register(self._bell, select.EPOLLIN)
            self._thread = threading.Thread(target=self._run, name="byref.zmq", daemon=True)
            self._thread.start()

    def call_soon(self, task: Task) -> None:
        """Call a function on the hub's thread."""
        with self._lock:
            self._start()
            self._soon.append(task)
            self._ring()

    def call_later(self, seconds: float, task: Task) -> None:
        """Call a function on the hub's thread, so many seconds later."""
        with self._lock:
            self._start()
            heapq.heappush(self._later, (time.monotonic() + seconds, next(self._order), task))
            self._ring()

    def _ring(self) -> None:
        if self._bell >= 0:
            os.eventfd_write(self._bell, 1)

    def watch(self, descriptor: int, task: Task, events: int = select.EPOLLIN) -> None:
        """Call a function whenever the descriptor is ready."""
        with self._lock:
            self._start()
            if self._poll is None:
                return
            if descriptor in self._watched:
                self._poll.modify(descriptor, events)
            else:
                self._poll.register(descriptor, events)
            self._watched[descriptor] = task

    def forget(self, descriptor: int) -> None:
        """Watch a descriptor no more; before it is closed."""
        with self._lock:
            if self._watched.pop(descriptor, None) is not None and self._poll is not None:
                self._poll.unregister(descriptor)

    def _run(self) -> None:
        poll = self._poll
        assert poll is not None
        while not self._ending:
            with self._lock:
                wait = max(self._later[0][0] - time.monotonic(), 0) if self._later else -1.0
                if self._soon:
                    wait = 0.0
            for descriptor, _ in poll.poll(wait):
                if descriptor == self._bell:
                    os.eventfd_read(self._bell)
                elif task := self._watched.get(descriptor):
                    self._call(task)
            for _ in range(len(self._soon)):
                self._call(self._soon.popleft())
            while self._later and self._later[0][0] <= time.monotonic():
                with self._lock:
                    _, _, task = heapq.heappop(self._later)
                self._call(task)

    @staticmethod
    def _call(task: Task) -> None:
        try:
            task()
        except Exception:
            _log.exception("a connection failed in a way that it should not")

    def end(self) -> None:
        """End the thread, before the interpreter stops it where it stands, with locks in its hands."""
        with self._lock:
            self._ending = True
            self._ring()
        if self._thread is not None:
            self._thread.join(1)

    def abandon(self) -> None:
        """Become a new hub in a forked child: without the parent's thread, and its descriptors."""
        if self._poll is not None:
            self._poll.close()
            os.close(self._bell)
        self.__init__()  # type: ignore[misc]


hub = Hub()
atexit.register(hub.end)
