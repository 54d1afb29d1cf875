"""What pyzmq's `Socket` derives from."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

from zmq.constants import EVENT_ALL, Errno, SocketOption

from . import _errors
from ._context import Context
from ._core import CORES, Core
from ._endpoints import PATH_LIMIT
from ._errors import fail
from ._frame import Frame, view_of
from ._wire import Part

IPC_PATH_MAX_LEN = PATH_LIMIT
# Methods of pyzmq's own class that are made of others; here one call does each of them at once.
_SHORTER = ("send", "send_multipart", "recv_multipart")


class Socket:
    """A socket: a mailbox, and pipes to others."""

    context: Any = None
    copy_threshold: int = 0
    _core: Core | None = None
    _closed: Any = True
    _shadow: Any = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__ == "zmq.sugar.socket":
            Socket._longer = {name: cls.__dict__[name] for name in _SHORTER}
            for name in _SHORTER:
                delattr(cls, name)

    _longer: dict[str, Any] = {}  # noqa: RUF012 (of the class, not of a socket)

    def __init__(
        self,
        context: Context | None = None,
        socket_type: int = -1,
        shadow: int = 0,
        copy_threshold: int | None = None,
    ) -> None:
        import zmq

        self.copy_threshold = zmq.COPY_THRESHOLD if copy_threshold is None else copy_threshold
        self.context = context
        if shadow:
            self._core = CORES.get(shadow)
            if self._core is None:
                fail(errno.ENOTSOCK)
            self._shadow = True
            self._closed = False
            return
        self._shadow = False
        if context is None or context._core is None:
            raise TypeError("a socket needs a context")
        of = context._core
        if of.terminated:
            fail(Errno.EFAULT)
        if len(of.cores) >= of.options[zmq.MAX_SOCKETS]:
            fail(errno.EMFILE)
        self._core = Core(of, socket_type)
        of.add(self._core)
        if context._shadow:
            of.of_shadows.add(self)
        self._closed = False

    @property
    def underlying(self) -> int:
        """The number of the socket, by which others shadow it."""
        return self._core.number if self._core is not None else 0

    @property
    def closed(self) -> bool:
        """Whether it was closed, by whomever."""
        return bool(self._closed) or self._core is None or self._core.closed

    def _usable(self) -> Core:
        if self._core is None or self._closed:
            fail(errno.ENOTSOCK)
        return self._core

    def close(self, linger: int | None = None) -> None:
        """Close the socket."""
        if self._closed or self._core is None:
            return
        if linger is not None and not self._core.closed:
            self._core.options[SocketOption.LINGER] = linger
        self._closed = True
        self._core.close()

    # ---- addresses

    def bind(self, addr: str | bytes) -> None:
        """Listen at an address."""
        self._usable().bind(_text(addr))

    def unbind(self, addr: str | bytes) -> None:
        """Listen there no more."""
        self._usable().unbind(_text(addr))

    def connect(self, addr: str | bytes) -> None:
        """Connect to an address."""
        self._usable().connect(_text(addr))

    def disconnect(self, addr: str | bytes) -> None:
        """End a connection to an address."""
        self._usable().disconnect(_text(addr))

    def monitor(self, addr: str | bytes | None, events: int = -1) -> None:
        """Tell what happens to connections."""
        self._usable().monitor(None if addr is None else _text(addr), EVENT_ALL if events < 0 else events)

    def join(self, group: str | bytes) -> None:
        """Sockets of type DISH do not run on byref."""
        fail(Errno.EINVAL)

    def leave(self, group: str | bytes) -> None:
        """Sockets of type DISH do not run on byref."""
        fail(Errno.EINVAL)

    # ---- options

    def set(self, option: int, value: Any) -> None:
        """Set an option."""
        self._usable().set(option, value)

    def get(self, option: int) -> Any:
        """What an option is set to."""
        return self._usable().get(option)

    # ---- messages

    def _part(self, data: Any, copy: bool, track: bool) -> tuple[Part, Any, Any]:
        """What is sent of some data, what keeps its memory, and its tracker."""
        import zmq

        if isinstance(data, Frame):
            if track and not data.tracker:
                raise ValueError("Not a tracked message")
            return data.part, data._share or data.part, data.tracker
        if isinstance(data, str):
            raise TypeError("Message must be in bytes, not a unicode object")
        if copy:
            view = memoryview(data)
            return (view_of(view) if view.contiguous else view.tobytes()), None, None
        if self.copy_threshold and memoryview(data).nbytes < self.copy_threshold:
            return bytes(view_of(data)), None, zmq._FINISHED_TRACKER
        frame = Frame(data, track=track)
        return frame.part, frame._share or frame.part, frame.tracker

    def send(
        self,
        data: Any,
        flags: int = 0,
        copy: bool = True,
        track: bool = False,
        routing_id: int | None = None,
        group: str | None = None,
    ) -> Any:
        """Send a part of a message; with the last part the message goes."""
        core = self._core
        if core is None or self._closed:
            fail(errno.ENOTSOCK)
        if routing_id is not None or group is not None:
            fail(Errno.EINVAL, f"sockets with routing_id or group do not run on byref: {_errors.OPTIONS}")
        if copy and type(data) is bytes:
            if flags & 2 or core.begun:
                core.send_part(data, flags, None)
            else:
                core.send([data], flags)
            return None
        part, keep, tracker = self._part(data, copy, track)
        core.send_part(part, flags, keep)
        return tracker

    def send_multipart(
        self, msg_parts: Sequence[Any], flags: int = 0, copy: bool = True, track: bool = False, **kwargs: Any
    ) -> Any:
        """Send a message of several parts."""
        if type(self).send is not Socket.send:  # Who changes how parts are sent means all of them.
            return Socket._longer["send_multipart"](self, msg_parts, flags, copy, track, **kwargs)
        core = self._core
        if core is None or self._closed:
            fail(errno.ENOTSOCK)
        parts: list[Part] = []
        kept = []
        tracker = None
        for at, data in enumerate(msg_parts):
            if copy and type(data) is bytes:
                parts.append(data)
                continue
            if not isinstance(data, Frame | bytes | memoryview):
                try:
                    memoryview(data)
                except Exception:
                    shown = repr(data)
                    shown = shown if len(shown) <= 32 else shown[:32] + "..."
                    raise TypeError(f"Frame {at} ({shown}) does not support the buffer interface.") from None
            part, keep, tracker = self._part(data, copy, track)
            parts.append(part)
            kept.append(keep)
        if flags & 2 or core.begun:
            for part in parts[:-1]:
                core.send_part(part, flags | 2, None)
            core.send_part(parts[-1], flags, None)
        else:
            core.send(parts, flags, kept if any(kept) else None)
        return tracker

    def recv(self, flags: int = 0, copy: bool = True, track: bool = False) -> Any:
        """Receive the next part of a message."""
        core = self._core
        if core is None or self._closed:
            fail(errno.ENOTSOCK)
        part = core.receive_part(flags)
        if copy:
            return part if type(part) is bytes else bytes(part)
        return _frame().received(part, bool(core.rest), track)

    def recv_multipart(self, flags: int = 0, copy: bool = True, track: bool = False) -> list[Any]:
        """Receive all parts of a message."""
        if type(self).recv is not Socket.recv:
            return Socket._longer["recv_multipart"](self, flags, copy, track)  # type: ignore[no-any-return]
        core = self._core
        if core is None or self._closed:
            fail(errno.ENOTSOCK)
        parts = core.receive(flags)
        if copy:
            return [part if type(part) is bytes else bytes(part) for part in parts]
        last = len(parts) - 1
        made = _frame().received
        return [made(part, at < last, track) for at, part in enumerate(parts)]

    def recv_into(self, buffer: Any, /, *, nbytes: int = 0, flags: int = 0) -> int:
        """Receive the next part into memory of the program; gives its whole length."""
        view = memoryview(buffer)
        if not view.contiguous:
            raise BufferError("Can only recv_into contiguous buffers")
        if view.readonly:
            raise BufferError("Cannot recv_into readonly buffer")
        if nbytes < 0:
            raise ValueError(f"nbytes={nbytes!r} must be non-negative")
        room = view.nbytes
        if nbytes > room:
            raise ValueError(f"nbytes={nbytes!r} too big for memoryview of {room}B")
        part = memoryview(self._usable().receive_part(flags))
        taken = min(part.nbytes, nbytes or room)
        if taken:
            view.cast("B")[:taken] = view_of(part)[:taken]
        return part.nbytes


def _text(address: str | bytes) -> str:
    if isinstance(address, str):
        return address
    if isinstance(address, bytes):
        return address.decode()
    raise TypeError(f"expected str, got: {address!r}")


def _frame() -> Any:
    import zmq

    return zmq.Frame
