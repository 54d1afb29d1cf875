"""Peers written by hand: what they say may be anything."""

import fcntl
import functools
import os
import socket
import struct
from pathlib import Path

MAGIC = 0x6279_7265
VERSION = 2
FIRST = struct.pack("<II", MAGIC, VERSION)
# A publisher's answers, behind the first words.
WELCOME, NOT_THIS_TOPIC = b"\1", b"\2"
# What a ring must not be able to do any more: shrink, grow, be written by others, change this.
SEALED = 0x17


def memfd(size: int, seals: int | None = None) -> int:
    """Memory to pass to somebody, perhaps sealed."""
    fd = os.memfd_create("stranger", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if seals is not None:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def fake_publisher(rendezvous: Path, topic: str = "t", number: int = 0xDEADBEEF) -> socket.socket:
    """A socket in the place of a publisher of this topic."""
    start, prime = 0xCBF29CE484222325, 0x100000001B3
    hashed = functools.reduce(lambda value, byte: (value ^ byte) * prime % 2**64, topic.encode(), start)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.settimeout(20)
    listener.bind(str(rendezvous / f"tmp-{number:032x}"))
    listener.listen()
    os.rename(rendezvous / f"tmp-{number:032x}", rendezvous / f"{hashed:016x}-{number:032x}")
    return listener


def accept_subscriber(listener: socket.socket) -> socket.socket:
    """The first to connect and say something; who only looks whether anybody listens goes without a word."""
    while True:
        end, _ = listener.accept()
        end.settimeout(20)
        if end.recv(4096):
            return end
        end.close()


def welcome(topic: str) -> bytes:
    """The answer of a publisher number 5, without a name, whose ring of 16 records is empty."""
    text = topic.encode()
    assert len(text) < 128
    return FIRST + WELCOME + b"\5" + bytes([len(text)]) + text + b"\0" + b"\0" + b"\0" + b"\x10" + b"\0"
