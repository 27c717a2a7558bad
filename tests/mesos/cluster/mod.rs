//! Real mesos-master and mesos-agent processes with the modules, and the program beside them. Each
//! test creates its own hosts, see [`host`], and removes them at its end.
//!
//! The tests need root and the Debian packages busybox-static, containernetworking-plugins,
//! docker.io, iproute2, iptables and zookeeper. They need no internet connection.

#![expect(clippy::disallowed_methods, reason = "tests wait for other processes")]

mod attacks;
mod authentication;
mod cni_plugin;
mod daemon;
mod docker;
mod election;
mod endpoints;
mod host;
mod http;
mod json_shape;
mod mesos;
mod mixed;
mod restart;
mod scheduler;
mod sessions;
mod startup_errors;
mod store;
mod storm;
mod task;
mod trial_setup;
