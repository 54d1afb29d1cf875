//! byref, with default settings.

use std::time::Duration;

use byref::{Publisher, Subscriber};

use super::{Receiver, Sender, System, number, payload};
use crate::Result;

const START_TIMEOUT: Duration = Duration::from_secs(10);

pub struct Byref;

impl System for Byref {
    type Sender = Publisher;
    type Receiver = Subscriber;

    fn sender(topic: &str) -> Result<Publisher> {
        let publisher = Publisher::builder(topic).build()?;
        publisher.wait_for_subscribers(1, Some(START_TIMEOUT))?;
        Ok(publisher)
    }

    fn receiver(topic: &str) -> Result<Subscriber> {
        Ok(Subscriber::builder(topic).build()?)
    }
}

impl Sender for Publisher {
    fn send_number(&mut self, number: u64) -> Result<()> {
        self.send(&payload(number))?;
        Ok(())
    }
}

impl Receiver for Subscriber {
    fn receive_number(&mut self) -> Result<u64> {
        number(&self.recv()?)
    }
}
