"""Event queues on threads of their own, and in event loops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._byref import EventQueue


def start(
    queue: EventQueue,
    daemon: bool,
    on_exit: Callable[[BaseException | None], object] | None,
    stop_event: threading.Event | None,
) -> threading.Thread:
    """Run the queue on a new thread; `EventQueue.start` has taken the right to."""
    name = "byref" if queue.name is None else f"byref {queue.name}"
    thread = threading.Thread(target=_run, args=(queue, on_exit, stop_event), name=name, daemon=daemon)
    thread.start()
    return thread


def _run(
    queue: EventQueue,
    on_exit: Callable[[BaseException | None], object] | None,
    stop_event: threading.Event | None,
) -> None:
    try:
        try:
            queue._run_started(stop_event)
        except BaseException as problem:
            if on_exit is None:
                raise
            on_exit(problem)
        else:
            if on_exit is not None:
                on_exit(None)
    finally:
        if stop_event is not None:
            stop_event.set()


async def run_async(queue: EventQueue) -> None:
    """Call the receivers in the running event loop, one after the other, until the queue is stopped."""
    loop = asyncio.get_running_loop()
    fileno = queue.fileno()
    queue._enter()
    try:
        while (step := queue._step()) is not None:
            if step is True:
                await asyncio.sleep(0)
            elif step is False:
                await _readable(loop, fileno)
            else:
                problem: BaseException | None = None
                try:
                    await step
                except BaseException as raised:
                    problem = raised
                queue._awaited(problem)
    finally:
        queue._leave()


async def _readable(loop: asyncio.AbstractEventLoop, fileno: int) -> None:
    waiter = loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    loop.add_reader(fileno, wake)
    try:
        await waiter
    finally:
        loop.remove_reader(fileno)
