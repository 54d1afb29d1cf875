//! Log lines: one `write` each to standard error, or one packet each to a socket from which a thread of Python passes them on to
//! `logging` (`byref.log_to_logging`). The service thread never touches the interpreter. Whoever logs takes no lock of the
//! process: a child that is forked meanwhile could find it taken for ever. Nor does it wait for who reads: lines that do not fit
//! are counted, and the next one tells how many there were.
#![allow(unsafe_code)]

use env_filter::Filter;
use log::{Level, LevelFilter, Log, Metadata, Record};
use pyo3::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{IntoRawFd, OwnedFd};
use rustix::fs::{FileType, fstat};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};
use rustix::net::{AddressFamily, SendFlags, Shutdown, SocketFlags, SocketType, send, shutdown, socketpair};
use std::fmt::Write;
use std::io::IoSlice;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The most bytes of a text. With what stands before it, a pipe takes it in one piece.
const MAX_TEXT: usize = 3800;
/// What is logged, unless `BYREF_LOG` says something else.
const DEFAULT: &str = "byref=warn";
/// Instead of a level: the filter decides.
const BY_FILTER: usize = usize::MAX;

static LOGGER: OnceLock<Logger> = OnceLock::new();

struct Logger {
    filter: Filter,
    /// A `LevelFilter` that the program set instead of the filter.
    level: AtomicUsize,
    /// Where lines go instead of standard error, if not null.
    channel: AtomicPtr<Channel>,
    /// How many threads are at it just now: as long, it is not freed.
    users: AtomicUsize,
    /// Lines that could not be written, since the last that could.
    lost: AtomicU64,
}

/// A socket to Python, and the process that reads its other end.
struct Channel {
    socket: OwnedFd,
    process: u32,
}

/// Begins to log. If there is another logger, that one serves.
pub fn install() {
    let logger = LOGGER.get_or_init(|| {
        let wanted = std::env::var("BYREF_LOG").unwrap_or_else(|_| DEFAULT.into());
        let mut filter = env_filter::Builder::new();
        if let Err(error) = filter.try_parse(&wanted) {
            write_line(&line(now(), Level::Error, 0, &format!("BYREF_LOG: {error}; '{DEFAULT}' is taken instead")));
            filter = env_filter::Builder::new();
            let _ = filter.try_parse(DEFAULT);
        }
        let filter = filter.build();
        let (level, channel, users) = (AtomicUsize::new(BY_FILTER), AtomicPtr::default(), AtomicUsize::new(0));
        Logger { filter, level, channel, users, lost: AtomicU64::new(0) }
    });
    if log::set_logger(logger).is_ok() {
        log::set_max_level(logger.filter.filter());
    }
}

/// Has lines go to a socket; gives the descriptor of its other end. `level`: as Python's `logging` counts; `None`: as before.
#[pyfunction]
pub fn _open_log(level: Option<u32>) -> PyResult<i32> {
    let logger = LOGGER.get().expect("made when the module is imported");
    let (socket, end) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(std::io::Error::from)?;
    if let Some(level) = level {
        let level = match level {
            0..10 => LevelFilter::Trace,
            10..20 => LevelFilter::Debug,
            20..30 => LevelFilter::Info,
            30..40 => LevelFilter::Warn,
            40..=50 => LevelFilter::Error,
            _ => LevelFilter::Off,
        };
        logger.level.store(level as usize, Ordering::Relaxed);
        log::set_max_level(level);
    }
    logger.replace(Box::into_raw(Box::new(Channel { socket, process: std::process::id() })));
    Ok(end.into_raw_fd())
}

/// Has lines go to standard error again. The socket's reader comes to its end when it has read what is under way.
#[pyfunction]
pub fn _close_log() {
    let logger = LOGGER.get().expect("made when the module is imported");
    logger.replace(std::ptr::null_mut());
}

/// Tells of lines that were lost and that no later line told of: the program ends.
#[pyfunction]
pub fn _tell_lost_log() {
    let logger = LOGGER.get().expect("made when the module is imported");
    let lost = logger.lost.swap(0, Ordering::Relaxed);
    if lost > 0 {
        let told = line(now(), Level::Warn, 0, &format!("the last {lost} lines were lost: nobody read them"));
        if !write_line(&told) {
            logger.lost.fetch_add(lost, Ordering::Relaxed);
        }
    }
}

/// So often a thread that is about to send a line is given the processor.
const MOST_YIELDS: usize = 1000;

