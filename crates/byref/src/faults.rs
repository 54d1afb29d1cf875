//! Points at which a test kills or stops this process, to see what its peers make of that.
//!
//! `fault!("publish.before_stamp")` marks a step of a protocol. In an ordinary build it is nothing at all. With the feature
//! `faults`, which only `make steps` asks for, the environment names passings at which to raise a signal:
//!
//! ```text
//! BYREF_FAULT=publish.before_stamp:17:kill              the 17th passing of this point is the end of the process
//! BYREF_FAULT=hold.raised:5:stop,hold.in_vain:1:kill    stopped at the 5th hold; killed where one is in vain
//! BYREF_HANDSHAKE_MS=150                                a silent connection is closed after this time (usually 10 s)
//! BYREF_DELAYS_MS=60                                    many steps take up to so long, at random: what depends on the speed of this
//!                                                       process, or of its service thread, fails
//! ```

#[cfg(not(feature = "faults"))]
macro_rules! fault {
    ($name:literal) => {};
}

#[cfg(feature = "faults")]
macro_rules! fault {
    ($name:literal) => {{
        const POINT: usize = $crate::faults::enabled::index($name);
        $crate::faults::enabled::pass(POINT);
    }};
}

#[cfg(feature = "faults")]
pub(crate) mod enabled {
    use crate::sys::process::{Fate, meet, random_id};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    /// All points. One that the code names and this list does not is an error of the build.
    const POINTS: &[&str] = &[
        "service.woken",
        "work.added",
        "job.giving",
        "job.given",
        "work.lease_mapped",
        "work.admitted",
        "work.parting",
        "work.parted",
        "work.line_removed",
        "work.given_up",
        "work.armed",
        "work.closing",
        "answer.written",
        "answer.given",
        "answer.ringing",
        "pair.woken",
        "pair.called",
        "ask.connected",
        "knock.expecting",
        "knock.heard",
        "collect.lease_mapped",
        "collect.admitted",
        "takeover.asking",
        "takeover.heard",
        "takeover.given_way",
        "part.begun",
        "part.revoked",
        "part.noted",
        "resend.begun",
        "request.flag_cleared",
        "request.sent",
        "cancel.before",
        "cancel.after",
        "stream.held_up",
        "reply.before",
        "reply.after",
        "reply.dropping",
        "close.mailbox_inbox",
        "close.mailbox_line",
        "claim.taken",
        "claim.locked",
        "claim.unlocking",
        "listen.bound",
        "listen.announced",
        "listen.linked",
        "listen.ring_made",
        "meet.moved",
        "meet.told",
        "renew.former_left",
        "accept.lease_mapped",
        "accept.welcomed",
        "accept.counted",
        "accept.before",
        "accept.accepted",
        "accept.paired",
        "announce.before",
        "announce.sent",
        "history.start_found",
        "connect.refused",
        "connect.ring_mapped",
        "connect.looking",
        "connect.connected",
        "connect.lease_made",
        "connect.hello_sent",
        "connect.welcomed",
        "connect.watched",
        "connect.joined",
        "publish.pool_full",
        "publish.pending",
        "publish.begun",
        "publish.written",
        "publish.inline_words",
        "publish.pooled_words",
        "publish.before_stamp",
        "publish.after_stamp",
        "publish.after_tail",
        "loan.taken",
        "loan.filled",
        "loan.sent",
        "loan.discarding",
        "receive.inline_copied",
        "receive.found",
        "receive.batch_grown",
        "receive.batch_full",
        "receive.row_held",
        "receive.rows_held",
        "receive.block_ended",
        "receive.before_cursor",
        "receive.after_cursor",
        "receive.skipping",
        "receive.region_entered",
        "hold.raised",
        "hold.in_vain",
        "hold.again",
        "hold.mapped_privately",
        "hold.taken",
        "release.before",
        "release.after",
        "segment.missing",
        "segment.received",
        "grow.populated",
        "grow.ring_populated",
        "grow.region_told",
        "grow.before_stamp",
        "grow.region_marked",
        "grow.segment_made",
        "reclaim.unheld",
        "reclaim.freed",
        "reclaim.marked",
        "retire.dropped",
        "retire.announced",
        "retire.generation_set",
        "retire.caught_up",
        "retire.acknowledged",
        "retire.read",
        "wake.subscriber_before",
        "wake.subscriber_after",
        "wake.word_before",
        "wake.word_raised",
        "wake.word_after",
        "wake.requested",
        "wake.publisher_before",
        "wake.publisher_after",
        "sleep.publisher_announced",
        "sleep.publisher_before",
        "sleep.publisher_after",
        "sleep.subscriber_before",
        "sleep.subscriber_after",
        "sleep.subscriber_announced",
        "sleep.selector_before",
        "sleep.selector_after",
        "lose.noticed",
        "lose.removed",
        "over.noticed",
        "close.publisher_lingers",
        "close.publisher_begun",
        "close.publisher_flagged",
        "close.publisher_unlinked",
        "close.publisher_hung_up",
        "close.link_hung_up",
        "close.subscriber_begun",
        "close.subscriber_left",
        "close.subscriber_rang",
    ];

