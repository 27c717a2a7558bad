//! `connectivity` against real agents whose tunnels are cut.

use super::{Cluster, MASTER_ADDRESS};
use crate::hosts::Underlay;
use crate::namespace::run;
use crate::process::PROGRAM;

impl Cluster {
    /// Runs `connectivity` on the master's host. Returns the exit code and stdout.
    fn connectivity(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = self.namespace.command(PROGRAM);
        command.args(["connectivity", "--master", MASTER_ADDRESS]).args(arguments);
        let output = run(&mut command, "");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn broken_pairs_of_host_with_dropped_tunnel_are_named() {
    let mut cluster = Cluster::started(3, Underlay::V4);
    cluster.wait_for("all pairs are ok", || {
        cluster.connectivity(&[]).1.contains("pairs: 6 ok, 0 lossy, 0 unreachable, 0 unknown\n")
    });
    let (code, shown) = cluster.connectivity(&[]);
    eprintln!("{shown}");
    assert_eq!(code, Some(0), "{shown}");
    // The network of the third host drops the tunnel in both directions. HTTP works.
    cluster.switch.run("ip link set port3 up");
    let drop = "nft 'table bridge cut { chain forward { type filter hook forward priority 0; \
                ip saddr 10.0.0.3 udp dport 64000 drop; ip daddr 10.0.0.3 udp dport 64000 drop; }; }'";
    cluster.switch.succeed("sh", &["-c", drop]);
    let line = "10.0.0.3: unreachable from 2 of 2, does not reach 2 of 2: no answer\n";
    cluster.wait_for("the third host is named", || cluster.connectivity(&[]).1.contains(line));
    let (code, shown) = cluster.connectivity(&[]);
    eprintln!("{shown}");
    assert_eq!(code, Some(1), "{shown}");
    assert!(shown.contains("pairs: 2 ok, 0 lossy, 4 unreachable, 0 unknown\n"), "{shown}");
    // Without its agent, the others still know.
    cluster.host_mut(3).agent.take().expect("a running process").kill();
    let (code, shown) = cluster.connectivity(&[]);
    eprintln!("{shown}");
    assert_eq!(code, Some(1), "{shown}");
    assert!(shown.contains("10.0.0.3: unreachable from 2 of 2: no answer\n"), "{shown}");
    assert!(shown.contains("10.0.0.3: not asked: Connection refused"), "{shown}");
}
