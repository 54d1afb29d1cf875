"""Pillow, OpenCV and scikit-image on messages: without a copy, and without writing on them; and `msg.copy`."""

import threading
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import byref
import cv2
import numpy as np
import pyarrow as pa
import pytest
import skimage
from PIL import Image, ImageDraw

from tests.conftest import Endpoints
from tests.payloads import payload
from tests.processes import Child, Line, is_in_pool

Spawn = Callable[..., Child]

HEIGHT, WIDTH = 480, 640


def picture(channels: int) -> Any:
    """A picture of the usual size and so many channels."""
    shape = (HEIGHT, WIDTH, channels) if channels > 1 else (HEIGHT, WIDTH)
    return payload(channels, HEIGHT * WIDTH * channels).reshape(shape)


def publish_pictures(line: Line) -> None:
    """Sends a grey picture, one of three channels, and one of four."""
    with byref.Publisher("pictures") as pub:
        pub.wait_for_subscribers(timeout=30)
        for channels in (1, 3, 4):
            pub.send(picture(channels))
        line.hear()


@pytest.fixture
def pictures(spawn: Spawn, endpoints: Endpoints) -> Iterator[dict[int, byref.Message]]:
    """Pictures from another process, by their number of channels. They are the same at the test's end."""
    sub = endpoints.subscriber("pictures")
    sender = spawn(publish_pictures)
    received = {channels: sub.recv(timeout=30) for channels in (1, 3, 4)}
    yield received
    for channels, msg in received.items():
        assert (np.asarray(msg) == picture(channels)).all()
    sender.tell()
    sender.finish()


def address_in_pillow(image: Any) -> int:
    """Where an image has its pixels, as it tells Arrow."""
    array = pa.array(image)
    return int((array.values if isinstance(array, pa.FixedSizeListArray) else array).buffers()[1].address)


@pytest.mark.parametrize("channels", [1, 4])
def test_pillow_shows_a_message(channels: int, pictures: dict[int, byref.Message]) -> None:
    msg = pictures[channels]
    mode = "L" if channels == 1 else "RGBA"
    of_buffer = Image.frombuffer(mode, (WIDTH, HEIGHT), msg, "raw", mode, 0, 1)
    for image in (Image.fromarray(msg.value), of_buffer):
        assert image.readonly
        assert address_in_pillow(image) == np.asarray(msg).ctypes.data
        with pytest.raises(BufferError, match="views"):
            msg.release()
        assert (np.asarray(image.crop((10, 20, 100, 200))) == picture(channels)[20:200, 10:100]).all()
        # Who draws on it gets a copy, made by Pillow.
        ImageDraw.Draw(image).rectangle((0, 0, 100, 100), fill=0)
        assert address_in_pillow(image) != np.asarray(msg).ctypes.data
        assert not np.asarray(image)[:100, :100].any()


def test_pillow_copies_three_channels(pictures: dict[int, byref.Message]) -> None:
    image = Image.fromarray(pictures[3].value)
    assert (np.asarray(image) == picture(3)).all()
    # It has four bytes for each pixel: its own.
    assert not image.readonly
    ImageDraw.Draw(image).rectangle((0, 0, 100, 100), fill=(0, 0, 0))


