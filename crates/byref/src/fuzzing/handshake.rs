//! The packets on a socket.

use crate::link::handshake::{
    Greeting, Paired, ToSubscriber, decode, decode_call, decode_first, decode_to_publisher, encode, encode_call,
    encode_first, encode_to_publisher, magic_and_version, topic_of_other_version,
};
use crate::pubsub::monitor::QueueHello;
use crate::topic;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

pub fn run(input: &[u8]) {
    first::<Greeting>(input);
    first::<Paired>(input);
    first::<ToSubscriber>(input);
    first::<QueueHello>(input);
    if let Some(packet) = decode(input) {
        assert_eq!(decode(&encode(&packet)), Some(packet));
    }
    if let Some(call) = decode_call(input) {
        assert_eq!(decode_call(&encode_call(&call)), Some(call));
    }
    if let Some(packet) = decode_to_publisher(input) {
        assert_eq!(decode_to_publisher(&encode_to_publisher(&packet)), Some(packet));
    }
    if let Some(said) = topic_of_other_version(input) {
        assert!(topic::matches(said, said));
    }
}

/// As it is, and as a packet of this protocol: inputs found earlier say which version they are of.
fn first<T: Serialize + DeserializeOwned + PartialEq + Debug>(input: &[u8]) {
    let current = input.get(8..).map(|content| [&magic_and_version(), content].concat());
    for input in std::iter::once(input).chain(current.as_deref()) {
        if let Ok(packet) = decode_first::<T>(input) {
            assert_eq!(decode_first(&encode_first(&packet)), Ok(packet));
        }
    }
}
