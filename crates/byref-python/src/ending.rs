//! Threads that are at work in Rust when the interpreter ends.
//!
//! Up to CPython 3.13 a thread that wants the interpreter back while it is being finalised is ended by `pthread_exit`, which
//! unwinds the thread's stack. Frames of Rust cannot be unwound so: the process aborts. PyO3 guards the two calls by which it
//! takes the interpreter itself, but Python code that Rust calls lets go of it and takes it back inside: callbacks that sleep or
//! wait for a file, pickles, NumPy's copies, imports, `__del__`.
//!
//! So a thread that is about to do such things calls [`outlive`]. It registers a cleanup handler, which `pthread_exit` runs
//! before it unwinds the first frame, and which never returns: the thread sleeps until the process is gone. CPython 3.14 does
//! just that by itself.
#![allow(unsafe_code)]

/// Lets this thread sleep for good, instead of aborting the process, if the interpreter ends while it is at work. It costs
/// nothing the next time.
#[inline]
pub fn outlive() {
    #[cfg(not(Py_3_14))]
    handler::register();
}

#[cfg(not(Py_3_14))]
mod handler {
    use std::cell::{Cell, UnsafeCell};
    use std::ffi::{c_int, c_void};
    use std::ptr::null_mut;

    /// The C library's record of a handler. It alone reads and writes it; musl's is shorter.
    #[repr(C)]
    struct Cleanup {
        routine: Option<unsafe extern "C" fn(*mut c_void)>,
        argument: *mut c_void,
        cancel_type: c_int,
        previous: *mut Cleanup,
    }

    unsafe extern "C" {
        fn _pthread_cleanup_push(
            buffer: *mut Cleanup,
            routine: unsafe extern "C" fn(*mut c_void),
            argument: *mut c_void,
        );
        #[cfg(Py_3_13)]
        fn Py_IsFinalizing() -> c_int;
        #[cfg(not(Py_3_13))]
        #[link_name = "_Py_IsFinalizing"]
        fn Py_IsFinalizing() -> c_int;
    }

    thread_local! {
        static IS_REGISTERED: Cell<bool> = const { Cell::new(false) };
        /// The handler's record, on the heap: glibc runs a handler as soon as it unwinds a frame below the record, so for one
        /// outside of the stack at once.
        static RECORD: Box<UnsafeCell<Cleanup>> = Box::new(UnsafeCell::new(Cleanup {
            routine: None,
            argument: null_mut(),
            cancel_type: 0,
            previous: null_mut(),
        }));
    }

    #[inline]
    pub fn register() {
        if !IS_REGISTERED.get() {
            register_first();
        }
    }

    #[cold]
    fn register_first() {
        // A thread whose variables are being dropped calls no Python that could let go of the interpreter.
        let _ = RECORD.try_with(|record| {
            // SAFETY: the record lives until the thread drops its variables. After that nobody reads it: a thread that returns
            // runs no handlers, and a new one on the same stack starts without any. If a function further up registered a
            // handler before and removes it now, this one is forgotten with it.
            unsafe { _pthread_cleanup_push(record.get(), sleep_for_good, null_mut()) };
            IS_REGISTERED.set(true);
        });
    }

    /// The thread is being ended.
    unsafe extern "C" fn sleep_for_good(_: *mut c_void) {
        // SAFETY: reads a flag, for which no interpreter is needed.
        if unsafe { Py_IsFinalizing() } == 0 {
            return; // Who else ends a thread means it.
        }
        loop {
            std::thread::park();
        }
    }
}
