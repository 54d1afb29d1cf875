//! Asking many others one question each, and reading what they answer.

use crate::link::handshake::{self, Call, Greeting, Wish};
use crate::link::rendezvous::Directory;
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::socket::{self, Connect};
use rustix::fd::OwnedFd;
use std::io;
use std::time::{Duration, Instant};

/// Who has not answered by then is left out.
const PATIENCE: Duration = Duration::from_secs(1);
/// So many are asked at once: each takes a descriptor.
const AT_ONCE: usize = 64;

/// Whether more is to be read of who answered.
pub(crate) enum Answered {
    All,
    More,
}

/// Asks whoever listens under these names for a look. `read` is called for each that has something to read, with its place among
/// the names, until it has read all.
pub(crate) fn look_at(
    directory: &Directory,
    names: &[String],
    mut read: impl FnMut(usize, &OwnedFd) -> Answered,
) -> io::Result<()> {
    for (slice, names) in names.chunks(AT_ONCE).enumerate() {
        let epoll = Epoll::new()?;
        let mut asked = Vec::new();
        for (place, name) in names.iter().enumerate() {
            let greeting = Greeting::Ask(Call { name: name.clone(), wish: Wish::Look });
            if let Ok(Connect::Connected(socket)) = directory.connect(name)
                && let Ok(true) = socket::send(&socket, &handshake::encode_first(&greeting), None)
            {
                epoll.add(&socket, asked.len() as u64, Interest::IN)?;
                asked.push(Some((slice * AT_ONCE + place, socket)));
            }
        }
        let deadline = Instant::now() + PATIENCE;
        let mut unanswered = asked.len();
        while unanswered > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut ready = Vec::new();
            epoll.wait(Some(left), &mut ready)?;
            for token in ready {
                let Some(entry) = asked.get_mut(token as usize) else { continue };
                let Some((place, socket)) = entry else { continue };
                if let Answered::All = read(*place, socket) {
                    epoll.remove(&*socket);
                    *entry = None;
                    unanswered -= 1;
                }
            }
            if left.is_zero() {
                break; // That was one last look: who goes on talking is left out, too.
            }
        }
    }
    Ok(())
}
