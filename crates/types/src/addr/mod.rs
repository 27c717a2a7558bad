//! Addresses, names and numbers that are checked when they are created. The `FromStr` errors are
//! messages for operators and name the remedy.

mod ensemble;
mod interface_address;
mod mac;
mod mtu;
mod name;
mod process;
mod reserved;
mod subnet;
mod vni;

pub use libprocess::{Upid, UpidError};

pub use ensemble::{Ensemble, EnsembleError};
pub use interface_address::{InterfaceAddress, InterfaceAddressError};
pub use mac::{Mac, MacError, Oui, OuiError};
pub use mtu::{Mtu, MtuError};
pub use name::{
    DOCKER_BRIDGE_PREFIX, DeviceName, DeviceNameError, MESOS_BRIDGE_PREFIX, OverlayName,
    OverlayNameError, VTEP_PREFIX,
};
pub use process::{AGENT_PROCESS, MASTER_PROCESS, agent_upid, master_upid};
pub use reserved::{reserved_range, special_address};
pub use subnet::{Family, Subnet, SubnetError};
pub use vni::{Vni, VniError};
