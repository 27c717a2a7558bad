//! Real mesos-master and mesos-agent with the modules, beside the program: what an operator sees of
//! them. Each test has hosts of its own ([`host`]) and leaves nothing behind.
//!
//! The machine needs root and the Debian packages busybox-static, containernetworking-plugins,
//! docker.io, iproute2, iptables and zookeeper, and no connection to anywhere.

#![expect(clippy::disallowed_methods, reason = "tests wait for other processes")]

mod authentication;
mod daemon;
mod docker;
mod documented;
mod election;
mod endpoints;
mod form;
mod host;
mod hostile;
mod http;
mod mesos;
mod mixed;
mod refused;
mod restart;
mod store;
mod storm;
mod task;
