//! DLPack: a message as a tensor of another library, without a copy where that library knows read-only memory.
//!
//! A consumer that asks for DLPack 1.0 or later gets the message's own memory, marked as read-only. An older one cannot be
//! told, so it gets a private copy-on-write view: what it writes, nobody else sees.
//!
//! What a tensor holds are Rust handles only, so its deleter may be called by any thread, with the interpreter or without.
#![allow(unsafe_code)]

use crate::array::contiguous_strides;
use crate::errors::to_python;
use crate::foreign::Foreign;
use byref::Writable;
use numpy::{PyArrayDescr, PyArrayDescrMethods};
use pyo3::exceptions::{PyBufferError, PyMemoryError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;
use std::ffi::{CStr, c_int, c_void};
use std::ptr::NonNull;

/// The main memory, as `__dlpack_device__` tells it: a kind and a number.
pub const CPU: (i32, i32) = (1, 0);

const VERSION: Version = Version { major: 1, minor: 0 };
const READ_ONLY: u64 = 1 << 0;
const IS_COPIED: u64 = 1 << 1;

// The structs of dlpack.h.

#[repr(C)]
struct Version {
    major: u32,
    minor: u32,
}

#[repr(C)]
struct Device {
    kind: i32,
    id: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct DataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device: Device,
    ndim: i32,
    dtype: DataType,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

/// `DLManagedTensor`, of consumers that know nothing of flags.
#[repr(C)]
struct Legacy {
    tensor: Tensor,
    context: *mut c_void,
    deleter: unsafe extern "C" fn(*mut Legacy),
}

/// `DLManagedTensorVersioned`.
#[repr(C)]
struct Versioned {
    version: Version,
    context: *mut c_void,
    deleter: unsafe extern "C" fn(*mut Versioned),
    flags: u64,
    tensor: Tensor,
}

/// One of the two above.
trait Managed {
    /// A capsule's name as long as nobody has taken what is in it.
    const NAME: &'static CStr;

    fn new(tensor: Tensor, flags: u64) -> Self;
}

impl Managed for Legacy {
    const NAME: &'static CStr = c"dltensor";

    fn new(tensor: Tensor, _flags: u64) -> Self {
        Legacy { tensor, context: std::ptr::null_mut(), deleter: delete }
    }
}

impl Managed for Versioned {
    const NAME: &'static CStr = c"dltensor_versioned";

    fn new(tensor: Tensor, flags: u64) -> Self {
        Versioned { version: VERSION, context: std::ptr::null_mut(), deleter: delete, flags, tensor }
    }
}

// What a message becomes.

/// The arguments of `__dlpack__`.
pub struct Request<'py> {
    pub stream: Option<Bound<'py, PyAny>>,
    pub max_version: Option<(u32, u32)>,
    pub dl_device: Option<(i32, i32)>,
    pub copy: Option<bool>,
}

/// What a tensor's elements lie in.
enum Memory {
    /// The message's own memory.
    Shared(Foreign),
    /// A private view of it; the message counts it as one of its views all the same.
    Private(Writable, #[expect(dead_code, reason = "kept, not read")] Foreign),
    /// A copy, which holds nothing.
    Copied(Vec<Line>),
}

/// Memory is allocated in such pieces where we may choose: JAX takes it without a copy only if aligned to 64 bytes.
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "read through pointers only")] [u8; 64]);

impl Memory {
    fn data(&mut self) -> *mut u8 {
        match self {
            Memory::Shared(message) => message.as_ptr().cast_mut(),
            Memory::Private(view, _) => view.as_ptr(),
            Memory::Copied(lines) => lines.as_mut_ptr().cast(),
        }
    }

    fn flags(&self) -> u64 {
        match self {
            Memory::Shared(_) => READ_ONLY,
            Memory::Private(..) => 0,
            Memory::Copied(_) => IS_COPIED,
        }
    }
}

/// What a managed tensor points into, behind the tensor itself.
#[repr(C)]
struct Exported<M> {
    managed: M,
    _shape: Vec<i64>,
    _strides: Vec<i64>,
    _memory: Memory,
}

/// A capsule with a tensor of `shape` and `dtype` over the message that `open` opens. `writable`: of its subscriber.
pub fn export<'py>(
    py: Python<'py>,
    request: &Request<'_>,
    dtype: &Bound<'py, PyArrayDescr>,
    shape: &[u64],
    writable: bool,
    open: impl FnOnce() -> PyResult<Foreign>,
) -> PyResult<Bound<'py, PyCapsule>> {
    if request.stream.is_some() {
        return Err(PyBufferError::new_err("messages are in main memory, which has no streams; pass stream=None"));
    }
    if let Some(device) = request.dl_device
        && device != CPU
    {
        let text =
            format!("messages are in main memory, DLPack's device {CPU:?}, and do not move to {device:?} themselves");
        return Err(PyBufferError::new_err(format!("{text}; take the tensor here, and move that")));
    }
    let knows_flags = request.max_version.is_some_and(|(major, _)| major >= VERSION.major);
    if request.copy == Some(false) && !knows_flags {
        let text = "a message's memory is read-only, which this consumer cannot be told (it asks for a DLPack before 1.0); \
                    without copy=False it gets a private copy-on-write view";
        return Err(PyBufferError::new_err(text));
    }
    let element = data_type(dtype)?;
    let message = open()?;
    let memory = match request.copy {
        Some(true) => Memory::Copied(py.detach(|| copy(&message))?),
        None if writable || !knows_flags => {
            Memory::Private(message.writable().map_err(|error| to_python(py, error))?, message)
        }
        _ => Memory::Shared(message),
    };
    if knows_flags {
        capsule::<Versioned>(py, element, shape, memory)
    } else {
        capsule::<Legacy>(py, element, shape, memory)
    }
}