def most_allocated(call: Callable[[], object]) -> int:
    """The most bytes that NumPy and Python had allocated more during a call than before it."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_opencv_reads_a_message(pictures: dict[int, byref.Message]) -> None:
    frame = pictures[3].value
    calls: list[Callable[[], object]] = [
        lambda: cv2.sumElems(frame),
        lambda: cv2.meanStdDev(frame),
        lambda: cv2.resize(frame, (64, 48)),
        lambda: cv2.sumElems(frame[100:200, 50:90]),
    ]
    # What OpenCV cannot use in place it copies into an array of NumPy's: there is none.
    for call in calls:
        assert most_allocated(call) < frame.nbytes / 10
    assert most_allocated(lambda: cv2.sumElems(frame[:, ::2])) > frame.nbytes / 3
    assert cv2.sumElems(frame)[:3] == tuple(picture(3).reshape(-1, 3).sum(axis=0, dtype="f8"))
    assert (cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) == picture(3)[..., ::-1]).all()


def test_opencv_refuses_to_write_on_a_message(pictures: dict[int, byref.Message]) -> None:
    msg = pictures[3]
    frame = msg.value
    writes: list[Callable[[], object]] = [
        lambda: cv2.rectangle(frame, (0, 0), (10, 10), (255, 0, 0), -1),
        lambda: cv2.putText(frame, "no", (10, 10), cv2.FONT_HERSHEY_PLAIN, 1, (0, 0, 0)),
        lambda: cv2.GaussianBlur(frame, (3, 3), 0, dst=frame),
    ]
    for write in writes:
        with pytest.raises(cv2.error, match="readonly"):
            write()
    mine = msg.writable()
    cv2.rectangle(mine, (0, 0), (10, 10), (255, 0, 0), -1)
    assert mine[5, 5].tolist() == [255, 0, 0]
    reused = np.empty_like(frame)
    assert cv2.flip(frame, 0, dst=reused) is reused
    assert (reused == picture(3)[::-1]).all()


def test_opencv_encodes_and_decodes_messages(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    _, encoded = cv2.imencode(".png", picture(3))
    pub.send(encoded)
    msg = sub.recv(timeout=30)
    assert (cv2.imdecode(msg.value, cv2.IMREAD_COLOR) == picture(3)).all()


def test_scikit_image_reads_a_message(pictures: dict[int, byref.Message]) -> None:
    grey = pictures[1].value
    for view in (
        skimage.util.img_as_ubyte(grey),
        skimage.util.view_as_windows(grey, (8, 8)),
        skimage.util.view_as_blocks(grey, (8, 8)),
    ):
        assert view.ctypes.data == np.asarray(pictures[1]).ctypes.data
        assert is_in_pool(view.ctypes.data)
    assert skimage.filters.threshold_otsu(grey) == skimage.filters.threshold_otsu(picture(1))
    assert (skimage.filters.sobel(grey) == skimage.filters.sobel(picture(1))).all()
    assert (skimage.measure.label(grey > 200) == skimage.measure.label(picture(1) > 200)).all()


# ---- msg.copy ----


SENT: list[Any] = [
    b"",
    b"short",
    bytes(5000),
    np.float32(1.5),
    np.zeros((0, 3)),
    np.arange(6).reshape(2, 3),
    np.arange(3e5).reshape(300, 1000),
    np.zeros(3, "<M8[s]"),
]


@pytest.mark.parametrize("sent", SENT)
def test_copy_is_ordinary_memory(sent: Any, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    pub.send(np.asarray(sent) if isinstance(sent, np.generic) else sent)
    msg = sub.recv(timeout=30)
    copied = msg.copy()
    msg.release()
    expected = np.frombuffer(sent, np.uint8) if isinstance(sent, bytes) else np.asarray(sent)
    assert (copied.dtype, copied.shape) == (expected.dtype, expected.shape)
    assert copied.tobytes() == expected.tobytes()
    assert copied.flags.writeable
    assert copied.flags.owndata
    copied[...] = copied


def test_copy_into_an_array(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    sent = np.arange(300_000, dtype="<i4").reshape(300, 1000)
    pub.send(sent)
    msg = sub.recv(timeout=30)
    large = np.full((600, 2000), -1, "<i4")
    outs = [
        np.empty((300, 1000), "<i4"),
        np.empty((1000, 300), "<i4").T,
        large[::2, ::2],
        np.empty((300, 1000), "f8"),
        np.empty((300, 1000), "<i2"),
    ]
    for out in outs:
        assert msg.copy(out) is out
        assert (out == sent.astype(out.dtype)).all()
    assert (large[1::2] == -1).all()
    assert msg.copy(out=outs[0]) is outs[0]
    msg.release()
    with pytest.raises(byref.Closed):
        msg.copy(outs[0])


def test_copy_of_a_scalar_into_an_array(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    pub.send(np.array(2.5))
    out = np.zeros(())
    assert sub.recv(timeout=30).copy(out) is out
    assert out == 2.5


def test_copies_that_cannot_be(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    pub.send(np.arange(6.0).reshape(2, 3))
    msg = sub.recv(timeout=30)
    for shape in ((3, 2), (6,), (1, 2, 3), (2, 1), ()):
        with pytest.raises(ValueError, match=r"shape \(2, 3\) does not fit"):
            msg.copy(np.zeros(shape))
    with pytest.raises(TypeError, match="same_kind"):
        msg.copy(np.zeros((2, 3), "i4"))
    with pytest.raises(ValueError, match="read-only"):
        msg.copy(np.frombuffer(bytes(48)).reshape(2, 3))
    with pytest.raises(TypeError, match="NumPy array"):
        msg.copy([[0.0] * 3] * 2)  # type: ignore[call-overload]
    msg.release()


def test_copies_by_several_threads(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    sent = payload(3, 4 << 20)
    pub.send(sent)
    msg = sub.recv(timeout=30)
    outs = [np.zeros_like(sent) for _ in range(4)]
    threads = [threading.Thread(target=msg.copy, args=(out,)) for out in outs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((out == sent).all() for out in outs)
    msg.release()
