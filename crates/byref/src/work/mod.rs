//! Work queues: pushers and pullers. Each job goes to exactly one puller.

mod body;
mod futures;
mod give;
mod open;
pub(crate) mod puller;
pub(crate) mod pusher;
mod table;
#[cfg(all(test, not(loom)))]
mod tests;
mod watch;

pub use body::Rejected;
pub use open::PusherStats;
pub use table::Reason;
