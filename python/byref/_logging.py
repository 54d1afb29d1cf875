"""The core's log lines, passed on to Python's `logging`."""

import atexit
import logging
import os
import socket
import struct
import threading
import traceback

from . import _byref

# Time (ns), process, level, lost lines, length of the target.
_HEAD = struct.Struct("<QIIII")
_LONGEST = 1 << 14
# So long (s) the end of the interpreter waits for lines that are under way.
_PATIENCE = 2.0

_reader: threading.Thread | None = None
_process = 0


def log_to_logging(logger: logging.Logger | str = "byref", level: int | None = None) -> None:
    """Have byref's log lines go to Python's `logging` instead of standard error.

    A thread of its own passes them on, so a line may come a moment later than what it tells of; its `created` and
    `process` are those of the event. byref waits for no handler: if more lines come than are taken, some are lost, and
    counted.

    `logger`: the logger, or its name. `level`: the lowest level that byref makes lines for, as `logging` counts;
    default: what `BYREF_LOG` says if it is set, otherwise the logger's effective level at this moment. Debug lines tell
    of each connection. A forked child logs to standard error until it calls this, too.

    Calling it again changes logger and level.
    """
    global _reader, _process
    if isinstance(logger, str):
        logger = logging.getLogger(logger)
    if level is None and "BYREF_LOG" not in os.environ:
        level = logger.getEffectiveLevel()
    _stop()
    end = socket.socket(fileno=_byref._open_log(level))
    _process = os.getpid()
    _reader = threading.Thread(target=_pass_on, args=(end, logger), name="byref-logging", daemon=True)
    _reader.start()


def _pass_on(end: socket.socket, logger: logging.Logger) -> None:
    with end:
        while packet := end.recv(_LONGEST):
            time_ns, process, level, lost, length = _HEAD.unpack_from(packet)
            target = packet[_HEAD.size : _HEAD.size + length].decode(errors="replace")
            text = packet[_HEAD.size + length :].decode(errors="replace")
            if lost:
                text += f" ({lost} lines before were lost: they came faster than they were handled)"
            if not logger.isEnabledFor(level):
                continue
            try:
                record = logger.makeRecord(logger.name, level, target, 0, "%s", (text,), None)
                record.created, record.msecs = time_ns / 1e9, time_ns // 1_000_000 % 1000
                record.process, record.module = process, target.rpartition("::")[2]
                logger.handle(record)
            except Exception:  # A filter or handler of the program's own: the next line may fare better.
                traceback.print_exc()


def _stop() -> None:
    """Have lines go to standard error again, when those that are under way have been passed on."""
    global _reader
    reader, _reader = _reader, None
    if reader is not None and _process == os.getpid():
        _byref._close_log()
        if reader is not threading.current_thread():  # A handler's call: it comes to its end behind it.
            reader.join(_PATIENCE)


def _end() -> None:
    """Pass on what is under way, and tell of what was lost."""
    _stop()
    _byref._tell_lost_log()


atexit.register(_end)
