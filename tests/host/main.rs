//! Tests against the real kernel, the real CNI plugins, a real Docker daemon and real ZooKeeper
//! servers. They need root and the Debian packages containernetworking-plugins, docker.io,
//! busybox-static, iproute2, ipset, iptables, nftables, zookeeper and default-jre-headless, and are
//! run by `tests/run host`. They never pass by not running: without root or a package they fail.
//!
//! Everything happens in network namespaces of their own, the machine's own is not touched; only
//! ZooKeeper and what talks to it is on loopback ports. What a test makes is gone when it ends,
//! also when it fails.

mod agent;
mod clean;
mod cluster;
mod cni;
mod dataplane;
mod dataplane_refused;
mod demo;
mod docker;
mod doctor;
mod engine;
mod ensemble;
mod firewall;
mod firewall_docker;
mod hosts;
mod namespace;
mod program;
mod traffic;
mod zookeeper;
