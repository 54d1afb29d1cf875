//! Asking for a cache line before it is needed. Hints: they change nothing else.
#![allow(unsafe_code)]

/// Asks for exclusive ownership of the cache line of `cell`, without waiting for it.
#[inline]
pub(crate) fn for_writing<T>(cell: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads and writes nothing, and the address is that of a live reference anyway.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_ET0>(std::ptr::from_ref(cell).cast::<i8>());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = cell;
}

/// Asks for the cache line of `cell`, without waiting for it.
#[inline]
pub(crate) fn for_reading<T>(cell: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads and writes nothing, and the address is that of a live reference anyway.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(cell).cast::<i8>());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = cell;
}

/// Asks for the cache line of `cell`, which will be read once, without waiting for it; it is to displace nothing.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(super) fn for_reading_once<T>(cell: &T) {
    // SAFETY: a prefetch reads and writes nothing, and the address is that of a live reference anyway.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_NTA, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_NTA>(std::ptr::from_ref(cell).cast::<i8>());
    }
}
