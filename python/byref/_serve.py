"""Serving with a callable: what it returns is the reply, what it raises a `RemoteError`; `EventQueue.serve`."""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._byref import Request


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


def _reply(request: Request, result: Any) -> None:
    if request.answered:
        return
    if inspect.isgenerator(result):
        part: Any
        for part in result:
            if not request.reply(part, more=True):
                result.close()  # Nobody wants the rest.
                break
        request.finish()
    else:
        request.reply(b"" if result is None else result)


async def _reply_async(request: Request, result: Any) -> None:
    if inspect.isasyncgen(result):
        part: Any
        async for part in result:
            if not request.reply(part, more=True):
                await result.aclose()
                break
        request.finish()
    else:
        _reply(request, result)


def answering(function: Callable[[Request], Any]) -> Callable[[Request], Any]:
    """Make a callable for requests that answers each with what `function` makes of it."""
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
                await _reply_async(request, result)
            except Exception as problem:
                _fail(request, problem)
            except BaseException as problem:  # It ends the queue; the client hears of it all the same.
                _fail(request, problem)
                raise

        wrapped: Callable[[Request], Any] = answer_async
    else:

        def answer(request: Request) -> None:
            try:
                _reply(request, function(request))
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
