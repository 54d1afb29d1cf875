"""Frames: parts of messages, by reference."""

from __future__ import annotations

import threading
from typing import Any

from zmq.constants import Errno, MessageOption
from zmq.error import ZMQError

from byref._byref import _Buffered

from . import _errors
from ._wire import Part


class _Share:
    """Memory of the program that frames refer to; the event is set when none does any more."""

    __slots__ = ("event", "view")

    def __init__(self, view: memoryview, event: threading.Event | None) -> None:
        self.view = view
        self.event = event

    def __del__(self) -> None:
        if self.event is not None:
            self.event.set()


def view_of(data: Any) -> memoryview:
    """The bytes of a buffer; `BufferError` if they do not lie in one piece."""
    view = memoryview(data)
    if not view.contiguous:
        raise BufferError("memoryview: underlying buffer is not contiguous")
    if view.ndim == 1 and view.format == "B":
        return view
    return view.cast("B") if view.nbytes else memoryview(b"")


class Frame(_Buffered):
    """A part of a message: the program's memory, or a lease on a received message."""

    more = False
    tracker: Any = None
    closed: bool = False
    _part: Part | None = None
    _share: _Share | None = None
    _bytes: bytes | None = None
    _view: memoryview | None = None

    def __init__(
        self,
        data: Any = None,
        track: bool = False,
        copy: bool | None = None,
        copy_threshold: int | None = None,
        **_kwargs: Any,
    ) -> None:
        import zmq

        if track:
            self.tracker = zmq._FINISHED_TRACKER
        if data is None:
            self._part = b""
            return
        if isinstance(data, str):
            raise TypeError("Unicode strings are not allowed. Only: bytes, buffer interfaces.")
        view = view_of(data)
        if copy is None:
            copy = bool(copy_threshold) and view.nbytes < (copy_threshold or 0)
        if copy:
            self._part = self._bytes = bytes(view)
            return
        event = None
        if track:
            event = threading.Event()
            self.tracker = zmq.MessageTracker(event)
        self._share = _Share(view, event)
        if type(data) is bytes:
            self._part = self._bytes = data
        else:
            self._part = view

    @classmethod
    def received(cls, part: Part, more: bool, track: bool) -> Any:
        """A frame of a received part."""
        frame = cls(track=track)
        frame._part = part
        if type(part) is bytes:
            frame._bytes = part
        if more:
            frame.more = True
        return frame

    def close(self) -> None:
        """Let go of the memory."""
        self.closed = True
        self._part = self._share = self._view = None

    @property
    def part(self) -> Part:
        """What is sent of it."""
        if self._part is None:
            _errors.fail(Errno.EFAULT)
        return self._part

    @property
    def buffer(self) -> memoryview:
        """A view of the bytes, which keeps them."""
        if self._view is None:
            self._view = memoryview(self.part)
        return self._view

    @property
    def bytes(self) -> bytes:
        """A copy of the bytes, made once."""
        if self._bytes is None:
            self._bytes = bytes(self.part)
        return self._bytes

    def __len__(self) -> int:
        return len(self.part)

    def __eq__(self, other: object) -> bool:
        return self.bytes == (other if type(other) is bytes else bytes(memoryview(other)))  # type: ignore[arg-type]

    def __hash__(self) -> int:
        raise TypeError(f"unhashable type: {type(self).__name__!r}")

    @property
    def done(self) -> bool:
        """Whether the frame's memory may be used again."""
        return bool(self.tracker.done())

    def __copy__(self) -> Any:
        return self.fast_copy()

    def fast_copy(self) -> Any:
        """Another frame of the same memory."""
        frame = type(self)()
        frame._part, frame._share, frame._bytes, frame.tracker = self._part, self._share, self._bytes, self.tracker
        return frame

    def get(self, option: int | str) -> int | str:
        """A property of the message: `MORE`, or the name of what it says about its peer."""
        if option == MessageOption.MORE:
            return int(self.more)
        if option == MessageOption.SHARED:
            return int(self._share is not None)
        raise ZMQError(Errno.EINVAL, f"a frame has no property {option!r} on byref: {_errors.OPTIONS}")

    def set(self, option: int | str, value: int | str) -> None:
        """No property of a frame can be set."""
        raise ZMQError(Errno.EINVAL, f"property {option!r} cannot be set on byref: {_errors.OPTIONS}")


Message = Frame
