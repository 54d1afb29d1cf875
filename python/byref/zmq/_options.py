"""Socket options: which there are, with their defaults and what values they take."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from zmq.constants import Errno, SocketOption, SocketType, _OptType

from ._errors import OPTIONS, fail

_log = logging.getLogger("byref.zmq")
_said: set[int] = set()

Opt, T = SocketOption, SocketType


def _from(least: int, most: int = 2**31 - 1) -> Callable[[int], bool]:
    return lambda value: least <= value <= most


_flag, _any, _time = _from(0, 1), _from(-(2**31)), _from(-1)
_ROUTING = {T.ROUTER}
_XPUB = {T.XPUB}
_ALL: set[SocketType] | None = None

# Numbers: the default, what values it takes, and the sockets that have it (None: all).
NUMBERS: dict[int, tuple[int, Callable[[int], bool], set[SocketType] | None]] = {
    Opt.LINGER: (-1, _time, _ALL),
    Opt.SNDHWM: (1000, _from(0), _ALL),
    Opt.RCVHWM: (1000, _from(0), _ALL),
    Opt.SNDTIMEO: (-1, _time, _ALL),
    Opt.RCVTIMEO: (-1, _time, _ALL),
    Opt.RECONNECT_IVL: (100, _time, _ALL),
    Opt.RECONNECT_IVL_MAX: (0, _from(0), _ALL),
    Opt.RECONNECT_STOP: (0, _from(0, 7), _ALL),
    Opt.BACKLOG: (100, _from(0), _ALL),
    Opt.IMMEDIATE: (0, _flag, _ALL),
    Opt.IPV6: (0, _flag, _ALL),
    Opt.IPV4ONLY: (1, _flag, _ALL),
    Opt.HANDSHAKE_IVL: (30000, _from(0), _ALL),
    Opt.CONFLATE: (0, _flag, {T.PULL, T.PUSH, T.SUB, T.PUB, T.DEALER}),
    Opt.ROUTER_MANDATORY: (0, _flag, _ROUTING),
    Opt.ROUTER_HANDOVER: (0, _flag, _ROUTING),
    Opt.PROBE_ROUTER: (0, _flag, {T.ROUTER, T.DEALER, T.REQ}),
    Opt.REQ_CORRELATE: (0, _flag, {T.REQ}),
    Opt.REQ_RELAXED: (0, _flag, {T.REQ}),
    Opt.XPUB_VERBOSE: (0, _flag, _XPUB),
    Opt.XPUB_VERBOSER: (0, _flag, _XPUB),
    Opt.XPUB_MANUAL: (0, _flag, _XPUB),
    Opt.XPUB_NODROP: (0, _flag, {T.XPUB, T.PUB}),
    Opt.INVERT_MATCHING: (0, _flag, {T.PUB, T.XPUB, T.SUB, T.XSUB}),
}

# Numbers that say how libzmq is to use the network, or its threads. There is nothing here that they could change: what
# they are for is the case, or has no meaning. They are kept, and the log says so once at level INFO.
WITHOUT_EFFECT: dict[int, tuple[int, Callable[[int], bool]]] = {
    Opt.AFFINITY: (0, lambda value: 0 <= value < 2**64),
    Opt.MAXMSGSIZE: (-1, lambda value: value >= -1),
    Opt.SNDBUF: (-1, _time),
    Opt.RCVBUF: (-1, _time),
    Opt.TOS: (0, _from(0)),
    Opt.TCP_KEEPALIVE: (-1, _from(-1, 1)),
    Opt.TCP_KEEPALIVE_CNT: (-1, _time),
    Opt.TCP_KEEPALIVE_IDLE: (-1, _time),
    Opt.TCP_KEEPALIVE_INTVL: (-1, _time),
    Opt.TCP_MAXRT: (0, _from(0)),
    Opt.HEARTBEAT_IVL: (0, _from(0)),
    Opt.HEARTBEAT_TTL: (0, _from(0, 6553599)),
    Opt.HEARTBEAT_TIMEOUT: (-1, _time),
    Opt.CONNECT_TIMEOUT: (0, _from(0)),
    Opt.RATE: (100, _from(1)),
    Opt.RECOVERY_IVL: (10000, _from(0)),
    Opt.MULTICAST_HOPS: (1, _from(1)),
    Opt.MULTICAST_MAXTPDU: (1500, _from(1)),
    Opt.MULTICAST_LOOP: (1, _flag),
    Opt.IN_BATCH_SIZE: (8192, _from(1)),
    Opt.OUT_BATCH_SIZE: (8192, _from(1)),
    Opt.PRIORITY: (0, _from(0)),
    Opt.BUSY_POLL: (0, _flag),
}

# What can be read and says that something is not there.
ABSENT: dict[int, int | bytes] = {
    Opt.MECHANISM: 0,
    Opt.THREAD_SAFE: 0,
    Opt.USE_FD: -1,
    Opt.PLAIN_SERVER: 0,
    Opt.CURVE_SERVER: 0,
    Opt.GSSAPI_SERVER: 0,
    Opt.ZAP_DOMAIN: b"",
    Opt.ZAP_ENFORCE_DOMAIN: 0,
    Opt.BINDTODEVICE: b"",
    Opt.LOOPBACK_FASTPATH: 0,
    Opt.METADATA: b"",
    Opt.SOCKS_PROXY: b"",
}

TEXTS = {Opt.ROUTING_ID, Opt.CONNECT_ROUTING_ID, Opt.XPUB_WELCOME_MSG, Opt.SUBSCRIBE, Opt.UNSUBSCRIBE}


def defaults() -> dict[int, Any]:
    """The options of a new socket."""
    found: dict[int, Any] = {option: default for option, (default, *_) in (NUMBERS | WITHOUT_EFFECT).items()}
    return found | {Opt.ROUTING_ID: b"", Opt.CONNECT_ROUTING_ID: b"", Opt.XPUB_WELCOME_MSG: b""}


def check(kind: int, option: int, value: int | bytes) -> None:
    """Raise what pyzmq and libzmq raise for an option that is not there, or not so."""
    if isinstance(value, str):
        raise TypeError("unicode not allowed, use bytes")
    try:
        known: SocketOption | None = SocketOption(option)
    except ValueError:
        known = None
    if isinstance(value, bytes | bytearray | memoryview):
        if known is None or known._opt_type != _OptType.bytes:
            raise TypeError(f"not a bytes sockopt: {option}")
    elif known is not None and known._opt_type == _OptType.bytes:
        raise TypeError(f"expected bytes, got: {value!r}")
    elif not isinstance(value, int):
        raise TypeError(f"expected int, got: {value!r}")
    if option in TEXTS:
        return
    if option in WITHOUT_EFFECT:
        if not isinstance(value, int) or not WITHOUT_EFFECT[option][1](value):
            fail(Errno.EINVAL)
        if option not in _said:
            _said.add(option)
            _log.info("%s has no effect on byref: %s", SocketOption(option).name, OPTIONS)
        return
    if option not in NUMBERS:
        name = known.name if known is not None else option
        fail(Errno.EINVAL, f"socket option {name} cannot be set on byref: {OPTIONS}")
    _, valid, sockets = NUMBERS[option]
    if not isinstance(value, int) or not valid(value) or (sockets is not None and kind not in sockets):
        fail(Errno.EINVAL)
