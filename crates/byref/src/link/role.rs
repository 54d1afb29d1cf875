//! What an endpoint is that exchanges messages with others by their addresses, and what it is called in the rendezvous directory.
//!
//! A mailbox has one name for its address, which it claims. Clients and servers are many of a service: the address of each is the
//! service, a group and an id, from which its name follows. So who looks for the servers of a service knows them by their names, and
//! nobody takes one for a mailbox.

use crate::link::names::{self, Key};
use crate::topic;

/// What it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Mailbox,
    /// Of a service.
    Client,
    Server,
}

/// The most bytes that an address of a service has besides the service and the group.
pub(crate) const MOST_BESIDES: usize = "/@/".len() + 32;
/// In the place of a client's group.
const OF_CLIENTS: &str = "@";

/// The parts of a client's or a server's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Party<'a> {
    pub service: &'a str,
    pub group: &'a str,
    id: &'a str,
}

impl<'a> Party<'a> {
    pub fn of(address: &'a str) -> Option<Self> {
        let (rest, id) = address.rsplit_once('/')?;
        let (service, group) = rest.rsplit_once('/')?;
        let group = group.strip_prefix('@')?;
        names::is_hex(id, 32).then_some(Party { service, group, id })
    }

    /// Whether it is the address of the one with that id.
    pub fn has_id(address: &'a str, id: u128) -> bool {
        Self::of(address).is_some_and(|party| u128::from_str_radix(party.id, 16) == Ok(id))
    }
}

impl Role {
    /// In errors.
    pub fn what(self) -> &'static str {
        match self {
            Role::Mailbox => "mailbox",
            Role::Client => "client",
            Role::Server => "server",
        }
    }

    /// With whom it exchanges messages.
    pub fn partner(self) -> Self {
        match self {
            Role::Mailbox => Role::Mailbox,
            Role::Client => Role::Server,
            Role::Server => Role::Client,
        }
    }

    /// An address of a client or a server.
    pub fn address(self, service: &str, group: &str, id: u128) -> String {
        let group = if self == Role::Client { OF_CLIENTS } else { group };
        format!("{service}/@{group}/{id:032x}")
    }

    /// The name in the rendezvous directory of the one with that address; `None`: nobody of this role can have it.
    pub fn name(self, address: &str) -> Option<String> {
        if self == Role::Mailbox {
            return Some(names::mailbox_name(address));
        }
        let party = Party::of(address).filter(|party| (party.group == OF_CLIENTS) == (self == Role::Client))?;
        let (service, id) = (topic::hash(party.service), party.id);
        let prefix = if self == Role::Client { names::CLIENT } else { names::SERVER };
        Some(format!("{prefix}{service:016x}-{id}"))
    }

    /// What those are called in the directory that one with this address looks for by itself, if it does.
    pub fn looks_for(self, address: &str) -> Option<Key> {
        let party = Party::of(address).filter(|_| self == Role::Client)?;
        Some(Key::Service(topic::hash(party.service)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_follows_from_the_address_and_the_role() {
        let server = Role::Server.address("math/add", "gpu", 7);
        assert_eq!(Party::of(&server).map(|it| (it.service, it.group)), Some(("math/add", "gpu")));
        let name = Role::Server.name(&server).unwrap();
        assert!(names::is_party(&name), "{name}");
        assert_eq!(names::key_in(&name), Some(Key::Service(topic::hash("math/add"))));
        let client = Role::Client.address("math/add", "gpu", 7);
        let name = Role::Client.name(&client).unwrap();
        assert!(names::is_party(&name) && names::key_in(&name).is_none(), "{name}");
        assert_eq!(Role::Client.looks_for(&client), Some(Key::Service(topic::hash("math/add"))));
        for other in ["", "a", "a/b", "a/@/b", &server[1..server.len() - 1], "a//@x/00000000000000000000000000000007x"]
        {
            assert_eq!((Role::Server.name(other), Role::Client.name(other)), (None, None), "{other}");
        }
        assert_eq!((Role::Client.name(&server), Role::Server.name(&client)), (None, None));
        assert!(topic::validate(&server).is_ok() && topic::validate(&client).is_ok());
        assert_eq!(server.len(), "math/add".len() + "gpu".len() + MOST_BESIDES);
    }
}
