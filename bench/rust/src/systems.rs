//! The systems under test, behind one interface.

mod byref;
mod iceoryx2;

pub use byref::Byref;
pub use iceoryx2::Iceoryx2;

use crate::Result;

/// Bytes of a message.
const SIZE: usize = 64;

/// A way to pass messages of [`SIZE`] bytes, each with a number, from one process to another.
pub trait System {
    type Sender: Sender;
    type Receiver: Receiver;

    /// Connects to the receiver, which is open already.
    fn sender(topic: &str) -> Result<Self::Sender>;

    fn receiver(topic: &str) -> Result<Self::Receiver>;
}

pub trait Sender {
    /// Sends a message with that number; blocks while the receiver is too far behind.
    fn send_number(&mut self, number: u64) -> Result<()>;
}

pub trait Receiver {
    /// Waits for the next message and reads its number, in place.
    fn receive_number(&mut self) -> Result<u64>;
}

fn payload(number: u64) -> [u8; SIZE] {
    let mut payload = [0; SIZE];
    payload[..8].copy_from_slice(&number.to_ne_bytes());
    payload
}

fn number(payload: &[u8]) -> Result<u64> {
    Ok(u64::from_ne_bytes(payload[..8].try_into()?))
}
