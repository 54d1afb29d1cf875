//! What a process may send over the socket of a pair, beside a channel that is honest.

use super::{Number, each};
use crate::link::channel::{Channel, beside_stranger};
use crate::link::inbox::{MOST, Said};
use crate::link::pair::Pair;
use crate::sys::socket;
use arbitrary::{Arbitrary, Unstructured};
use rustix::fd::{AsFd, OwnedFd};
use std::sync::Arc;

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    /// Anything at all.
    Packet { content: &'a [u8] },
    /// A packet of some channel, perhaps with a descriptor.
    Frame { kind: u8, number: Number, body: &'a [u8], passes: bool },
    /// The next channel, as an honest process opens it.
    Open,
    /// Something on the first one.
    Say { content: u8 },
    /// What is there is read, and taken.
    Read,
    /// This side closes one of the other channels.
    Close { which: u8 },
}

struct Stage {
    stranger: OwnedFd,
    pair: Arc<Pair>,
    channels: Vec<Channel>,
    /// The number of the next channel.
    next: u32,
    /// What the first one was told and has yet to hear.
    said: Vec<u8>,
}

pub fn run(input: &[u8]) {
    let (stranger, pair) = beside_stranger();
    let mut stage = Stage { stranger, pair, channels: Vec::new(), next: 0, said: Vec::new() };
    stage.play(Step::Open);
    stage.play(Step::Read);
    assert_eq!(stage.channels.len(), 1);
    each(Unstructured::new(input), |step| {
        stage.play(step);
        stage.pair.is_usable()
    });
    stage.play(Step::Read);
}

impl Stage {
    fn play(&mut self, step: Step<'_>) {
        match step {
            // What is said on the first channel is honest.
            Step::Packet { content } if content.get(1..5) == Some(&[0; 4]) => {}
            Step::Packet { content } => self.send(content, false),
            Step::Frame { kind, number, body, passes } => {
                let number = number.of(self.next as u64) as u32;
                if number != 0 {
                    self.send(&[&[kind % 8], &number.to_le_bytes()[..], body].concat(), passes);
                }
            }
            Step::Open => {
                self.send(&[&[0], &self.next.to_le_bytes()[..]].concat(), false);
                self.next += 2;
            }
            Step::Say { content } if self.said.len() < MOST / 2 => {
                self.send(&[1, 0, 0, 0, 0, content], false);
                self.said.push(content);
            }
            Step::Say { .. } => {}
            Step::Read => self.read(),
            Step::Close { which } if self.channels.len() > 1 => {
                let which = 1 + which as usize % (self.channels.len() - 1);
                self.channels.swap_remove(which);
            }
            Step::Close { .. } => {}
        }
    }

    /// The socket is read before it is full.
    fn send(&mut self, packet: &[u8], passes: bool) {
        let send = |stage: &Self| {
            let passed = passes.then(|| stage.stranger.as_fd());
            socket::send(&stage.stranger, packet, passed).unwrap_or(true)
        };
        if !send(self) {
            self.read();
            send(self);
        }
    }

    fn read(&mut self) {
        let mut heard = Vec::new();
        // Who reads for one channel leaves the rest in the socket until others have taken what is theirs.
        for _ in 0..64 {
            while let Some(wire) = self.pair.next_call() {
                self.channels.push(Channel::of(&self.pair, wire));
            }
            let Some((first, others)) = self.channels.split_first() else { return };
            let is_all = first.pump();
            while let Ok(Said::Packet(packet, _)) = first.take() {
                heard.extend_from_slice(&packet);
            }
            for channel in others {
                while let Ok(Said::Packet(..) | Said::Ring | Said::OutOfDescriptors) = channel.take() {}
            }
            if is_all {
                break;
            }
        }
        if self.pair.is_usable() {
            assert_eq!(heard, std::mem::take(&mut self.said), "the honest channel lost something");
        }
    }
}
