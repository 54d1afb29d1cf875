//! The packets on a socket.

use crate::link::handshake::{Call, ToSubscriber, decode, decode_first, encode, encode_first, topic_of_other_version};
use crate::pubsub::monitor::QueueHello;
use crate::topic;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

pub fn run(input: &[u8]) {
    first::<Call>(input);
    first::<ToSubscriber>(input);
    first::<QueueHello>(input);
    if let Some(packet) = decode(input) {
        assert_eq!(decode(&encode(&packet)), Some(packet));
    }
    if let Some(said) = topic_of_other_version(input) {
        assert!(topic::matches(said, said));
    }
}

fn first<T: Serialize + DeserializeOwned + PartialEq + Debug>(input: &[u8]) {
    if let Ok(packet) = decode_first::<T>(input) {
        assert_eq!(decode_first(&encode_first(&packet)), Ok(packet));
    }
}
