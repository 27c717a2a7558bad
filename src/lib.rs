//! Overlay networks for Apache Mesos.

pub mod addr;
pub mod agent;
pub mod cli;
pub mod clock;
pub mod cni;
pub mod config;
pub mod detector;
pub mod docker;
pub mod http;
pub mod ipam;
pub mod machine;
pub mod master;
pub mod protocol;
pub mod runtime;
pub mod store;
pub mod transport;
pub mod wire;
