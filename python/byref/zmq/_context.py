"""Contexts: what ends many sockets together, and the names of `inproc` addresses."""

from __future__ import annotations

import errno
import functools
import itertools
import os
import threading
import weakref
from typing import Any

from zmq.constants import ContextOption, Errno, SocketOption, SocketType

import byref

from ._core import CORES, Core
from ._errors import OPTIONS, fail
from ._hub import hub
from ._patterns import PEERS
from ._pipe import Pipe
from ._wire import HELLO, command

# Sockets that a context may have, at first and at most.
SOCKETS, SOCKET_LIMIT = 1023, 65535
# Seconds that two sockets of this process have to meet.
MEETING = 10.0

_numbers = itertools.count(0x20000, 0x10)
CONTEXTS: weakref.WeakValueDictionary[int, ContextCore] = weakref.WeakValueDictionary()


class ContextCore:
    """A context, as several Python objects may refer to it (shadows)."""

    def __init__(self, io_threads: int) -> None:
        self.number = next(_numbers)
        self.process = os.getpid()
        self.options: dict[int, int] = {
            ContextOption.IO_THREADS: io_threads,
            ContextOption.MAX_SOCKETS: SOCKETS,
            SocketOption.IPV6: 0,
            SocketOption.BLOCKY: 1,
            ContextOption.MAX_MSGSZ: 2**31 - 1,
        }
        self.terminated = False
        self.changed = threading.Condition(threading.RLock())
        self.cores: set[Core] = set()
        # Who listens under a name, and who would connect to it.
        self.bound: dict[str, Core] = {}
        self.waiting: dict[str, list[tuple[Core, Pipe]]] = {}
        # Python's sockets that shadows of this context made.
        self.of_shadows: weakref.WeakSet[Any] = weakref.WeakSet()
        CONTEXTS[self.number] = self

    @property
    def ipv6(self) -> int:
        return self.options[SocketOption.IPV6]

    @property
    def blocky(self) -> int:
        return self.options[SocketOption.BLOCKY]

    def add(self, core: Core) -> None:
        """A socket belongs to it from now on."""
        with self.changed:
            self.cores.add(core)

    def remove(self, core: Core) -> None:
        """A socket is gone, with all that it had to send."""
        with self.changed:
            self.cores.discard(core)
            self.changed.notify_all()

    # ---- addresses within the process

    def bind(self, core: Core, name: str) -> None:
        """A socket listens under a name; who waited for it is connected."""
        with self.changed:
            if name in self.bound:
                fail(errno.EADDRINUSE)
            self.bound[name] = core
            waiting = self.waiting.pop(name, [])
        for connecting, pipe in waiting:
            self._join(connecting, pipe, core)

    def unbind(self, core: Core, name: str) -> None:
        """A socket listens under a name no more."""
        with self.changed:
            if self.bound.get(name) is core:
                del self.bound[name]

    def connect(self, core: Core, name: str, pipe: Pipe) -> None:
        """Connect a socket to who listens under a name, or will."""
        with self.changed:
            bound = self.bound.get(name)
            if bound is None:
                self.waiting.setdefault(name, []).append((core, pipe))
        if bound is not None:
            self._join(core, pipe, bound)

    def disconnect(self, core: Core, pipe: Pipe) -> None:
        """Wait no more for who listens."""
        with self.changed:
            for name, waiting in list(self.waiting.items()):
                left = [entry for entry in waiting if entry != (core, pipe)]
                if left:
                    self.waiting[name] = left
                else:
                    del self.waiting[name]

    @staticmethod
    def _join(connecting: Core, pipe: Pipe, bound: Core) -> None:
        """Connect two sockets of this process."""
        if bound.kind not in PEERS[connecting.kind]:
            return
        with bound.lock:
            refused = bound.closed or bound.pattern.refuses(bytes(connecting.options[SocketOption.ROUTING_ID]))
            if refused:
                return
            other = Pipe(bound)
            # Others are refused from now on where one alone is let in.
            if bound.kind == SocketType.PAIR:
                bound.pattern.attach(other)
        pipe.partner, other.partner = weakref.ref(other), weakref.ref(pipe)
        sides = ((connecting, pipe, bound, other), (bound, other, connecting, pipe))
        try:
            for core, _, far, _ in sides:
                core.box.send(far.box.identity, b"", None, command(HELLO), MEETING)
        except byref.Error:
            return  # One of them was closed meanwhile.
        for core, near, far, there in sides:
            core.opened(
                near,
                far.box.identity,
                far.kind,
                bytes(far.options[SocketOption.ROUTING_ID]),
                there.number,
                there.window(),
            )

    # ---- the end

    def terminate(self) -> None:
        """Interrupt what waits, and wait until all sockets are closed and have sent what they had to send."""
        with self.changed:
            self.terminated = True
            cores = list(self.cores)
        for core in cores:
            with core.lock:
                if not core.closed:
                    core.wake()
        if self.process != os.getpid():
            return
        with self.changed:
            while self.cores:
                # In slices, so that signals are handled.
                self.changed.wait(0.1)


