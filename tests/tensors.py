"""A consumer of DLPack tensors that does nothing by itself: it takes a capsule apart, and deletes when it is told."""

import ctypes
import threading
from typing import Any

import numpy as np

_api = ctypes.pythonapi
_api.PyCapsule_GetName.restype = ctypes.c_char_p
_api.PyCapsule_GetName.argtypes = (ctypes.py_object,)
_api.PyCapsule_GetPointer.restype = ctypes.c_void_p
_api.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_api.PyCapsule_SetName.argtypes = (ctypes.py_object, ctypes.c_char_p)

READ_ONLY, IS_COPIED = 1, 2
# A call of it releases the interpreter, unlike one of a PYFUNCTYPE.
_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Legacy(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint32 * 2),
        ("context", ctypes.c_void_p),
        ("deleter", _Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


class Tensor:
    """What `source.__dlpack__(**request)` gives, taken out of its capsule. Alive until `delete`."""

    def __init__(self, source: Any, **request: Any) -> None:
        capsule = source.__dlpack__(**request)
        name = _api.PyCapsule_GetName(capsule)
        kind = {b"dltensor": _Legacy, b"dltensor_versioned": _Versioned}[name]
        self._address = _api.PyCapsule_GetPointer(capsule, name)
        self._managed = kind.from_address(self._address)
        # The capsule keeps a pointer to the name, not a copy.
        self._name = b"used_" + name
        self._capsule = capsule
        _api.PyCapsule_SetName(capsule, self._name)
        tensor = self._managed.tensor
        self.is_versioned = kind is _Versioned
        self.flags = self._managed.flags if self.is_versioned else None
        self.version = tuple(self._managed.version) if self.is_versioned else None
        self.data, self.device = tensor.data, tuple(tensor.device)
        self.type = (tensor.code, tensor.bits, tensor.lanes)
        self.shape = tuple(tensor.shape[: tensor.ndim])
        self.strides = tuple(tensor.strides[: tensor.ndim])
        self.byte_offset = tensor.byte_offset

    def bytes(self, count: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        """So many bytes of it, writable whether they are or not."""
        return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(self.data))

    def delete(self) -> None:
        """Call the deleter from this thread, without the interpreter."""
        self._managed.deleter(self._address)

    def delete_elsewhere(self) -> None:
        """Call the deleter from another thread."""
        thread = threading.Thread(target=self.delete)
        thread.start()
        thread.join()
