"""Programs without pyarrow, or parts of Pillow."""

import sys
from typing import Any

import byref
import nanoarrow
import pandas as pd
import polars as pl
from PIL import Image

from tests.processes import Line


def receive(line: Line) -> None:
    """Tells what four messages are to polars and nanoarrow; sends the first back, as polars has it."""
    sys.modules["pyarrow"] = None  # type: ignore[assignment]
    with byref.Subscriber("t") as sub, byref.Publisher("back") as pub:
        sub.wait_for_publishers(timeout=30)
        pub.wait_for_subscribers(timeout=30)
        for number in range(4):
            msg = sub.recv(timeout=30)
            value = msg.value
            assert isinstance(value, byref.Arrow)
            description = repr(value)
            assert "'t'" in description or '"t"' in description
            kind = description.removeprefix("<byref.Arrow, ").partition(" ")[0]
            shown: Any = pl.DataFrame(value) if kind in ("Batch", "Table") else pl.Series(value)
            found = shown.to_dict(as_series=False) if isinstance(shown, pl.DataFrame) else shown.to_list()
            read = nanoarrow.ArrayStream(value).read_all().to_pylist()
            assert read == (shown.to_dicts() if isinstance(shown, pl.DataFrame) else found)
            line.tell([kind, type(shown).__name__, found])
            if number == 0:
                pub.send(shown)
                pub.flush(timeout=30)


def send(line: Line) -> None:
    """Tells what a publisher says of pandas objects without pyarrow, and of a class of Pillow's without its files."""
    sys.modules["pyarrow"] = None  # type: ignore[assignment]
    frame = pd.DataFrame({"a": pd.Series([1], dtype="Int64")})
    with byref.Publisher("t") as pub:
        for sent in (frame, pd.DataFrame([[1, 2]], columns=[True, False]), type("Painting", (Image.Image,), {})()):
            if "PIL.ImageFile" in sys.modules and isinstance(sent, Image.Image):
                del sys.modules["PIL.ImageFile"]
            try:
                pub.send(sent)
            except TypeError as refused:
                line.tell(str(refused))
