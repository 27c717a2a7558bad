//! The program `nft` hangs or fails: no host is opened, the agent reports the failure, and it
//! recovers when the program works again.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use super::lab::{STRANGER, prepare_host};
use super::packets::{Shape, VxlanPacket};
use super::probe::Verdict::{Drop, Pass};
use super::probe::{Action, Row, differences};
use crate::cluster::Cluster;
use crate::cluster::container::Container;
use crate::hosts::Underlay;
use crate::namespace::require_root_and_files;

const NFT: &str = "/usr/sbin/nft";
/// The host whose `nft` hangs, the host whose `nft` fails, and a host without a fault.
const HANGS: u8 = 1;
const FAILS: u8 = 2;
const HEALTHY: u8 = 3;

/// Puts a program in the place of `nft` in the agent's mount namespace. It hangs or fails as long
/// as a file of this name exists in its directory.
fn replace_nft(cluster: &mut Cluster, number: u8) {
    let host = cluster.host_mut(number);
    let (real, fake) = (host.daemon.path("nft-real"), host.daemon.path("nft-fake"));
    fs::copy(NFT, &real).expect("a copy of nft");
    fs::copy(NFT, &fake).expect("an executable file");
    let (hangs, fails) = (host.daemon.path("hangs"), host.daemon.path("fails"));
    let script = format!(
        "#!/bin/sh\n\
         if [ -e {} ]; then exec sleep 1000; fi\n\
         if [ -e {} ]; then echo 'Error: Could not process rule: no memory' >&2; exit 1; fi\n\
         exec {} \"$@\"\n",
        hangs.display(),
        fails.display(),
        real.display()
    );
    fs::write(&fake, script).expect("a script");
    let mount = format!("mount --bind {} {NFT} && exec \"$@\"", fake.display());
    let wrapper = ["unshare", "--mount", "sh", "-c", &mount, "sh"];
    host.wrapper = wrapper.map(str::to_owned).to_vec();
    host.config["verify_interval"] = json!("1s");
}

/// Returns the file that makes the `nft` of this host hang or fail.
fn fault_file(cluster: &Cluster, number: u8) -> PathBuf {
    cluster.host(number).daemon.path(if number == HANGS { "hangs" } else { "fails" })
}

fn has_tunnel(cluster: &Cluster, number: u8) -> bool {
    cluster.host(number).namespace().devices().iter().any(|name| name == "vtep1024")
}

/// Waits until the health of the agent shows the failure of `nft`.
fn wait_for_failure(cluster: &Cluster, number: u8) {
    cluster.wait_for(&format!("agent {number} reports its failed program"), || {
        let health = cluster.host(number).health();
        health["status"] != "ok" && health["problems"].to_string().contains("nft")
    });
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn hanging_and_failing_nft_open_nothing() {
    require_root_and_files(&[NFT]);
    let mut cluster = Cluster::new(Underlay::V4);
    cluster.namespace.run(&format!("ip addr add {STRANGER}/24 dev eth0"));
    for number in [HANGS, FAILS, HEALTHY] {
        let host = cluster.add_host(number);
        host.config["firewall"] = json!("nftables");
        prepare_host(host);
    }
    for number in [HANGS, FAILS] {
        replace_nft(&mut cluster, number);
        fs::write(fault_file(&cluster, number), "").expect("a file");
    }
    cluster.start_agents();
    wait_for_failure(&cluster, FAILS);
    wait_for_failure(&cluster, HANGS);
    for number in [HANGS, FAILS] {
        assert!(!has_tunnel(&cluster, number), "{}", cluster.logs());
        eprintln!("{number}: {}", cluster.host(number).health()["problems"]);
        fs::remove_file(fault_file(&cluster, number)).expect("an existing file");
    }
    cluster.wait_until_ok();

    // The agent starts again, and its program fails: the rules from before the start stay in force.
    fs::write(fault_file(&cluster, FAILS), "").expect("a file");
    let host = cluster.host_mut(FAILS);
    host.agent.take().expect("a running process").kill();
    host.start_agent();
    wait_for_failure(&cluster, FAILS);
    let target = Container::for_mesos(cluster.host(FAILS), "vxlan-1").namespace;
    let address = |text: &str| text.parse().expect("a valid address");
    let packet_to = |source: &str| VxlanPacket::new(FAILS, (source, "192.168.1.2"), Shape::Plain);
    let packet = |source: &str, from, outer: &str, expected| {
        let action = Action::vxlan((from, address(outer)), &target, packet_to(source));
        Row::new(format!("{outer}, inner source {source}"), "container", expected, action)
    };
    let healthy = cluster.host(HEALTHY).namespace();
    let rows = [
        packet("192.168.2.2", healthy, "10.0.0.3", Pass),
        packet("192.168.0.2", healthy, "10.0.0.3", Drop),
        packet("8.8.8.8", healthy, "10.0.0.3", Drop),
        packet("192.168.2.2", &cluster.namespace, STRANGER, Drop),
    ];
    let different = differences(rows.iter(), "nft fails", |row| row.expected);
    assert!(different.is_empty(), "{}\n{}", different.join("\n"), cluster.logs());
    fs::remove_file(fault_file(&cluster, FAILS)).expect("an existing file");
    cluster.wait_until_ok();
}
