//! Values that cannot be invalid: whoever holds one need not check it again. Their `FromStr` errors
//! are sentences for operators and carry the remedy.

mod ensemble;
mod interface_address;
mod mac;
mod mtu;
mod name;
mod reserved;
mod subnet;
mod upid;
mod vni;

pub use ensemble::{Ensemble, EnsembleError};
pub use interface_address::{InterfaceAddress, InterfaceAddressError};
pub use mac::{Mac, MacError, Oui, OuiError};
pub use mtu::{Mtu, MtuError};
pub use name::{
    DOCKER_BRIDGE_PREFIX, DeviceName, DeviceNameError, MESOS_BRIDGE_PREFIX, OverlayName,
    OverlayNameError, VTEP_PREFIX,
};
pub use reserved::{reserved_range, special_address};
pub use subnet::{Family, Subnet, SubnetError};
pub use upid::{Upid, UpidError};
pub use vni::{Vni, VniError};