    /// How often each was passed.
    static PASSED: [AtomicU64; POINTS.len()] = [const { AtomicU64::new(0) }; POINTS.len()];
    /// What the environment asked for when the first point was passed.
    static WANTED: OnceLock<Vec<Wanted>> = OnceLock::new();

    /// The longest delay, in milliseconds; 0: none.
    static DELAYS: OnceLock<u64> = OnceLock::new();
    /// Passings of a point of which one in [`OFTEN`] is delayed; later ones are so seldom that many messages come through.
    const FIRST: u64 = 20;
    const OFTEN: u64 = 4;
    const SELDOM: u64 = 2000;
    /// The service thread is late every second time: most of what a test waits for goes through it.
    const SERVICE: u64 = 2;

    struct Wanted {
        point: usize,
        passing: u64,
        fate: Fate,
    }

    pub(crate) const fn index(name: &str) -> usize {
        let mut at = 0;
        while at < POINTS.len() {
            if same(POINTS[at].as_bytes(), name.as_bytes()) {
                return at;
            }
            at += 1;
        }
        panic!("this fault point is not in the list POINTS");
    }

    const fn same(one: &[u8], other: &[u8]) -> bool {
        let mut at = 0;
        while at < one.len() && at < other.len() && one[at] == other[at] {
            at += 1;
        }
        at == one.len() && at == other.len()
    }

    /// How long a connection may say nothing, where the environment gives it: shorter than a test keeps somebody stopped.
    pub(crate) fn handshake_time() -> Option<Duration> {
        let text = std::env::var("BYREF_HANDSHAKE_MS").ok()?;
        let time =
            text.parse().unwrap_or_else(|_| panic!("BYREF_HANDSHAKE_MS: {text} is not a number of milliseconds"));
        Some(Duration::from_millis(time))
    }

    /// Counts a passing, and raises the signal if it is one that the environment names.
    pub(crate) fn pass(point: usize) {
        let passing = PASSED[point].fetch_add(1, Ordering::Relaxed) + 1;
        let wanted = WANTED.get_or_init(|| parse(&std::env::var("BYREF_FAULT").unwrap_or_default()));
        delay(point, passing);
        if let Some(wanted) = wanted.iter().find(|wanted| wanted.point == point && wanted.passing == passing) {
            meet(wanted.fate);
        }
    }

    fn delay(point: usize, passing: u64) {
        let longest = *DELAYS.get_or_init(|| std::env::var("BYREF_DELAYS_MS").map_or(0, |text| milliseconds(&text)));
        if longest == 0 {
            return;
        }
        let odds = match POINTS[point] {
            "service.woken" => SERVICE,
            _ if passing <= FIRST => OFTEN,
            _ => SELDOM,
        };
        let chance = random_id() as u64;
        if chance.is_multiple_of(odds) {
            std::thread::sleep(Duration::from_micros((chance >> 32) % (1000 * longest)));
        }
    }

    fn milliseconds(text: &str) -> u64 {
        text.parse().unwrap_or_else(|_| panic!("BYREF_DELAYS_MS: {text} is not a number of milliseconds"))
    }

    fn parse(text: &str) -> Vec<Wanted> {
        let wanted = |part: &str| {
            let mut fields = part.split(':');
            let (name, passing, fate) = (fields.next()?, fields.next()?.parse().ok()?, fields.next()?);
            let fate = match fate {
                "kill" => Fate::Kill,
                "stop" => Fate::Stop,
                _ => return None,
            };
            Some(Wanted { point: POINTS.iter().position(|point| *point == name)?, passing, fate })
        };
        let parts = text.split(',').filter(|part| !part.is_empty());
        parts
            .map(|part| wanted(part).unwrap_or_else(|| panic!("BYREF_FAULT: {part} is not point:n:kill|stop")))
            .collect()
    }

    /// All fault points of this build, and how often this process has passed each of them.
    pub fn faults() -> impl Iterator<Item = (&'static str, u64)> {
        POINTS.iter().zip(&PASSED).map(|(name, passed)| (*name, passed.load(Ordering::Relaxed)))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_environment_names_points_and_passings() {
            let wanted = parse("hold.raised:5:stop,hold.in_vain:1:kill");
            let seen: Vec<_> = wanted.iter().map(|wanted| (POINTS[wanted.point], wanted.passing)).collect();
            assert_eq!(seen, [("hold.raised", 5), ("hold.in_vain", 1)]);
            assert!(parse("").is_empty());
            assert!(std::panic::catch_unwind(|| parse("no.such_point:1:kill")).is_err());
        }

        #[test]
        fn no_point_is_listed_twice() {
            assert!((0..POINTS.len()).all(|at| index(POINTS[at]) == at));
        }
    }
}
