"""Serving with a callable: what it returns is the reply, what it raises a `RemoteError`; `EventQueue.serve`."""

from __future__ import annotations

import functools
import inspect
import traceback
import weakref
from collections.abc import AsyncGenerator, Callable, Generator
from typing import TYPE_CHECKING, Any

from ._errors import Timeout

if TYPE_CHECKING:
    from ._byref import EventQueue, Request

# There is no part.
_NONE = object()
# So many parts of a stream are sent in a row, while others wait.
_IN_A_ROW = 64
# A stream whose client has enough to take goes on after this time, in seconds.
_PAUSE = 0.001


def _text_of(problem: BaseException) -> str:
    try:
        return str(problem)
    except BaseException:  # Whatever a class of the user's does.
        return "(its text cannot be had)"


def _fail(request: Request, problem: BaseException) -> None:
    if request.answered:
        return
    try:
        lines = "".join(traceback.format_exception(problem))
    except BaseException:  # As above.
        lines = ""
    request.fail(type(problem).__qualname__, _text_of(problem), lines)


class _Stream:
    """A generator's parts, sent in turns with what else its queue does: a slow client keeps nobody waiting."""

    def __init__(self, request: Request, parts: Generator[Any, Any, Any], queue: weakref.ref[EventQueue]) -> None:
        self._request, self._parts, self._queue = request, parts, queue
        # The next one, if there was no room for it.
        self._part: Any = _NONE

    def go_on(self) -> None:
        """Send as many as there is room for, and have the rest sent later."""
        try:
            if self._is_sent():
                return
        except Exception as problem:
            self._end(problem)
            return
        except BaseException as problem:  # It ends the queue; the client hears of it all the same.
            self._end(problem)
            raise
        pause = 0.0 if self._part is _NONE and self._request.has_room else _PAUSE
        if (queue := self._queue()) is not None:
            queue.call_later(pause, self.go_on, name=self._request.topic)

    def _is_sent(self) -> bool:
        for _ in range(_IN_A_ROW):
            if not self._request.has_room:
                return False
            if self._part is _NONE:
                self._part = next(self._parts, _NONE)
            if self._part is _NONE:
                break
            try:
                if not self._request.reply(self._part, more=True, timeout=0):
                    self._parts.close()  # Nobody wants the rest.
                    break
            except Timeout:  # Another thread was first.
                return False
            self._part = _NONE
        else:
            return False
        self._request.finish()
        return True

    def _end(self, problem: BaseException) -> None:
        self._parts.close()
        _fail(self._request, problem)


def _reply(request: Request, result: Any, queue: weakref.ref[EventQueue]) -> None:
    if request.answered:
        return
    if inspect.isgenerator(result):
        _Stream(request, result, queue).go_on()
    else:
        request.reply(b"" if result is None else result)


class _AsyncStream:
    """The same for an asynchronous generator."""

    def __init__(self, request: Request, parts: AsyncGenerator[Any, Any], queue: weakref.ref[EventQueue]) -> None:
        self._request, self._parts, self._queue = request, parts, queue
        self._part: Any = _NONE

    async def go_on(self) -> None:
        try:
            if await self._is_sent():
                return
        except Exception as problem:
            await self._end(problem)
            return
        except BaseException as problem:  # As above.
            await self._end(problem)
            raise
        pause = 0.0 if self._part is _NONE and self._request.has_room else _PAUSE
        if (queue := self._queue()) is not None:
            queue.call_later(pause, self.go_on, name=self._request.topic)

    async def _is_sent(self) -> bool:
        for _ in range(_IN_A_ROW):
            if not self._request.has_room:
                return False
            if self._part is _NONE:
                self._part = await anext(self._parts, _NONE)
            if self._part is _NONE:
                break
            try:
                if not self._request.reply(self._part, more=True, timeout=0):
                    await self._parts.aclose()
                    break
            except Timeout:
                return False
            self._part = _NONE
        else:
            return False
        self._request.finish()
        return True

    async def _end(self, problem: BaseException) -> None:
        _fail(self._request, problem)
        await self._parts.aclose()


async def _reply_async(request: Request, result: Any, queue: weakref.ref[EventQueue]) -> None:
    if inspect.isasyncgen(result):
        await _AsyncStream(request, result, queue).go_on()
    else:
        _reply(request, result, queue)


def answering(function: Callable[[Request], Any], of: EventQueue) -> Callable[[Request], Any]:
    """Make a callable for the requests of a queue that answers each with what `function` makes of it."""
    queue = weakref.ref(of)
    call = type(function).__call__ if not inspect.isroutine(function) else function
    inner = getattr(function, "func", function)  # Of a functools.partial.
    is_async = any(
        inspect.iscoroutinefunction(known) or inspect.isasyncgenfunction(known) for known in (function, call, inner)
    )
    if is_async:

        async def answer_async(request: Request) -> None:
            try:
                result = function(request)
                if inspect.isawaitable(result):
                    result = await result
                await _reply_async(request, result, queue)
            except Exception as problem:
                _fail(request, problem)
            except BaseException as problem:  # It ends the queue; the client hears of it all the same.
                _fail(request, problem)
                raise

        wrapped: Callable[[Request], Any] = answer_async
    else:

        def answer(request: Request) -> None:
            try:
                _reply(request, function(request), queue)
            except Exception as problem:
                _fail(request, problem)
            except BaseException as problem:  # As above.
                _fail(request, problem)
                raise

        wrapped = answer
    functools.update_wrapper(
        wrapped, function, assigned=("__module__", "__name__", "__qualname__", "__doc__"), updated=()
    )
    return wrapped
