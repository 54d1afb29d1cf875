"""Drawing on an RGB image with nothing but NumPy. All positions and sizes are in pixels."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .clip import Pixels

Colour = tuple[int, int, int]

WHITE = (255, 255, 255)
STROKE = 6
GLYPH_SCALE = 4

# A 5x7 bitmap font of the characters in use: one byte per row, the leftmost pixel in bit 4.
_GLYPHS = {
    " ": "00000000000000",
    "0": "0e11131519110e",
    "1": "040c040404040e",
    "2": "0e11010204081f",
    "3": "1f02040201110e",
    "4": "02060a121f0202",
    "5": "1f101e0101110e",
    "6": "0608101e11110e",
    "7": "1f010204080808",
    "8": "0e11110e11110e",
    "9": "0e11110f01020c",
    "A": "0e11111f111111",
    "E": "1f10101e10101f",
    "F": "1f10101e101010",
    "M": "111b1515111111",
    "R": "1e11111e141211",
}


class Box(NamedTuple):
    """A rectangle of pixels: from (top, left) up to, and without, (bottom, right)."""

    top: int
    left: int
    bottom: int
    right: int


def text_mask(text: str) -> NDArray[np.bool_]:
    """The pixels that a line of text covers."""
    rows = [np.frombuffer(bytes.fromhex(_GLYPHS[character]), np.uint8) for character in text]
    bits = np.unpackbits(np.stack(rows, axis=1)[:, :, None], axis=2)[:, :, 2:]  # a gap of 1, and 5 pixels
    return bits.reshape(7, -1).astype(np.bool_).repeat(GLYPH_SCALE, axis=0).repeat(GLYPH_SCALE, axis=1)


def draw_target(image: Pixels, box: Box, text: str, colour: Colour) -> None:
    """Frame the box with top and bottom edges, corners, a crosshair in the middle, and a label.

    The sides stay open on purpose: on a copy-on-write image every memory page drawn on is a page copied, and
    a row of the image is about one page.
    """
    top, left, bottom, right = box
    corner = min((bottom - top) // 4, (right - left) // 4, 48)
    for row in (top, bottom - STROKE):
        image[row : row + STROKE, left:right] = colour
    for rows in (slice(top, top + corner), slice(bottom - corner, bottom)):
        image[rows, left : left + STROKE] = colour
        image[rows, right - STROKE : right] = colour

    middle, centre, arm = (top + bottom) // 2, (left + right) // 2, corner // 2
    image[middle - STROKE // 2 : middle + STROKE // 2, centre - arm : centre + arm] = colour
    image[middle - arm : middle + arm, centre - STROKE // 2 : centre + STROKE // 2] = colour

    mask = np.pad(text_mask(text), 2 * GLYPH_SCALE)
    label = image[max(0, bottom - mask.shape[0]) : bottom, left : left + mask.shape[1]]
    label[:] = np.where(mask[: label.shape[0], : label.shape[1], None], WHITE, colour)
