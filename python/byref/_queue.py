"""Event queues on threads of their own, among green threads, and in event loops."""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ._errors import Error

if TYPE_CHECKING:
    from ._byref import EventQueue

# How often a user's `stop_event` is looked at among green threads, in seconds.
_LOOK_EVERY = 0.05

# The threads that `start` made, as long as they run.
_running: dict[threading.Thread, EventQueue] = {}
_has_ended = False

# CPython 3.12 begins no thread any more when the main one has ended, so there the one that may be needed waits
# for that from the first `start` on.
_WATCHER_FIRST = sys.version_info[:2] == (3, 12)
_watcher: threading.Event | None = None
_main_has_ended = False


def start(
    queue: EventQueue,
    daemon: bool,
    on_exit: Callable[[BaseException | None], object] | None,
    stop_event: threading.Event | None,
) -> threading.Thread:
    """Run the queue on a new thread; `EventQueue.start` has taken the right to."""
    if _WATCHER_FIRST and not _main_has_ended:
        _watch()
    name = "byref" if queue.name is None else f"byref {queue.name}"
    starter = threading.get_native_id()
    thread = threading.Thread(target=_run, args=(queue, on_exit, stop_event, starter), name=name, daemon=daemon)
    _running[thread] = queue
    try:
        if _has_ended:  # Later, the end finds it among those that run.
            raise Error("the program has ended, so an event queue cannot be started any more")
        thread.start()
    except BaseException:
        _running.pop(thread, None)
        raise
    return thread


def _run(
    queue: EventQueue,
    on_exit: Callable[[BaseException | None], object] | None,
    stop_event: threading.Event | None,
    starter: int,
) -> None:
    try:
        try:
            if threading.get_native_id() == starter:
                _run_green(queue, stop_event)
            else:
                queue._run_started(stop_event)
        except BaseException as problem:
            if on_exit is None:
                raise
            on_exit(problem)
        else:
            if on_exit is not None:
                on_exit(None)
    finally:
        _running.pop(threading.current_thread(), None)
        if stop_event is not None:
            stop_event.set()


def _others() -> list[threading.Thread]:
    """The threads for which the program's end waits, and which may need the queues."""
    alive = [thread for thread in threading.enumerate() if not (thread.daemon or thread in _running)]
    return [thread for thread in alive if thread not in (threading.main_thread(), threading.current_thread())]


def _stop_at_end() -> None:
    """The main thread has ended: stop all queues when the others have, too.

    It cannot wait for them itself: what ends an executor's threads comes after this.
    """
    global _main_has_ended
    _main_has_ended = True
    if not _others():
        _stop_all()
        return
    try:
        _watch().set()
    except RuntimeError:  # The system has no room for a thread.
        _stop_all()


def _watch() -> threading.Event:
    """The event that has a thread wait for the others; the thread is begun if there is none."""
    global _watcher
    if _watcher is None:
        event = threading.Event()
        threading.Thread(target=_stop_after_others, args=(event,), name="byref end", daemon=True).start()
        _watcher = event
    return _watcher


def _stop_after_others(main_has_ended: threading.Event) -> None:
    main_has_ended.wait()
    while others := _others():
        for thread in others:
            try:
                thread.join()
            except RuntimeError:  # It is just being started.
                time.sleep(0.001)
    _stop_all()


def _stop_all() -> None:
    global _has_ended
    _has_ended = True
    for queue in list(_running.values()):
        queue.stop()


def _forget() -> None:
    """A forked child has none of its parent's threads."""
    global _watcher
    _watcher = None
    _running.clear()


os.register_at_fork(after_in_child=_forget)
# Before the interpreter waits for its threads: `atexit` would be after that.
with contextlib.suppress(RuntimeError):  # It is ending already.
    threading._register_atexit(_stop_at_end)  # type: ignore[attr-defined]


def _run_green(queue: EventQueue, stop_event: threading.Event | None) -> None:
    """Run the queue on what gevent or eventlet made of a thread, which has to let the others of its kind run."""
    queue._take_over()
    try:
        wait = _green_wait()
        fileno = queue.fileno()
        while not (stop_event is not None and stop_event.is_set()):
            again = queue._step(False)
            if again is None:
                return
            if again:
                wait(None, 0)
            else:
                wait(fileno, None if stop_event is None else _LOOK_EVERY)
    finally:
        queue._leave()


def _green_wait() -> Callable[[int | None, float | None], object]:
    """What waits until a descriptor is readable, or so many seconds, while other green threads run."""
    if "gevent.monkey" in sys.modules:
        gevent, gevent_socket = importlib.import_module("gevent"), importlib.import_module("gevent.socket")

        def with_gevent(fileno: int | None, seconds: float | None) -> None:
            if fileno is None:
                gevent.sleep(0)
            else:
                with contextlib.suppress(TimeoutError):
                    gevent_socket.wait_read(fileno, seconds, TimeoutError())

        return with_gevent
    if "eventlet.hubs" in sys.modules:
        eventlet, hubs = importlib.import_module("eventlet"), importlib.import_module("eventlet.hubs")

        def with_eventlet(fileno: int | None, seconds: float | None) -> None:
            if fileno is None:
                eventlet.sleep(0)
            else:
                with contextlib.suppress(TimeoutError):
                    hubs.trampoline(fileno, read=True, timeout=seconds, timeout_exc=TimeoutError)

        return with_eventlet
    return lambda fileno, seconds: select.select([] if fileno is None else [fileno], [], [], seconds)


async def run_async(queue: EventQueue) -> None:
    """Call the receivers in the running event loop, one after the other, until the queue is stopped."""
    from . import _aio  # With it comes asyncio, which a queue on a thread does without.

    fileno = queue.fileno()
    queue._enter()
    try:
        while (step := queue._step(True)) is not None:
            if step is True:
                await _aio.sleep(0)
            elif step is False:
                await _aio.readable(fileno)
            else:
                problem: BaseException | None = None
                try:
                    await step
                except BaseException as raised:
                    problem = raised
                queue._awaited(problem)
    finally:
        queue._leave()
