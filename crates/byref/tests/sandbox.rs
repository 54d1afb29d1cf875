//! A process that enters a sandbox after its endpoints were made.
#![allow(unsafe_code)]

use byref::Publisher;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Has `membarrier` refused to this thread and those that it starts; whether that is possible here.
fn forbid_membarrier() -> bool {
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let steps = [
        step(0x20, 0, 0, 4), // Load the architecture.
        step(0x15, 0, 3, ARCHITECTURE),
        step(0x20, 0, 0, 0), // Load the number.
        step(0x15, 0, 1, libc::SYS_membarrier as u32),
        step(0x06, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        step(0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_ptr().cast_mut() };
    // SAFETY: this option takes numbers only.
    let no_new = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: the kernel reads the program and its steps, which live until then, and keeps a copy.
    no_new == 0 && unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program, 0, 0) } == 0
}

/// Each lock belongs to a sending thread when another one comes by and can make no barrier any more.
#[test]
fn two_threads_never_send_at_once() {
    let directory = std::env::temp_dir().join(format!("byref-test-{}", std::process::id()));
    // SAFETY: this is the only test of this process, and nothing of it looks at the environment yet.
    unsafe { std::env::set_var("BYREF_DIR", &directory) };
    let publishers: Vec<_> =
        (0..40).map(|number| Publisher::builder(format!("t{number}")).capacity(16).build().unwrap()).collect();
    if !forbid_membarrier() {
        return;
    }
    let began = Instant::now();
    // Fewer on a busy machine, where each visit costs some time slices.
    for publisher in publishers.iter().take_while(|_| began.elapsed() < Duration::from_secs(20)) {
        let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
        let numbers = thread::scope(|scope| {
            let owner = scope.spawn(|| {
                let mut numbers = Vec::with_capacity(1 << 20);
                while !stop.load(Ordering::Relaxed) {
                    numbers.push(publisher.send(b"x").unwrap());
                    count.store(numbers.len() as u64, Ordering::Relaxed);
                }
                numbers
            });
            let mut numbers = Vec::new();
            for visit in 0..10 {
                let before = count.load(Ordering::Relaxed);
                let mut looks = 0u32;
                while count.load(Ordering::Relaxed) < before + (64 << visit) {
                    looks += 1;
                    // The owner may need this processor.
                    if looks.is_multiple_of(1 << 12) { thread::yield_now() } else { std::hint::spin_loop() }
                }
                numbers.push(publisher.send(b"y").unwrap());
            }
            stop.store(true, Ordering::Relaxed);
            numbers.extend(owner.join().unwrap());
            numbers
        });
        let different: HashSet<_> = numbers.iter().collect();
        assert_eq!(different.len(), numbers.len(), "sequence numbers are given once");
    }
    drop(publishers);
    let _ = std::fs::remove_dir_all(&directory);
}
