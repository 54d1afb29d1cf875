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
    use std::cell::Cell;
    use std::ffi::{c_int, c_void};
    use std::ptr::null_mut;

    /// The C library's record of a handler, which it fills.
    #[repr(C)]
    struct Cleanup {
        routine: Option<unsafe extern "C" fn(*mut c_void)>,
        argument: *mut c_void,
        #[cfg(not(target_env = "musl"))]
        cancel_type: c_int,
        previous: *mut Cleanup,
    }

    unsafe extern "C" {
        fn _pthread_cleanup_push(
            buffer: *mut Cleanup,
            routine: unsafe extern "C" fn(*mut c_void),
            argument: *mut c_void,
        );
        fn _pthread_cleanup_pop(buffer: *mut Cleanup, execute: c_int);
        #[cfg(Py_3_13)]
        fn Py_IsFinalizing() -> c_int;
        #[cfg(not(Py_3_13))]
        #[link_name = "_Py_IsFinalizing"]
        fn Py_IsFinalizing() -> c_int;
    }

    thread_local! {
        static IS_REGISTERED: Cell<bool> = const { Cell::new(false) };
        static HANDLER: Handler = const { Handler(Cell::new(null_mut())) };
    }

    /// A thread's handler: its record on the heap, or null. glibc runs a handler as soon as it unwinds a frame below the record,
    /// so for one outside of the stack at once.
    struct Handler(Cell<*mut Cleanup>);

    fn new_record() -> *mut Cleanup {
        Box::into_raw(Box::new(Cleanup {
            routine: None,
            argument: null_mut(),
            #[cfg(not(target_env = "musl"))]
            cancel_type: 0,
            previous: null_mut(),
        }))
    }

    impl Drop for Handler {
        /// The thread ends. What else it drops may still want the interpreter, so no freed record stays known.
        fn drop(&mut self) {
            let record = self.0.replace(null_mut());
            if record.is_null() {
                return;
            }
            IS_REGISTERED.set(false);
            let probe = new_record();
            // SAFETY: a new record, known for a moment: the C library writes into it which one came before.
            unsafe { _pthread_cleanup_push(probe, sleep_for_good, null_mut()) };
            // SAFETY: the C library has filled it.
            let last = unsafe { (*probe).previous };
            // SAFETY: the record that was just pushed, so the last.
            unsafe { _pthread_cleanup_pop(probe, 0) };
            // SAFETY: made above, and not known any more.
            drop(unsafe { Box::from_raw(probe) });
            if last == record {
                // SAFETY: the last record. Those before it are known to whoever pushed them and has not ended.
                unsafe { _pthread_cleanup_pop(record, 0) };
            } else if !last.is_null() {
                return; // Somebody's that stays, too: ours may be known below it.
            }
            // SAFETY: made by `register_first`, and not known any more.
            drop(unsafe { Box::from_raw(record) });
        }
    }

    #[inline]
    pub fn register() {
        if !IS_REGISTERED.get() {
            register_first();
        }
    }

    #[cold]
    fn register_first() {
        let record = new_record();
        // A thread whose variables are being dropped keeps this one for ever: few come here again.
        let _ = HANDLER.try_with(|handler| handler.0.set(record));
        // SAFETY: the record lives until `Handler::drop` has taken it back. If a function further up registered a handler
        // before and removes it now, this one is forgotten with it.
        unsafe { _pthread_cleanup_push(record, sleep_for_good, null_mut()) };
        IS_REGISTERED.set(true);
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