/// A copy, in memory that is allocated and never initialised otherwise: the vector counts no elements.
fn copy(bytes: &[u8]) -> PyResult<Vec<Line>> {
    let mut lines = Vec::<Line>::new();
    let reserved = lines.try_reserve_exact(bytes.len().div_ceil(size_of::<Line>()));
    reserved.map_err(|_| PyMemoryError::new_err(format!("no memory for a copy of {} bytes", bytes.len())))?;
    // SAFETY: the new allocation has room for so many bytes, and nobody else knows it.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), lines.as_mut_ptr().cast(), bytes.len()) };
    Ok(lines)
}

fn capsule<'py, M: Managed>(
    py: Python<'py>,
    dtype: DataType,
    shape: &[u64],
    mut memory: Memory,
) -> PyResult<Bound<'py, PyCapsule>> {
    let mut strides: Vec<i64> = contiguous_strides(shape, 1).into_iter().map(|stride| stride as i64).collect();
    let mut shape: Vec<i64> = shape.iter().map(|extent| *extent as i64).collect();
    let tensor = Tensor {
        data: memory.data().cast(),
        device: Device { kind: CPU.0, id: CPU.1 },
        ndim: shape.len() as i32,
        dtype,
        // Vectors keep their elements at their place when they are moved.
        shape: shape.as_mut_ptr(),
        strides: strides.as_mut_ptr(),
        byte_offset: 0,
    };
    let managed = M::new(tensor, memory.flags());
    let exported = Box::new(Exported { managed, _shape: shape, _strides: strides, _memory: memory });
    let exported = NonNull::from(Box::leak(exported)).cast();
    // SAFETY: the destructor takes the pointer for what it is, a boxed `Exported<M>`, under the name that only `M` has.
    let made = unsafe { PyCapsule::new_with_pointer_and_destructor(py, exported, M::NAME, Some(destroy::<M>)) };
    if made.is_err() {
        // SAFETY: the box from above, which nobody else has.
        unsafe { delete::<M>(exported.as_ptr().cast()) };
    }
    made
}

/// The deleter of managed tensors.
///
/// # Safety
///
/// `managed` is what `capsule::<M>` made, and nobody uses it any more.
unsafe extern "C" fn delete<M>(managed: *mut M) {
    // SAFETY: the managed tensor is the first field of a box of this type, and the pointer to it is the box's own; the
    // caller gives it back, which DLPack allows once.
    drop(unsafe { Box::from_raw(managed.cast::<Exported<M>>()) });
}

/// The destructor of capsules: whoever has taken the tensor has also renamed the capsule.
///
/// # Safety
///
/// Called by the interpreter, with a capsule that `capsule::<M>` made.
unsafe extern "C" fn destroy<M: Managed>(capsule: *mut ffi::PyObject) {
    // SAFETY: a capsule, and a name that lives for ever.
    let is_whole: c_int = unsafe { ffi::PyCapsule_IsValid(capsule, M::NAME.as_ptr()) };
    if is_whole == 0 {
        return;
    }
    // SAFETY: a capsule of that very name, as was just asked.
    let managed = unsafe { ffi::PyCapsule_GetPointer(capsule, M::NAME.as_ptr()) };
    // SAFETY: nobody has taken the tensor, and nobody can any more.
    unsafe { delete::<M>(managed.cast()) };
}

/// An element type in DLPack's terms; BufferError for those that it does not know.
fn data_type(dtype: &Bound<'_, PyArrayDescr>) -> PyResult<DataType> {
    let size = dtype.itemsize();
    let code = match dtype.kind() {
        _ if dtype.is_native_byteorder() == Some(false) => None,
        _ if is_users(dtype) => code_of_ml_dtype(dtype)?,
        b'i' => Some(0),
        b'u' => Some(1),
        // Not the extended ones, whose size is mostly padding.
        b'f' if size <= 8 => Some(2),
        b'c' if size <= 16 => Some(5),
        b'b' => Some(6),
        _ => None,
    };
    match code {
        Some(code) => Ok(DataType { code, bits: (size * 8) as u8, lanes: 1 }),
        None => Err(PyBufferError::new_err(format!(
            "DLPack has no name for elements of type {}; use msg.value or np.asarray(msg)",
            dtype.str()?
        ))),
    }
}

/// Whether a package other than NumPy has defined the type.
fn is_users(dtype: &Bound<'_, PyArrayDescr>) -> bool {
    const FIRST_OF_USERS: c_int = 256;
    dtype.num() >= FIRST_OF_USERS
}

fn code_of_ml_dtype(dtype: &Bound<'_, PyArrayDescr>) -> PyResult<Option<u8>> {
    let class = dtype.typeobj();
    if class.module()? != "ml_dtypes" {
        return Ok(None);
    }
    Ok(match class.name()?.to_str()? {
        "bfloat16" => Some(4),
        "float8_e3m4" => Some(7),
        "float8_e4m3" => Some(8),
        "float8_e4m3b11fnuz" => Some(9),
        "float8_e4m3fn" => Some(10),
        "float8_e4m3fnuz" => Some(11),
        "float8_e5m2" => Some(12),
        "float8_e5m2fnuz" => Some(13),
        "float8_e8m0fnu" => Some(14),
        // Those of less than a byte: DLPack packs them, ml_dtypes does not.
        _ => None,
    })
}
