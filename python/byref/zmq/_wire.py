"""How a message of several parts, and what sockets say to each other, travels as one message of a mailbox.

A mailbox's message has a number of 64 bits that its sender chooses (`timestamp_ns`). Here it is the tag: flags that say
what the payload is, the receiver's number for the pipe that it came through, and a value.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TypeAlias

import byref

# What travels as a part, and what a received one is.
Part: TypeAlias = "bytes | memoryview | byref.Message"
Payload: TypeAlias = "Part | list[Part]"

# Flags: the payload is a list of parts; it is small parts, packed; an empty part stands in front of it, as in what REQ
# sends; it is a command.
LISTED, PACKED, EMPTY, COMMAND = 1, 2, 4, 8
# Where the number of the pipe begins, and the value of a command.
PIPE_SHIFT, PIPE_MASK = 8, 0xFFFFFFFF
VALUE_SHIFT, VALUE_LIMIT = 44, 1 << 20
# Commands stand between these and the pipe. HELLO opens the way; CREDIT: so many messages were taken; BYE: nothing
# comes after it; WAKE is from a socket to itself.
KIND_SHIFT, KIND_MASK = 40, 0xF
HELLO, CREDIT, SUBSCRIBE, UNSUBSCRIBE, BYE, WAKE = range(1, 7)

# Bytes up to which several parts are packed: a copy of so few costs less than a list of parts.
PACKED_LIMIT = 16384


def command(kind: int, pipe: int = 0, value: int = 0) -> int:
    """The tag of a command."""
    return COMMAND | pipe << PIPE_SHIFT | kind << KIND_SHIFT | value << VALUE_SHIFT


def pack(parts: Sequence[Part]) -> tuple[Payload, int]:
    """The payload and the flags of a message of these parts."""
    if len(parts) == 1:
        return parts[0], 0
    lengths = [len(part) for part in parts]
    if sum(lengths) > PACKED_LIMIT:
        return list(parts), LISTED
    return b"".join((struct.pack(f"<{len(parts) + 1}I", len(parts), *lengths), *map(bytes, parts))), PACKED


def encode(parts: Sequence[Part]) -> tuple[Payload, int]:
    """Pack the parts; an empty one in front of others becomes a flag."""
    if len(parts) > 1 and not len(parts[0]):
        payload, flags = pack(parts[1:])
        return payload, flags | EMPTY
    return pack(parts)


def unpack(message: byref.Message, tag: int) -> list[Part]:
    """The parts of a message, without the empty one that a flag stands for."""
    if tag & PACKED:
        data = bytes(message)
        (count,) = struct.unpack_from("<I", data)
        at = 4 * (count + 1)
        parts: list[Part] = []
        for length in struct.unpack_from(f"<{count}I", data, 4):
            parts.append(data[at : at + length])
            at += length
        return parts
    return message.value if tag & LISTED else [message]


def decode(message: byref.Message, tag: int) -> list[Part]:
    """All parts of a message."""
    parts = unpack(message, tag)
    return [b"", *parts] if tag & EMPTY else parts


def owned(payload: Payload) -> Payload:
    """The payload in memory that nobody changes."""
    if isinstance(payload, list):
        return [bytes(part) if isinstance(part, memoryview) else part for part in payload]
    return bytes(payload) if isinstance(payload, memoryview) else payload
