//! Configures the Linux host of an agent.
//!
//! - [`cni`]: CNI configuration files of the MesosContainerizer
//! - [`docker`]: Docker networks of the DockerContainerizer
//! - [`dataplane`]: VXLAN devices, neighbors, forwarding entries and routes, through netlink
//! - [`firewall`]: masquerade, VXLAN from known agents only, forwarding, isolation
//! - [`probe`]: echo requests to peers, through a port of a bridge or from the VTEP, and tests of
//!   offloads
//! - [`host`]: host settings that forwarding needs, and the lock of a host
//! - [`source`]: finds the source address that the kernel chooses for a destination
//! - [`subprocess`]: runs other programs with a deadline

pub mod cni;
pub mod dataplane;
pub mod docker;
pub mod firewall;
pub mod host;
mod namespace;
pub mod probe;
pub mod source;
pub mod subprocess;
