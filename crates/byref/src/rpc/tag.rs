//! What a request or a reply is beside its payload: one word, the tag of its record.
//!
//! | bits | of a request | of a reply |
//! | --- | --- | --- |
//! | 60 to 63 | 1 | 2: the last one, 3: more follow, 4: a failure, 5: there is none, 6: there are no more |
//! | 50 to 59 | its flag | the number |
//! | 0 to 49 | its deadline in microseconds of `CLOCK_MONOTONIC`; 0: none | of the request, among the messages on that line |

use crate::protocol::ring::FLAGS;
use crate::sys::clock;
use std::time::Duration;

const KIND: u32 = 60;
const FLAG: u32 = 50;
const REQUEST: u64 = 1;
const NUMBER: u64 = (1 << KIND) - 1;
const DEADLINE: u64 = (1 << FLAG) - 1;

/// What a reply is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The last one.
    Last,
    /// More follow.
    More,
    /// The service failed; the payload says how.
    Failed,
    /// The request was dropped, or its reply came too late: there is no payload.
    Dropped,
    /// A streamed reply is over; there is no payload.
    Over,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::Last, Kind::More, Kind::Failed, Kind::Dropped, Kind::Over];

    pub fn is_last(self) -> bool {
        self != Kind::More
    }
}

/// A moment, in microseconds of `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

impl Moment {
    pub fn now() -> Self {
        Moment(clock::monotonic_us())
    }

    /// So long from now; `None`: beyond all time.
    pub fn after(time: Duration) -> Option<Self> {
        let micros = u64::try_from(time.as_micros()).ok()?;
        Self::now().0.checked_add(micros).filter(|micros| *micros <= DEADLINE).map(Moment)
    }

    pub fn micros(self) -> u64 {
        self.0
    }

    pub fn is_over(self) -> bool {
        Self::now() >= self
    }

    /// What is left until then.
    pub fn left(self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(Self::now().0))
    }
}

/// Of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub flag: usize,
    pub deadline: Option<Moment>,
}

impl Asked {
    pub fn encode(self) -> u64 {
        let deadline = self.deadline.map_or(0, |moment| moment.0.clamp(1, DEADLINE));
        REQUEST << KIND | (self.flag as u64 % FLAGS as u64) << FLAG | deadline
    }

    /// `None`: it is no request.
    pub fn decode(tag: u64) -> Option<Self> {
        let deadline = Some(Moment(tag & DEADLINE)).filter(|moment| moment.0 > 0);
        (tag >> KIND == REQUEST).then_some(Asked { flag: (tag >> FLAG) as usize % FLAGS, deadline })
    }
}

/// Of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answered {
    pub kind: Kind,
    /// The request's.
    pub number: u64,
}

impl Answered {
    pub fn encode(self) -> u64 {
        (REQUEST + 1 + self.kind as u64) << KIND | (self.number & NUMBER)
    }

    /// `None`: it is no reply.
    pub fn decode(tag: u64) -> Option<Self> {
        let kind = (tag >> KIND).checked_sub(REQUEST + 1)?;
        Some(Answered { kind: *Kind::ALL.get(kind as usize)?, number: tag & NUMBER })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded_and_nothing_is_both() {
        for flag in [0, 1, 512, FLAGS - 1] {
            for deadline in [None, Some(Moment(1)), Some(Moment(DEADLINE))] {
                let asked = Asked { flag, deadline };
                assert_eq!(Asked::decode(asked.encode()), Some(asked));
                assert_eq!(Answered::decode(asked.encode()), None);
            }
        }
        for kind in Kind::ALL {
            for number in [0, 1, NUMBER] {
                let answered = Answered { kind, number };
                assert_eq!(Answered::decode(answered.encode()), Some(answered));
                assert_eq!(Asked::decode(answered.encode()), None);
            }
        }
        for nonsense in [0, 7 << KIND, u64::MAX] {
            assert_eq!((Asked::decode(nonsense), Answered::decode(nonsense)), (None, None));
        }
        assert!(Moment::after(Duration::from_secs(1)).is_some_and(|moment| !moment.is_over()));
        assert_eq!(Moment::after(Duration::MAX), None);
    }
}