impl Logger {
    /// Has lines go to another channel from now on, and ends the one before.
    fn replace(&self, channel: *mut Channel) {
        let before = self.channel.swap(channel, Ordering::SeqCst);
        if before.is_null() {
            return;
        }
        {
            // SAFETY: a box that `_open_log` made, which this thread alone has taken out, and frees below.
            let before = unsafe { &*before };
            if before.process == std::process::id() {
                let _ = shutdown(&before.socket, Shutdown::Write);
            }
        }
        // Whoever comes later finds the new one. In a child that was forked while somebody was at it, the count never falls
        // to none, and the channel stays.
        let is_free = || self.users.load(Ordering::SeqCst) == 0;
        if (0..MOST_YIELDS).any(|_| {
            is_free() || {
                std::thread::yield_now();
                false
            }
        }) {
            // SAFETY: as above; nobody is at it, and nobody can come to it.
            drop(unsafe { Box::from_raw(before) });
        }
    }

    /// Sends a line to the channel; `None`: there is none.
    fn send(&self, make: impl FnOnce() -> Vec<u8>) -> Option<bool> {
        self.users.fetch_add(1, Ordering::SeqCst);
        let channel = self.channel.load(Ordering::SeqCst);
        // SAFETY: it is null, or a box that is not freed as long as the count says that somebody is at it: the count was
        // raised before the channel was looked up, and whoever frees one takes it out before he looks at the count.
        let channel = unsafe { channel.as_ref() }.filter(|channel| channel.process == std::process::id());
        let sent =
            channel.map(|channel| send(&channel.socket, &make(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_ok());
        self.users.fetch_sub(1, Ordering::SeqCst);
        sent
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        match self.level.load(Ordering::Relaxed) {
            BY_FILTER => self.filter.enabled(metadata),
            level => metadata.level() as usize <= level && metadata.target().starts_with("byref"),
        }
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = text(record);
        let now = now();
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let number = match record.level() {
            Level::Error => 40,
            Level::Warn => 30,
            Level::Info => 20,
            Level::Debug => 10,
            Level::Trace => 5,
        };
        let sent = self.send(|| packet(now.as_nanos() as u64, number, lost, record.target(), &text));
        let is_written = sent.unwrap_or_else(|| write_line(&line(now, record.level(), lost, &text)));
        if !is_written {
            self.lost.fetch_add(lost + 1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// What a record says, on one line.
fn text(record: &Record<'_>) -> String {
    let said = record.args().to_string();
    let said = said.strip_prefix("byref: ").unwrap_or(&said);
    let mut text = String::with_capacity(said.len());
    for letter in said.chars() {
        if text.len() >= MAX_TEXT {
            text.push('…');
            break;
        }
        if letter.is_control() { text.extend(letter.escape_default()) } else { text.push(letter) }
    }
    text
}

/// The line for standard error.
fn line(now: Duration, level: Level, lost: u64, text: &str) -> String {
    let (process, mut line) = (std::process::id(), utc(now));
    let _ = write!(line, " byref[{process}] {level} {text}");
    if lost > 0 {
        let _ = write!(line, " ({lost} lines before were lost: nobody read them)");
    }
    line.push('\n');
    line
}

/// Writes a line, unless it would have to wait.
fn write_line(line: &str) -> bool {
    let error = rustix::stdio::stderr();
    let mut ready = [PollFd::new(&error, PollFlags::OUT)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let is_ready = poll(&mut ready, Some(&at_once)).is_ok_and(|count| count == 1);
    if !is_ready {
        return false;
    }
    // Other threads and processes may fill a pipe meanwhile.
    if fstat(error).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo) {
        match pwritev2(error, &[IoSlice::new(line.as_bytes())], u64::MAX, ReadWriteFlags::NOWAIT) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {} // Before Linux 6.4.
            written => return written.is_ok(),
        }
    }
    rustix::io::write(error, line.as_bytes()).is_ok()
}

/// The packet for Python: 24 bytes of numbers, then target and text.
fn packet(time_ns: u64, level: u32, lost: u64, target: &str, text: &str) -> Vec<u8> {
    let lost = u32::try_from(lost).unwrap_or(u32::MAX);
    let mut packet = Vec::with_capacity(24 + target.len() + text.len());
    packet.extend(time_ns.to_le_bytes());
    for number in [std::process::id(), level, lost, target.len() as u32] {
        packet.extend(number.to_le_bytes());
    }
    packet.extend(target.as_bytes());
    packet.extend(text.as_bytes());
    packet
}

/// A time of day, as ISO 8601 writes it. (The C library's conversion takes a lock.)
fn utc(since_epoch: Duration) -> String {
    let (seconds, millis) = (since_epoch.as_secs(), since_epoch.subsec_millis());
    let (day, second) = ((seconds / 86400) as i64, seconds % 86400);
    // Days since 1 March of year 0, so that a leap day is the last of its year.
    let day = day + 719_468;
    let (era, day_of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{millis:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}
