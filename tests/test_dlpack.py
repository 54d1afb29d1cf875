"""Tensors: messages in other libraries, and other libraries' tensors as messages."""

import ctypes
import gc
import importlib.util
import itertools
import signal
import sys
from collections.abc import Callable
from typing import Any

import byref
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from byref import _dtypes
from numpy._core._rational_tests import rational

from tests.conftest import Endpoints
from tests.payloads import is_payload, payload
from tests.processes import Child, Line, eventually, is_in_pool, mapping_at
from tests.tensors import IS_COPIED, READ_ONLY, Tensor
from tests.test_isolation import publish as publish_to_two
from tests.test_lifetime import mapped_pools, publish, whole_pool_is_free

Spawn = Callable[..., Child]

MIB = 1 << 20
TYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]
SHAPES = [(), (0,), (1,), (3,), (0, 4), (2, 0, 3), (2, 3), (2, 1, 3, 2), (1,) * 64, (1000,), (300, 500)]
# What DLPack calls them: a code and bits.
ML_TYPES = {
    ml_dtypes.bfloat16: (4, 16),
    ml_dtypes.float8_e3m4: (7, 8),
    ml_dtypes.float8_e4m3: (8, 8),
    ml_dtypes.float8_e4m3b11fnuz: (9, 8),
    ml_dtypes.float8_e4m3fn: (10, 8),
    ml_dtypes.float8_e4m3fnuz: (11, 8),
    ml_dtypes.float8_e5m2: (12, 8),
    ml_dtypes.float8_e5m2fnuz: (13, 8),
    ml_dtypes.float8_e8m0fnu: (14, 8),
}


def is_private(address: int) -> bool:
    """Whether an address lies in a copy-on-write mapping of a publisher's payload memory."""
    perms, name = mapping_at(address)
    return "memfd:byref-pool" in name and perms == "rw-p"


# ---- what a consumer gets ----


