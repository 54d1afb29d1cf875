//! A stream over arrays that are all there.
#![allow(unsafe_code)]

use super::abi::{self, Owned};
use super::schema::{self, Field};
use std::ffi::{c_char, c_int};
use std::sync::Arc;

/// What an exported stream has left.
struct Kept {
    field: Arc<Field>,
    arrays: std::vec::IntoIter<abi::Array>,
}

/// The arrays, of type `field`, for a consumer.
pub fn export(field: Arc<Field>, arrays: Vec<abi::Array>) -> abi::Stream {
    let kept = Box::new(Kept { field, arrays: arrays.into_iter() });
    abi::Stream {
        get_schema: Some(get_schema),
        get_next: Some(get_next),
        get_last_error: Some(get_last_error),
        release: Some(release),
        private_data: Box::into_raw(kept).cast(),
    }
}

/// # Safety
///
/// `stream` is one that `export` made, not released, and nobody else uses it.
unsafe fn kept<'a>(stream: *mut abi::Stream) -> &'a mut Kept {
    // SAFETY: the caller's promise.
    let private_data = unsafe { (*stream).private_data };
    // SAFETY: the box that `export` leaked; by the interface a stream has one user at a time.
    unsafe { &mut *private_data.cast::<Kept>() }
}

unsafe extern "C" fn get_schema(stream: *mut abi::Stream, out: *mut abi::Schema) -> c_int {
    // SAFETY: called by the interface's rules.
    let field = unsafe { &kept(stream).field };
    // SAFETY: `out` is to be overwritten, whatever it holds.
    unsafe { out.write(schema::export(field)) };
    0
}

unsafe extern "C" fn get_next(stream: *mut abi::Stream, out: *mut abi::Array) -> c_int {
    // SAFETY: called by the interface's rules.
    let next = unsafe { kept(stream).arrays.next() };
    // SAFETY: `out` is to be overwritten, whatever it holds. A released array says that this is the end.
    unsafe { out.write(next.unwrap_or_else(abi::Array::empty)) };
    0
}

unsafe extern "C" fn get_last_error(_stream: *mut abi::Stream) -> *const c_char {
    std::ptr::null() // Nothing here fails.
}

unsafe extern "C" fn release(stream: *mut abi::Stream) {
    // SAFETY: called once, by the owner of a stream that `export` made.
    let stream = unsafe { &mut *stream };
    stream.release = None;
    // SAFETY: the box that `export` leaked.
    drop(unsafe { Box::from_raw(stream.private_data.cast::<Kept>()) });
}