def _close_with_shadows(destroy: Any) -> Any:
    """`Context.destroy` that also closes the sockets that shadows of the context made: it would wait for them."""

    @functools.wraps(destroy)
    def wrapped(self: Any, linger: int | None = None) -> None:
        core = self._core
        if not self._shadow and not self.closed and core is not None:
            for socket in list(core.of_shadows):
                if not socket.closed:
                    socket.close(linger=linger)
        destroy(self, linger)

    return wrapped


class Context:
    """What pyzmq's `Context` derives from."""

    _core: ContextCore | None = None
    _closed = True
    _shadow = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__ == "zmq.sugar.context" and "destroy" in cls.__dict__:
            type.__setattr__(cls, "destroy", _close_with_shadows(cls.__dict__["destroy"]))

    def __init__(self, io_threads: int = 1, shadow: int = 0) -> None:
        if shadow:
            self._core = CONTEXTS.get(shadow)
            if self._core is None:
                fail(Errno.EFAULT)
            self._shadow = True
        else:
            self._shadow = False
            if not io_threads >= 0:
                fail(Errno.EINVAL)
            self._core = ContextCore(io_threads)
        self._closed = False

    @property
    def underlying(self) -> int:
        """The number of the context, by which others shadow it."""
        return self._core.number if self._core is not None else 0

    @property
    def closed(self) -> bool:
        """Whether it was terminated by this object."""
        return self._closed

    def set(self, option: int, value: int) -> None:
        """Set an option of the context."""
        core = self._usable()
        if option not in core.options:
            fail(Errno.EINVAL, f"context option {option} cannot be set on byref: {OPTIONS}")
        if not isinstance(value, int):
            raise TypeError(f"expected int, got: {value!r}")
        if value < 0 or (option == ContextOption.MAX_SOCKETS and not 1 <= value <= SOCKET_LIMIT):
            fail(Errno.EINVAL)
        core.options[option] = value

    def get(self, option: int) -> int:
        """What an option of the context is set to."""
        core = self._usable()
        if option == ContextOption.SOCKET_LIMIT:
            return SOCKET_LIMIT
        if option == ContextOption.MSG_T_SIZE:
            return 64
        if option not in core.options:
            fail(Errno.EINVAL, f"context option {option} cannot be read on byref: {OPTIONS}")
        return core.options[option]

    def _usable(self) -> ContextCore:
        if self._core is None or self._closed:
            fail(Errno.EFAULT)
        return self._core

    def term(self) -> None:
        """Terminate the context: calls that wait raise, and this waits until all sockets are closed."""
        if self._closed or self._core is None:
            return
        self._core.terminate()
        self._closed = True


def _in_child() -> None:
    """In a forked child nothing of the parent's goes on, and nothing of it is disturbed."""
    hub.abandon()
    for core in list(CORES.values()):
        core.lock = threading.RLock()
        core.reading = False
        for link in list(core.links):
            link.open = False
            link.connection.close()
        core.links.clear()
        for listener in core.listeners.values():
            if not isinstance(listener, str):
                listener.listening.close()
        for found in core.connectors.values():
            for one in found:
                if not isinstance(one, Pipe) and one.trying is not None:
                    one.trying.close()
    for context in list(CONTEXTS.values()):
        context.changed = threading.Condition(threading.RLock())


os.register_at_fork(after_in_child=_in_child)
