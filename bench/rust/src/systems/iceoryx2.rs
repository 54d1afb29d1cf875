//! iceoryx2, lossless: no overflow, and a sender that meets a full queue tries again. Receivers poll.

use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::*;
use iceoryx2::service::port_factory::publish_subscribe::PortFactory;

use super::{Receiver, SIZE, Sender, System, number, payload};
use crate::Result;

/// At least the warm-up: until the receiver's first look at the queue, the sender does not wait for room but discards.
const QUEUE_LENGTH: usize = 8192;

pub struct Iceoryx2;

impl Iceoryx2 {
    fn service(topic: &str) -> Result<PortFactory<ipc::Service, [u8; SIZE], ()>> {
        set_log_level(LogLevel::Error);
        Ok(NodeBuilder::new()
            .create::<ipc::Service>()?
            .service_builder(&topic.try_into()?)
            .publish_subscribe::<[u8; SIZE]>()
            .enable_safe_overflow(false)
            .subscriber_max_buffer_size(QUEUE_LENGTH)
            .open_or_create()?)
    }
}

impl System for Iceoryx2 {
    type Sender = Publisher<ipc::Service, [u8; SIZE], ()>;
    type Receiver = Subscriber<ipc::Service, [u8; SIZE], ()>;

    fn sender(topic: &str) -> Result<Self::Sender> {
        let strategy = BackpressureStrategy::RetryUntilDelivered;
        Ok(Self::service(topic)?.publisher_builder().backpressure_strategy(strategy).create()?)
    }

    fn receiver(topic: &str) -> Result<Self::Receiver> {
        Ok(Self::service(topic)?.subscriber_builder().create()?)
    }
}

impl Sender for <Iceoryx2 as System>::Sender {
    fn send_number(&mut self, number: u64) -> Result<()> {
        self.loan_uninit()?.write_payload(payload(number)).send()?;
        Ok(())
    }
}

impl Receiver for <Iceoryx2 as System>::Receiver {
    fn receive_number(&mut self) -> Result<u64> {
        loop {
            if let Some(sample) = self.receive()? {
                return number(sample.payload());
            }
        }
    }
}
