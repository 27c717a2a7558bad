//! The state machines of master and agent. No IO, no sockets, no clock, no files: events go in,
//! commands come out, and the runtime or the simulator executes the commands.
//!
//! - [`ipam`]: pools of subnets and VTEP addresses
//! - [`state_machine`]: the trait that both state machines implement
//! - [`metrics`]: catalogues of metrics, for Mesos and Prometheus
//! - [`master`]: allocates addresses, decides what has to be durable first, keeps agents' reports
//! - [`authentication`]: sessions of agents with masters, and the seals of their messages
//! - [`agent`]: registers, decides which networks to configure and retry, reports

pub mod agent;
pub mod authentication;
pub mod ipam;
pub mod master;
pub mod metrics;
pub mod state_machine;
