//! Bridges of containers: made by others for us, and left lying about by those of the CNI plugin
//! when the last container is gone. Looked at only by who removes all that is ours.

use std::collections::BTreeMap;
use std::io;

use super::apply::if_header;
use super::message::Batch;
use super::observe::links;
use super::socket::Netlink;
use super::uapi::{ENODEV, NLM_F_REQUEST, RTM_DELLINK};

/// How the kernel calls the kind of device.
const KIND: &str = "bridge";

/// A bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// The devices on it; those of containers have their other end in a container.
    pub ports: Vec<String>,
    index: u32,
}

pub(super) fn bridges(netlink: &mut Netlink) -> io::Result<Vec<Bridge>> {
    let links = links(netlink)?;
    let mut ports: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for link in &links {
        if let Some(master) = link.master {
            ports.entry(master).or_default().push(link.name.clone());
        }
    }
    let bridges = links.into_iter().filter(|link| link.kind == KIND);
    let bridge = |link: super::observe::Seen| Bridge {
        ports: ports.remove(&link.index).unwrap_or_default(),
        name: link.name,
        index: link.index,
    };
    Ok(bridges.map(bridge).collect())
}

/// By its index: by now the name could be that of another device.
pub(super) fn remove(netlink: &mut Netlink, bridge: &Bridge) -> io::Result<()> {
    let mut batch = Batch::default();
    batch.begin(RTM_DELLINK, NLM_F_REQUEST, &if_header(bridge.index, 0, 0));
    match netlink.run(&mut batch)?.first() {
        Some(refusal) if refusal.errno != ENODEV => {
            Err(io::Error::from_raw_os_error(refusal.errno))
        }
        _ => Ok(()),
    }
}
