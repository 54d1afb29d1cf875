"""Serializers that read from a buffer work on messages as they are; what they make without a copy holds the lease."""

import gc
from typing import Any

import flatbuffers
import msgspec
import numpy as np
import pytest
from flatbuffers import encode, number_types, packer, table
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tests.conftest import Endpoints
from tests.payloads import is_payload, payload
from tests.processes import is_in_pool
from tests.test_lifetime import whole_pool_is_free

MIB = 1 << 20


def protobuf_class() -> Any:
    """The class of `message Frame { uint64 id = 1; bytes pixels = 2; }`, without a compiler."""
    file = descriptor_pb2.FileDescriptorProto(name="frame.proto", package="tests", syntax="proto3")
    frame = file.message_type.add(name="Frame")
    field = descriptor_pb2.FieldDescriptorProto
    frame.field.add(name="id", number=1, type=field.TYPE_UINT64, label=field.LABEL_OPTIONAL)
    frame.field.add(name="pixels", number=2, type=field.TYPE_BYTES, label=field.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tests.Frame"))


@pytest.mark.parametrize("size", [10, 5000, MIB])
def test_protobuf(size: int, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    frame_class = protobuf_class()
    pub.send(frame_class(id=7, pixels=bytes(payload(1, size))).SerializeToString())
    msg = sub.recv(timeout=30)
    frame = frame_class.FromString(memoryview(msg))
    # What protobuf has parsed is its own: the message is free to go.
    msg.release()
    assert frame.id == 7
    assert is_payload(frame.pixels, 1, size)


def build_flatbuffer(count: int) -> bytearray:
    """`table Samples { values: [double]; id: int; }`, built as the generated code does."""
    builder = flatbuffers.Builder(0)
    values = builder.CreateNumpyVector(np.arange(count, dtype="f8"))
    builder.StartObject(2)
    builder.PrependUOffsetTRelativeSlot(0, values, 0)
    builder.PrependInt32Slot(1, 42, 0)
    builder.Finish(builder.EndObject())
    return bytearray(builder.Output())


@pytest.mark.parametrize("count", [5, 1000, MIB // 8])
def test_flatbuffers(count: int, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    pub.send(build_flatbuffer(count))
    msg = sub.recv(timeout=30)
    buffer = memoryview(msg)
    root = table.Table(buffer, encode.Get(packer.uoffset, buffer, 0))
    values = root.GetVectorAsNumpy(number_types.Float64Flags, root.Offset(4))
    assert root.Get(number_types.Int32Flags, root.Pos + root.Offset(6)) == 42
    assert (values == np.arange(count)).all()
    # The vector lies in the message, aligned, and holds it.
    assert values.ctypes.data % 8 == 0
    assert is_in_pool(values.ctypes.data) == (count > 5)
    assert not values.flags.writeable
    del root, buffer
    with pytest.raises(BufferError, match="views"):
        msg.release()
    del values
    msg.release()


class Frame(msgspec.Struct):
    """What is sent."""

    id: int
    pixels: bytes


class Viewed(msgspec.Struct):
    """The same, read without a copy of its pixels."""

    id: int
    pixels: memoryview


class Raw(msgspec.Struct):
    """The same, with pixels that are decoded later."""

    id: int
    pixels: msgspec.Raw


@pytest.mark.parametrize("size", [10, 5000, MIB])
def test_msgspec(size: int, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=4 * MIB)
    pub.send(msgspec.msgpack.encode(Frame(7, bytes(payload(1, size)))))
    msg = sub.recv(timeout=30)
    viewed = msgspec.msgpack.decode(msg, type=Viewed)
    copied = msgspec.msgpack.decode(msg, type=Frame)
    assert (viewed.id, copied.id) == (7, 7)
    assert is_payload(copied.pixels, 1, size)
    assert is_payload(viewed.pixels, 1, size)
    assert viewed.pixels.readonly
    assert is_in_pool(np.frombuffer(viewed.pixels, np.uint8).ctypes.data) == (size > 10)
    with pytest.raises(BufferError, match="views"):
        msg.release()
    del msg
    gc.collect()
    assert is_payload(viewed.pixels, 1, size)
    del viewed
    assert whole_pool_is_free(pub, 3 * MIB)


@pytest.mark.parametrize("with_type", [False, True])
def test_a_consumer_that_gives_back_another_buffer(with_type: bool, endpoints: Endpoints) -> None:
    # msgspec's Raw releases a Py_buffer that it made up, with nothing of ours in it.
    pub, sub = endpoints.pair()
    encoded = msgspec.msgpack.encode(Frame(7, bytes(payload(1, 5000))))
    for _ in range(20):
        pub.send(np.frombuffer(encoded, np.uint8) if with_type else encoded)
        msg = sub.recv(timeout=30)
        raw = msgspec.msgpack.decode(msg, type=Raw)
        with pytest.raises(BufferError, match="1 views"):
            msg.release()
        assert is_payload(msgspec.msgpack.decode(raw.pixels, type=bytes), 1, 5000)
        del raw
        msg.release()


def test_json(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    pub.send(msgspec.json.encode({"ticks": [1, 2.5], "name": "a"}))
    msg = sub.recv(timeout=30)
    assert msgspec.json.decode(msg) == {"ticks": [1, 2.5], "name": "a"}
    msg.release()


def test_alignment(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    for size in [*range(1, 40), *range(215, 300), 1001, 4097, 100_003, MIB + 1]:
        pub.send(bytes(size))
        pub.send(bytes(size), headers={"odd": "x"})
        with pub.loan(size) as memory:
            memory[:] = 1
        for _ in range(3):
            msg = sub.recv(timeout=30)
            address = np.asarray(msg).ctypes.data
            assert address % (64 if is_in_pool(address) else 8) == 0
            assert msg.writable().ctypes.data % 8 == 0


def test_alignment_of_rows(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    for row_size in (8, 12, 64, 7):
        pub.send_many([bytes(row_size)] * 100)
        received = [sub.recv(timeout=30) for _ in range(100)]
        addresses = [np.asarray(msg).ctypes.data for msg in received]
        assert is_in_pool(addresses[0])
        assert addresses[0] % 64 == 0
        assert addresses == [addresses[0] + row_size * row for row in range(100)]
