//! The Python binding of byref.
