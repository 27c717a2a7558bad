//! Tests against the real kernel, the real CNI plugins, a real Docker daemon and real ZooKeeper
//! servers. They need root and the Debian packages containernetworking-plugins, docker.io,
//! busybox-static, ethtool, iproute2, ipset, iptables, nftables, prometheus, zookeeper and
//! default-jre-headless, and `tests/run host` runs them. Without root or a package the tests fail; they are never skipped.
//!
//! Every test uses network namespaces of its own and leaves the machine's own namespace alone. Only
//! ZooKeeper and its clients use loopback ports of the machine. A test removes its processes,
//! namespaces and files when it ends, also after a failure.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the test runner shows the output if a test fails"
)]
mod advice;
mod agent;
mod clean;
mod cluster;
mod cni;
mod cni_plugin;
mod dataplane;
mod dataplane_errors;
mod demo;
mod docker;
mod docker_daemon;
mod doctor;
mod ensemble;
mod firewall;
mod firewall_docker;
mod firewall_foreign;
mod firewall_forged;
mod firewall_reboot;
mod firewall_upgrade;
mod forwarding;
mod hosts;
mod metrics;
mod namespace;
mod offloads;
mod process;
mod quickstart;
mod state_file;
mod traffic;
mod zookeeper;
