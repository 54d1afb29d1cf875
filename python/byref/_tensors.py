"""Tensors of other libraries, on their way out."""

from contextlib import suppress
from typing import Any

import numpy as np

# Main memory, as DLPack numbers it: plain, or pinned for CUDA or ROCm.
_MAIN_MEMORY = {1, 3, 11}
_DEVICES = {2: "CUDA", 4: "OpenCL", 7: "Vulkan", 8: "Metal", 10: "ROCm", 13: "CUDA managed memory", 14: "oneAPI"}


def as_array(tensor: Any) -> np.ndarray[Any, Any]:
    """An array over the memory of an object that has `__dlpack__`; TypeError where that cannot be."""
    kind = type(tensor).__name__
    if getattr(tensor, "requires_grad", False):
        raise TypeError(f"cannot send a {kind} that requires grad: the gradient would be lost; send {kind}.detach()")
    try:
        device, number = tensor.__dlpack_device__()
    except Exception as problem:
        raise TypeError(f"cannot send this {kind}, which does not tell its device: {problem}") from problem
    if int(device) not in _MAIN_MEMORY:
        where = f"{_DEVICES.get(int(device), f'DLPack device {int(device)}')} number {int(number)}"
        raise TypeError(f"cannot send a {kind} that is not in main memory but on {where}; copy it there first (.cpu())")
    try:
        return np.from_dlpack(tensor)
    except Exception as problem:
        # NumPy knows no bfloat16 in DLPack, but JAX itself has ml_dtypes' arrays over its memory.
        if hasattr(tensor, "__array__"):
            with suppress(Exception):
                return np.asarray(tensor)
        raise TypeError(f"cannot send this {kind}, of which NumPy can make no array: {problem}") from problem
