//! The structs of the Arrow C data interface and its PyCapsules.
//!
//! <https://arrow.apache.org/docs/format/CDataInterface.html>,
//! <https://arrow.apache.org/docs/format/CStreamInterface.html>,
//! <https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html>
#![allow(unsafe_code)]
#![allow(missing_docs)] // Fields are those of the specification.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

/// `flags`: the field may have nulls.
pub const NULLABLE: i64 = 2;

/// A type, and the name of what has it.
#[repr(C)]
pub struct Schema {
    pub format: *const c_char,
    pub name: *const c_char,
    pub metadata: *const c_char,
    pub flags: i64,
    pub n_children: i64,
    pub children: *mut *mut Schema,
    pub dictionary: *mut Schema,
    pub release: Option<unsafe extern "C" fn(*mut Schema)>,
    pub private_data: *mut c_void,
}

/// Data of a type.
#[repr(C)]
pub struct Array {
    pub length: i64,
    pub null_count: i64,
    pub offset: i64,
    pub n_buffers: i64,
    pub n_children: i64,
    pub buffers: *mut *const c_void,
    pub children: *mut *mut Array,
    pub dictionary: *mut Array,
    pub release: Option<unsafe extern "C" fn(*mut Array)>,
    pub private_data: *mut c_void,
}

/// Arrays of one type, one after the other.
#[repr(C)]
pub struct Stream {
    pub get_schema: Option<unsafe extern "C" fn(*mut Stream, *mut Schema) -> c_int>,
    pub get_next: Option<unsafe extern "C" fn(*mut Stream, *mut Array) -> c_int>,
    pub get_last_error: Option<unsafe extern "C" fn(*mut Stream) -> *const c_char>,
    pub release: Option<unsafe extern "C" fn(*mut Stream)>,
    pub private_data: *mut c_void,
}

/// One of the three structs: owned by whoever has it, and released on drop.
///
/// # Safety
///
/// A value of all zeros is a released one. `release` does what the interface says, once, for a value that is not released.
pub unsafe trait Owned: Sized {
    /// The name of its capsules.
    const CAPSULE: &'static CStr;
    /// A released one, to be filled in.
    fn empty() -> Self;
    /// Whether it was released, or moved elsewhere.
    fn is_released(&self) -> bool;
    /// Calls the producer's release callback.
    fn release(&mut self);
}

macro_rules! owned {
    ($struct:ident, $capsule:literal) => {
        // SAFETY: null pointers, zeros and `None` are what zeros are; `release` calls the callback, which clears itself.
        unsafe impl Owned for $struct {
            const CAPSULE: &'static CStr = $capsule;

            fn empty() -> Self {
                // SAFETY: all fields are integers, raw pointers and optional function pointers: zeros are valid.
                unsafe { std::mem::zeroed() }
            }

            fn is_released(&self) -> bool {
                self.release.is_none()
            }

            fn release(&mut self) {
                if let Some(release) = self.release {
                    // SAFETY: whoever filled the struct promised, by the interface, that this may be called once, by
                    // whoever owns the struct, from any thread.
                    unsafe { release(self) };
                }
            }
        }

        impl Drop for $struct {
            fn drop(&mut self) {
                self.release();
            }
        }

        // SAFETY: the interface lets a struct move to, and be released by, any thread.
        unsafe impl Send for $struct {}
        // SAFETY: through a shared reference it is only read; its producer must not change it.
        unsafe impl Sync for $struct {}
    };
}

owned!(Schema, c"arrow_schema");
owned!(Array, c"arrow_array");
owned!(Stream, c"arrow_array_stream");

impl Stream {
    /// The type of its arrays.
    pub fn schema(&mut self) -> Result<Schema, String> {
        let get = self.get_schema.ok_or("a stream without get_schema")?;
        let mut schema = Schema::empty();
        // SAFETY: a stream that is not released; the struct to be filled is a released one.
        let failed = unsafe { get(self, &mut schema) };
        if failed != 0 { Err(self.last_error(failed)) } else { Ok(schema) }
    }

    /// The next array; `None` at the end.
    pub fn next_array(&mut self) -> Result<Option<Array>, String> {
        let get = self.get_next.ok_or("a stream without get_next")?;
        let mut array = Array::empty();
        // SAFETY: as in `schema`.
        let failed = unsafe { get(self, &mut array) };
        if failed != 0 {
            return Err(self.last_error(failed));
        }
        Ok((!array.is_released()).then_some(array))
    }

    fn last_error(&mut self, code: c_int) -> String {
        // SAFETY: asked for right after the failed call, as the interface wants it.
        let text = self.get_last_error.map_or(ptr::null(), |get| unsafe { get(self) });
        if text.is_null() {
            return std::io::Error::from_raw_os_error(code).to_string();
        }
        // SAFETY: a C string that is valid until the next call.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

/// `count` items behind a pointer of a struct.
///
/// # Safety
///
/// There are so many, which stay as long as `'a`; with a count of zero the pointer may be anything.
pub unsafe fn items<'a, T>(pointer: *const T, count: usize) -> &'a [T] {
    if count == 0 || pointer.is_null() {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(pointer, count) }
}
