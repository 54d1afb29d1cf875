"""Where the adapter meets ezmsg: what is exchanged, and whether this ezmsg has it as it is expected."""

from __future__ import annotations

import functools
import inspect
import threading
from importlib import metadata
from typing import Any

_FIRST, _BELOW = (3, 9), (4, 0)

# What is exchanged, with the parameters that it must have: those that the stand-in is written for.
_EXPECTED = {
    "pubclient.GraphService.create_shm": ("self", "num_buffers", "buf_size"),
    "pubclient.Publisher.create": (
        *("topic", "graph_address", "host", "port", "buf_size", "num_buffers"),
        *("start_paused", "force_tcp", "allow_local"),
    ),
    "pubclient.Publisher.broadcast": ("self", "obj"),
    "pubclient.Publisher.sync": ("self",),
    "pubclient.Publisher._handle_channel": ("self", "info", "reader"),
    "messagechannel.GraphService.attach_shm": ("self", "name"),
    "messagechannel.Channel._publisher_connection": ("self", "reader"),
    "messagechannel.Channel.register_client": ("self", "client_id", "queue", "local_backpressure"),
    "messagechannel.Channel.unregister_client": ("self", "client_id"),
    "messagechannel.Channel.get": ("self", "msg_id", "client_id"),
    "messagemarshal.Marshal.dump": ("obj",),
    "messagemarshal.Marshal.load": ("buffers",),
    "subclient.Subscriber.recv": ("self",),
    "subclient.Subscriber.recv_zero_copy": ("self",),
    "subclient.Subscriber.close": ("self",),
    "subclient.Subscriber._handle_dropped_notification": ("self", "notification"),
    "backendprocess.handle_subscriber": ("sub", "callables", "on_message"),
}

_lock = threading.Lock()
_is_installed = False


def install() -> None:
    """Put everything in place, once."""
    global _is_installed
    with _lock:
        if not _is_installed:
            _check()
            _exchange()
            _is_installed = True


def _check() -> None:
    try:
        version = metadata.version("ezmsg")
    except metadata.PackageNotFoundError:
        raise ImportError("byref.integrations.ezmsg needs ezmsg: pip install 'ezmsg>=3.9,<4'") from None
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if not _FIRST <= numbers < _BELOW:
        raise _unfit(version, "")
    from ezmsg.core import backendprocess, messagechannel, messagemarshal, pubclient, subclient

    parts = (backendprocess, messagechannel, messagemarshal, pubclient, subclient)
    modules = {module.__name__.rpartition(".")[2]: module for module in parts}
    for place, parameters in _EXPECTED.items():
        found: Any = modules
        for step in place.split("."):
            found = found.get(step) if isinstance(found, dict) else getattr(found, step, None)
        if found is None:
            raise _unfit(version, f"; it has no {place}")
        if tuple(inspect.signature(found).parameters) != parameters:
            raise _unfit(version, f"; {place} has other parameters than {', '.join(parameters)}")


def _unfit(version: str, detail: str) -> ImportError:
    since, until = (".".join(map(str, bound)) for bound in (_FIRST, _BELOW))
    text = f"byref.integrations.ezmsg works with ezmsg from {since} on and below {until}, but {version} is installed"
    return ImportError(f"{text}{detail}: pip install 'ezmsg>={since},<{until}'")


def _exchange() -> None:
    from ezmsg.core import backendprocess, messagechannel, pubclient, subclient

    from . import _receiver, _sender, _units

    pubclient.GraphService = _sender.GraphService
    messagechannel.GraphService = _receiver.GraphService
    for place, name, stand_in in (
        (pubclient.Publisher, "create", _sender.create),
        (pubclient.Publisher, "broadcast", _sender.broadcast),
        (pubclient.Publisher, "sync", _sender.sync),
        (pubclient.Publisher, "_handle_channel", _sender.handle_channel),
        (messagechannel.Channel, "_publisher_connection", _receiver.publisher_connection),
        (messagechannel.Channel, "register_client", _receiver.register_client),
        (messagechannel.Channel, "unregister_client", _receiver.unregister_client),
        (subclient.Subscriber, "recv", _receiver.recv),
        (subclient.Subscriber, "recv_zero_copy", _receiver.recv_zero_copy),
        (subclient.Subscriber, "close", _receiver.close),
        (subclient.Subscriber, "_handle_dropped_notification", _receiver.handle_dropped_notification),
        (backendprocess, "handle_subscriber", _units.handle_subscriber),
    ):
        stock = getattr(place, name)
        # Its name, documentation and signature, which some programs look at.
        named = functools.wraps(getattr(stock, "__func__", stock))(stand_in)
        setattr(place, name, classmethod(named) if inspect.ismethod(stock) else named)
