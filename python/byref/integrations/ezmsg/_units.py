"""Units: what stands for `handle_subscriber`, which hands the messages of an input to the unit's functions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from copy import deepcopy
from typing import Any

from ezmsg.core import backendprocess

from . import PublisherClosed, PublisherEnded
from ._receiver import Receiving


async def handle_subscriber(
    sub: Any,
    callables: set[Callable[..., Awaitable[None]]],
    on_message: Callable[[Any], Awaitable[None]] | None = None,
) -> None:
    """Hand each message to all callables, to each a value of its own, until none is left.

    The publisher waits for those of a leaky input until they are received, for others until they are processed.
    """
    while callables:
        receiving = Receiving(sub, writable=True)
        try:
            await receiving.take()
        except PublisherEnded as ended:
            tell = backendprocess.logger.debug if isinstance(ended, PublisherClosed) else backendprocess.logger.warning
            tell(str(ended))
            continue
        failed = True
        try:
            value = _values(receiving)
            if sub.leaky:
                value = _kept(receiving, value)
                receiving.processed()
            if on_message is not None:
                try:
                    await on_message(value())
                except Exception as problem:
                    backendprocess.logger.warning(f"Failed to report subscriber message metadata: {problem}")
            for function in list(callables):
                try:
                    started = sub.begin_profile()
                    try:
                        await function(value())
                    finally:
                        sub.end_profile(started, getattr(function, "__name__", None))
                except (backendprocess.Complete, backendprocess.NormalTermination):
                    callables.remove(function)
            failed = False
        finally:
            if not sub.leaky:
                receiving.processed()
            receiving.over(failed)
        if len(callables) > 1:
            await asyncio.sleep(0)
    sub.close()
    await sub.wait_closed()


def _values(receiving: Receiving) -> Callable[[], Any]:
    """What gives the message's value again and again."""
    if not receiving.is_shared():
        return receiving.value
    value = receiving.value()
    return lambda: value


def _kept(receiving: Receiving, value: Callable[[], Any]) -> Callable[[], Any]:
    """The same, also when the message is processed."""
    if not receiving.is_shared():
        return value
    copy = deepcopy(value())
    return lambda: copy