@pytest.mark.parametrize("dtype", TYPES)
def test_numpy_takes_every_type_and_shape_in_place(dtype: str, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    for shape in SHAPES:
        sent = (np.arange(np.prod(shape, dtype=int)) % 100).astype(dtype).reshape(shape)
        pub.send(sent)
        msg = sub.recv(timeout=30)
        seen = np.from_dlpack(msg)
        assert (seen.dtype, seen.shape, seen.tobytes()) == (sent.dtype, shape, sent.tobytes())
        assert not seen.flags.writeable
        if sent.nbytes > byref.INLINE_LIMIT:
            assert seen.ctypes.data == np.asarray(msg).ctypes.data
            assert is_in_pool(seen.ctypes.data)
    assert sub.stats()["copied_bytes"] < 5000 * np.dtype(dtype).itemsize  # the inline ones


def test_plain_bytes_are_a_tensor_of_bytes(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    for size in (0, 10, 10_000):
        pub.send(bytes(payload(size, size)))
        assert is_payload(np.from_dlpack(sub.recv(timeout=30)), size, size)


def test_the_structs(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    for shape, strides in [((), ()), ((2, 3, 4), (12, 4, 1)), ((500,), (1,)), ((2, 0, 3), (3, 3, 1))]:
        sent = np.ones(shape, "<i2")
        pub.send(sent)
        msg = sub.recv(timeout=30)
        requests: list[dict[str, Any]] = [{}, {"max_version": (0, 8)}, {"max_version": (1, 0)}, {"max_version": (2, 1)}]
        for request in requests:
            tensor = Tensor(msg, **request, stream=None, dl_device=(1, 0), copy=None)
            assert (tensor.shape, tensor.strides) == (shape, strides)
            assert (tensor.device, tensor.type, tensor.byte_offset) == ((1, 0), (0, 16, 1), 0)
            if request.get("max_version", (0, 0)) < (1, 0):
                assert not tensor.is_versioned
            else:
                assert (tensor.version, tensor.flags) == ((1, 0), READ_ONLY)
            assert tensor.bytes(sent.nbytes).tobytes() == sent.tobytes()
            tensor.delete()
        msg.release()


@pytest.mark.parametrize("size", [100, 5000, MIB])
def test_a_consumer_that_knows_no_flags_gets_a_private_view(size: int, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    pub.send(payload(1, size))
    msg = sub.recv(timeout=30)
    one, two = Tensor(msg), Tensor(msg)
    assert is_private(one.data) == (size == MIB)
    one.bytes(size)[:] = 1
    assert is_payload(two.bytes(size), 1, size)
    assert is_payload(msg, 1, size)
    two.bytes(size)[: size // 2] = 2
    assert (one.bytes(size) == 1).all()
    one.delete()
    two.delete()


@pytest.mark.parametrize("size", [0, 100, MIB])
def test_copies(size: int, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    pub.send(payload(1, size))
    msg = sub.recv(timeout=30)
    copied = Tensor(msg, max_version=(1, 0), copy=True)
    assert copied.flags == IS_COPIED
    legacy = Tensor(msg, copy=True)
    mine = np.from_dlpack(msg, copy=True)
    assert np.from_dlpack(msg, copy=False).flags.writeable is False
    # Copies hold nothing.
    msg.release()
    for tensor in (copied, legacy):
        seen = tensor.bytes(size)
        assert is_payload(seen, 1, size)
        assert size == 0 or (tensor.data % 64 == 0 and "byref" not in mapping_at(tensor.data)[1])
        seen[:] = 0
        tensor.delete()
    assert mine.flags.writeable
    assert is_payload(mine, 1, size)


def test_a_subscriber_that_writes_gets_private_tensors(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(writable=True)
    for size in (100, MIB):
        pub.send(payload(1, size))
        msg = sub.recv(timeout=30)
        mine = np.from_dlpack(msg)
        mine[:] = 3
        assert is_payload(msg, 1, size)
        # Who asks for the memory itself gets that.
        assert not np.from_dlpack(msg, copy=False).flags.writeable


def test_requests_that_cannot_be_met(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    pub.send(bytes(1000))
    msg = sub.recv(timeout=30)
    assert msg.__dlpack_device__() == (1, 0)
    with pytest.raises(BufferError, match="copy-on-write"):
        msg.__dlpack__(copy=False)
    for version in ((0, 8), (1, 0)):
        with pytest.raises(BufferError, match=r"main memory.*\(2, 0\)"):
            msg.__dlpack__(max_version=version, dl_device=(2, 0))
        with pytest.raises(BufferError, match="stream"):
            msg.__dlpack__(max_version=version, stream=1)
    msg.release()
    with pytest.raises(byref.Closed):
        msg.__dlpack__()


@pytest.mark.parametrize(
    "dtype", ["<M8[s]", "<m8[ns]", ">f4", ">i2", "S3", "<U3", "V4", "g", [("x", "<f4")], ml_dtypes.int4]
)
def test_types_that_dlpack_lacks(dtype: Any, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    sent = np.zeros(3, dtype)
    pub.send(sent)
    msg = sub.recv(timeout=30)
    with pytest.raises(BufferError) as refused:
        msg.__dlpack__(max_version=(1, 0))
    assert str(sent.dtype) in str(refused.value)
    msg.release()


# ---- the lease ----


def jax_of(msg: byref.Message) -> Any:
    """A JAX array over a message."""
    return jax.dlpack.from_dlpack(msg)


WAYS: dict[str, Callable[[byref.Message], Any]] = {"numpy": np.from_dlpack, "jax": jax_of}


@pytest.mark.parametrize("way", WAYS)
def test_a_tensor_outlives_message_subscriber_and_publisher(way: str, spawn: Spawn) -> None:
    sub = byref.Subscriber("t")
    publisher = spawn(publish, MIB, 8 * MIB)
    publisher.tell([0, 1])
    msg = sub.recv(timeout=30)
    tensor = WAYS[way](msg)
    sub.close()
    publisher.kill()
    del msg, sub
    gc.collect()
    assert is_payload(np.asarray(tensor), 0, MIB)
    tensor = None
    gc.collect()
    assert eventually(lambda: not mapped_pools(), "the memory goes with the tensor")


@pytest.mark.parametrize("way", WAYS)
def test_a_tensor_stays_right_while_traffic_goes_on(way: str, spawn: Spawn, endpoints: Endpoints) -> None:
    sub, other = byref.Subscriber("t"), endpoints.subscriber()
    publisher = spawn(publish, MIB, 8 * MIB)
    sub.wait_for_publishers(timeout=30)
    other.wait_for_publishers(timeout=30)
    publisher.tell([0, 1])
    tensor = WAYS[way](sub.recv(timeout=30))
    sub.close()
    del sub
    publisher.tell([1, 60])
    for seed in range(60):
        assert is_payload(other.recv(timeout=30), seed, MIB)
    assert is_payload(np.asarray(tensor), 0, MIB)


@pytest.mark.parametrize("way", WAYS)
def test_the_memory_comes_back(way: str, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=8 * MIB)
    # Two tensors of each message; then one of each pair goes, which frees nothing yet.
    pairs = []
    for seed in range(4):
        pub.send(payload(seed, MIB))
        msg = sub.recv(timeout=30)
        pairs.append([WAYS[way](msg), WAYS[way](msg)])
    del msg
    for _ in range(2):
        gc.collect()
        assert not whole_pool_is_free(pub, 7 * MIB)
        assert all(is_payload(np.asarray(pair[-1]), seed, MIB) for seed, pair in enumerate(pairs))
        for pair in pairs:
            pair.pop(0)
    pairs.clear()
    assert eventually(lambda: whole_pool_is_free(pub, 7 * MIB), "all memory is free again")


@pytest.mark.parametrize("size", [100, 5000, MIB])
def test_release_refuses_while_a_tensor_lives(size: int, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    pub.send(payload(1, size))
    msg = sub.recv(timeout=30)
    tensors = [Tensor(msg, max_version=(1, 0)), Tensor(msg), Tensor(msg, max_version=(1, 2))]
    capsule = msg.__dlpack__()
    for tensor in tensors:
        with pytest.raises(BufferError, match="views"):
            msg.release()
        assert is_payload(tensor.bytes(size), 1, size)
        tensor.delete_elsewhere()
    with pytest.raises(BufferError, match="1 views"):
        msg.release()
    del capsule
    msg.release()


def test_deleters_run_on_any_thread_without_the_interpreter(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=64 * MIB)
    for round in range(3):
        tensors = []
        for seed in range(300):
            pub.send(payload(seed, 20_000))
            request: Any = {} if seed % 2 else {"max_version": (1, 0)}
            tensors.append(Tensor(sub.recv(timeout=30), **request))
        assert all(is_payload(tensor.bytes(20_000), seed, 20_000) for seed, tensor in enumerate(tensors))
        for tensor in itertools.islice(tensors, round, None, 10):
            tensor.delete_elsewhere()
        for index, tensor in enumerate(tensors):
            if index % 10 != round:
                tensor.delete()
    assert eventually(lambda: whole_pool_is_free(pub, 60 * MIB), "all memory is free again")


def test_capsules_that_nobody_takes(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=8 * MIB)
    for seed in range(50):
        pub.send(payload(seed, MIB), timeout=30)
        msg = sub.recv(timeout=30)
        cycle: list[Any] = [msg.__dlpack__(), msg.__dlpack__(max_version=(1, 0)), msg.__dlpack__(copy=True)]
        cycle.append(cycle)
        del msg, cycle
        gc.collect()
    assert eventually(lambda: whole_pool_is_free(pub, 7 * MIB), "all memory is free again")


def exit_with_tensors(line: Line) -> None:
    """Ends with tensors and capsules alive, some of them in cycles and other libraries' hands."""
    pub, sub = byref.Publisher("t"), byref.Subscriber("t")
    pub.wait_for_subscribers(timeout=30)
    for size in (100, MIB):
        pub.send(payload(0, size))
        msg = sub.recv(timeout=30)
        kept: list[Any] = [np.from_dlpack(msg), jax_of(msg), msg.__dlpack__(), msg.__dlpack__(max_version=(1, 0))]
        kept.append(kept)
        globals()[f"kept{size}"] = kept
        sys.modules[f"kept{size}"] = kept  # type: ignore[assignment]
    line.tell("ends")


def test_interpreter_exit_with_tensors_alive(spawn: Spawn) -> None:
    child = spawn(exit_with_tensors)
    assert child.hear() == "ends"
    child.finish()
    assert child.output() == ""


# ---- isolation ----


def overwrite(line: Line) -> None:
    """Receives a message and writes over the tensor of it."""
    with byref.Subscriber("t") as sub:
        tensor = Tensor(sub.recv(timeout=30), max_version=(1, 0))
        line.tell("now")
        ctypes.memset(tensor.data, 0xEE, 4096)
        line.tell("survived")


def test_who_writes_on_a_tensor_kills_only_itself(spawn: Spawn, endpoints: Endpoints) -> None:
    bystander = endpoints.subscriber()
    publisher = spawn(publish_to_two, MIB)
    vandal = spawn(overwrite)
    msg = bystander.recv(timeout=30)
    assert vandal.hear() == "now"
    assert vandal.wait() == -signal.SIGSEGV
    assert is_payload(msg, 0, MIB)
    publisher.tell(None)
    publisher.finish()


def draw_on_tensors(line: Line, writable: bool) -> None:
    """Writes on what a consumer gets that knows no flags, and on what a writable subscriber gives to others."""
    with byref.Subscriber("t", writable=writable) as sub:
        msg = sub.recv(timeout=30)
        tensors = [Tensor(msg), Tensor(msg, max_version=(0, 8))]
        if writable:
            tensors.append(Tensor(msg, max_version=(1, 0)))
        for value, tensor in enumerate(tensors):
            tensor.bytes(msg.nbytes)[:] = value
        assert is_payload(msg, 0, msg.nbytes)
        line.tell("drawn")
        line.hear()
        for value, tensor in enumerate(tensors):
            assert (tensor.bytes(msg.nbytes) == value).all()
            tensor.delete()


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("size", [64, 5000, MIB])
def test_private_tensors_are_private(size: int, writable: bool, spawn: Spawn, endpoints: Endpoints) -> None:
    bystander = endpoints.subscriber()
    publisher = spawn(publish_to_two, size)
    artist = spawn(draw_on_tensors, writable)
    msg = bystander.recv(timeout=30)
    assert artist.hear() == "drawn"
    assert is_payload(msg, 0, size)
    assert is_payload(np.from_dlpack(msg), 0, size)
    artist.tell()
    artist.finish()
    publisher.tell(None)
    publisher.finish()


def test_a_write_on_a_small_tensor_is_seen_by_nobody_else(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    other = endpoints.subscriber()
    other.wait_for_publishers(timeout=30)
    pub.wait_for_subscribers(2, timeout=30)
    pub.send(payload(0, 100))
    msg, theirs = sub.recv(timeout=30), other.recv(timeout=30)
    # What travels in the ring was copied out of it, and each tensor has bytes of its own: a consumer that ignores the
    # flag spoils only these.
    careless = Tensor(msg, max_version=(1, 0))
    careless.bytes(100)[:] = 0xEE
    assert is_payload(msg, 0, 100)
    assert is_payload(theirs, 0, 100)
    careless.delete()


# ---- JAX ----


def test_jax_takes_large_messages_in_place(spawn: Spawn, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber()
    publisher = spawn(publish, MIB, 8 * MIB)
    publisher.tell([0, 1])
    msg = sub.recv(timeout=30)
    array = jax_of(msg)
    assert is_private(array.unsafe_buffer_pointer())
    assert is_payload(np.asarray(array), 0, MIB)
    assert int(jnp.sum(array.astype("uint32"))) == int(payload(0, MIB).sum(dtype="uint64"))
    with pytest.raises(BufferError, match="views"):
        msg.release()


@pytest.mark.parametrize("shape", [(), (0,), (3,), (10, 20), (300, 500)])
@pytest.mark.parametrize(
    "dtype", ["float32", "int32", "uint8", "bool", "complex64", "float16", "bfloat16", "float8_e5m2"]
)
def test_jax_both_ways(dtype: str, shape: tuple[int, ...], endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    sent = jnp.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    pub.send(sent)
    msg = sub.recv(timeout=30)
    assert msg.dtype == sent.dtype
    assert msg.shape == shape
    assert np.asarray(msg).tobytes() == np.asarray(sent).tobytes()
    again = jax_of(msg)
    assert again.dtype == sent.dtype
    assert np.asarray(again).tobytes() == np.asarray(sent).tobytes()


# ---- sending ----


class Foreign:
    """A tensor that knows DLPack and nothing else."""

    def __init__(self, array: Any, device: tuple[int, int] = (1, 0)) -> None:
        self._array, self._device = array, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, **request: Any) -> Any:
        return self._array.__dlpack__(**request)


def test_tensors_are_sent(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    arrays = [np.arange(5), np.arange(5000.0).reshape(50, 100), np.arange(5000.0).reshape(50, 100).T, np.zeros(())]
    for array in arrays:
        pub.send(Foreign(array))
        seen = np.asarray(sub.recv(timeout=30))
        assert (seen.dtype, seen.shape) == (array.dtype, array.shape)
        assert (seen == array).all()
    pub.send_many(Foreign(np.arange(12).reshape(3, 4)))
    assert [np.asarray(sub.recv(timeout=30))[0] for _ in range(3)] == [0, 4, 8]


@pytest.mark.parametrize(("device", "name"), [((2, 1), "CUDA number 1"), ((8, 0), "Metal"), ((99, 0), "device 99")])
def test_tensors_on_devices_are_refused(device: tuple[int, int], name: str, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    with pytest.raises(TypeError, match=rf"{name}.*\.cpu\(\)"):
        pub.send(Foreign(np.zeros(3), device))
    pub.send(Foreign(np.zeros(3), (3, 0)))  # pinned main memory
    assert sub.recv(timeout=30).sequence == 0


def test_tensors_that_cannot_be_sent(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()

    class Learning(Foreign):
        requires_grad = True

    class Broken(Foreign):
        def __dlpack__(self, **request: Any) -> Any:
            raise RuntimeError("not today")

    class Lost(Foreign):
        def __dlpack_device__(self) -> tuple[int, int]:
            raise ValueError("on several devices")

    for kind, text in [(Learning, "detach"), (Broken, "not today"), (Lost, "several devices")]:
        with pytest.raises(TypeError, match=text):
            pub.send(kind(np.zeros(3)))
    pub.send(b"goes on")
    assert bytes(sub.recv(timeout=30)) == b"goes on"


# ---- element types of other packages ----


def send_ml_types(line: Line) -> None:
    """Sends an array of each of `ML_TYPES`, one with fields of them, and plain bytes."""
    with byref.Publisher("types") as pub:
        pub.wait_for_subscribers(timeout=30)
        for kind in ML_TYPES:
            pub.send(np.arange(300).astype(kind))
        pub.send(np.ones(3, [("a", ml_dtypes.bfloat16), ("b", "<i4", (2,))]))
        pub.send(b"end")
        line.hear()


def test_ml_dtypes_across_processes(spawn: Spawn, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber("types")
    sender = spawn(send_ml_types)
    for kind, (code, bits) in ML_TYPES.items():
        msg = sub.recv(timeout=30)
        assert msg.dtype == kind
        for seen in (msg.value, np.asarray(msg), msg.writable(), msg.copy()):
            assert seen.dtype == kind
            assert seen.tobytes() == np.arange(300).astype(kind).tobytes()
        tensor = Tensor(msg, max_version=(1, 1))
        assert tensor.type == (code, bits, 1)
        assert is_in_pool(tensor.data)
        tensor.delete()
    record = sub.recv(timeout=30)
    assert record.dtype == np.dtype([("a", ml_dtypes.bfloat16), ("b", "<i4", (2,))])
    assert record.value["a"][2] == 1
    sender.tell()
    sender.finish()


def receive_in_a_bare_process(line: Line) -> None:
    """Looks at what `send_ml_types` sends where ml_dtypes cannot be imported."""
    sys.modules["ml_dtypes"] = None  # type: ignore[assignment]
    with byref.Subscriber("types") as sub:
        msg = sub.recv(timeout=30)
        try:
            line.tell(str(msg.value))
        except ImportError as problem:
            line.tell(str(problem))
        line.tell(len(bytes(msg)))


def test_a_receiver_without_ml_dtypes_is_told(spawn: Spawn) -> None:
    receiver = spawn(receive_in_a_bare_process)
    sender = spawn(send_ml_types)
    assert "install ml_dtypes" in receiver.hear()
    assert receiver.hear() == 600
    sender.tell()
    sender.finish()
    receiver.finish()


def test_element_types_that_nobody_else_knows(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    for array in (np.zeros(3, rational), np.zeros(3, [("x", rational)])):
        with pytest.raises(TypeError, match="rational"):
            pub.send(array)
        with pytest.raises(TypeError, match="rational"):
            pub.send_many([array])
    pub.send(b"goes on")
    assert bytes(sub.recv(timeout=30)) == b"goes on"


@pytest.mark.parametrize("name", ["finfo", "bfloat17", "__name__", "_finfo", ""])
def test_names_that_are_no_element_types(name: str) -> None:
    with pytest.raises(ValueError, match="no element type"):
        _dtypes.decode(f"ml_dtypes.{name}".encode())


# ---- PyTorch, where it is installed ----


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_pytorch_both_ways(endpoints: Endpoints) -> None:
    import torch

    pub, sub = endpoints.pair()
    sent = torch.arange(300_000, dtype=torch.float32).reshape(300, 1000)
    pub.send(sent)
    msg = sub.recv(timeout=30)
    assert msg.shape == (300, 1000)
    seen = torch.from_dlpack(msg)
    assert torch.equal(seen, sent)
    assert "memfd:byref-pool" in mapping_at(seen.data_ptr())[1]
    mine = torch.from_dlpack(msg.writable())
    mine += 1
    assert torch.equal(torch.from_dlpack(msg), sent)
    with pytest.raises(TypeError, match="detach"):
        pub.send(torch.ones(3, requires_grad=True))
