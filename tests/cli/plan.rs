//! `plan`: the addresses that each agent would get, and the pool that is exhausted first.

use std::process::Command;

use crate::support::{TestDir, program};

#[test]
fn plan_that_fits_prints_assignments_and_capacity() {
    let dir = TestDir::with_network();
    assert_eq!(
        dir.run("plan network.json --agents 2").success(),
        "\
AGENT  VTEP IP        VTEP MAC           OVERLAY  SUBNET            MESOS HALF        DOCKER HALF
1      44.128.0.1/16  70:b3:d5:80:00:01  vxlan-1  192.168.0.0/24    192.168.0.0/25    192.168.0.128/25
1      44.128.0.1/16  70:b3:d5:80:00:01  vxlan-2  192.168.128.0/24  192.168.128.0/25  192.168.128.128/25
2      44.128.0.2/16  70:b3:d5:80:00:02  vxlan-1  192.168.1.0/24    192.168.1.0/25    192.168.1.128/25
2      44.128.0.2/16  70:b3:d5:80:00:02  vxlan-2  192.168.129.0/24  192.168.129.0/25  192.168.129.128/25

POOL         SPACE             EACH AGENT   AGENTS  MESOS CONTAINERS EACH  DOCKER CONTAINERS EACH
vtep_subnet  44.128.0.0/16     one address  65534   -                      -
vxlan-1      192.168.0.0/17    /24          128     125                    125
vxlan-2      192.168.128.0/17  /24          128     125                    125

capacity for 128 agents: then nothing is left in vxlan-1 and vxlan-2
"
    );
}

#[test]
fn plan_over_capacity_names_first_unserved_agent() {
    let dir = TestDir::with_network();
    assert_eq!(
        dir.run("plan network.json --agents 130").transcript(),
        "\
AGENT  VTEP IP          VTEP MAC           OVERLAY  SUBNET            MESOS HALF        DOCKER HALF
1      44.128.0.1/16    70:b3:d5:80:00:01  vxlan-1  192.168.0.0/24    192.168.0.0/25    192.168.0.128/25
1      44.128.0.1/16    70:b3:d5:80:00:01  vxlan-2  192.168.128.0/24  192.168.128.0/25  192.168.128.128/25
2      44.128.0.2/16    70:b3:d5:80:00:02  vxlan-1  192.168.1.0/24    192.168.1.0/25    192.168.1.128/25
2      44.128.0.2/16    70:b3:d5:80:00:02  vxlan-2  192.168.129.0/24  192.168.129.0/25  192.168.129.128/25
3      44.128.0.3/16    70:b3:d5:80:00:03  vxlan-1  192.168.2.0/24    192.168.2.0/25    192.168.2.128/25
3      44.128.0.3/16    70:b3:d5:80:00:03  vxlan-2  192.168.130.0/24  192.168.130.0/25  192.168.130.128/25
4      44.128.0.4/16    70:b3:d5:80:00:04  vxlan-1  192.168.3.0/24    192.168.3.0/25    192.168.3.128/25
4      44.128.0.4/16    70:b3:d5:80:00:04  vxlan-2  192.168.131.0/24  192.168.131.0/25  192.168.131.128/25
5      44.128.0.5/16    70:b3:d5:80:00:05  vxlan-1  192.168.4.0/24    192.168.4.0/25    192.168.4.128/25
5      44.128.0.5/16    70:b3:d5:80:00:05  vxlan-2  192.168.132.0/24  192.168.132.0/25  192.168.132.128/25
…      …                …                  …        …                 …                 …
128    44.128.0.128/16  70:b3:d5:80:00:80  vxlan-1  192.168.127.0/24  192.168.127.0/25  192.168.127.128/25
128    44.128.0.128/16  70:b3:d5:80:00:80  vxlan-2  192.168.255.0/24  192.168.255.0/25  192.168.255.128/25
129    44.128.0.129/16  70:b3:d5:80:00:81  -        -                 -                 -
130    44.128.0.130/16  70:b3:d5:80:00:82  -        -                 -                 -

POOL         SPACE             EACH AGENT   AGENTS  MESOS CONTAINERS EACH  DOCKER CONTAINERS EACH
vtep_subnet  44.128.0.0/16     one address  65534   -                      -
vxlan-1      192.168.0.0/17    /24          128     125                    125
vxlan-2      192.168.128.0/17  /24          128     125                    125

capacity for 128 agents: then nothing is left in vxlan-1 and vxlan-2
mesos-overlay: network.json: 128 of 130 agents fit: from agent 129 on, nothing is left in vxlan-1 and vxlan-2: configure more address space, or a longer prefix
exit code 1
"
    );
}

/// IPv4 and IPv6, a disabled overlay, and a VTEP subnet that is exhausted first.
const DUAL_STACK: &str = r#"{ "vtep_subnet": "10.255.0.0/30", "vtep_subnet6": "fd01:a::/64",
  "vtep_mac_oui": "70:B3:D5:00:00:00",
  "overlays": [ { "name": "dual", "subnet": "10.0.0.0/16", "prefix": 24,
                  "subnet6": "fd01:b::/64", "prefix6": 80 },
                { "name": "six", "subnet6": "fd01:c::/64", "prefix6": 120 },
                { "name": "off", "subnet": "10.1.0.0/16", "prefix": 24, "enabled": false } ] }
"#;

#[test]
fn dual_stack_plan_shows_ipv6_below_ipv4() {
    let dir = TestDir::new();
    dir.write("dual.json", DUAL_STACK);
    assert_eq!(
        dir.run("plan dual.json --agents 3").transcript(),
        "\
AGENT  VTEP IP        VTEP MAC           OVERLAY  SUBNET             MESOS HALF         DOCKER HALF
1      10.255.0.1/30  70:b3:d5:ff:00:01  dual     10.0.0.0/24        10.0.0.0/25        10.0.0.128/25
       fd01:a::1/64                               fd01:b::/80        fd01:b::/81        fd01:b::8000:0:0/81
1      10.255.0.1/30  70:b3:d5:ff:00:01  six      fd01:c::/120       fd01:c::/121       fd01:c::80/121
       fd01:a::1/64
2      10.255.0.2/30  70:b3:d5:ff:00:02  dual     10.0.1.0/24        10.0.1.0/25        10.0.1.128/25
       fd01:a::2/64                               fd01:b:0:0:1::/80  fd01:b:0:0:1::/81  fd01:b::1:8000:0:0/81
2      10.255.0.2/30  70:b3:d5:ff:00:02  six      fd01:c::100/120    fd01:c::100/121    fd01:c::180/121
       fd01:a::2/64
3      -              -                  -        -                  -                  -

POOL          SPACE          EACH AGENT   AGENTS                MESOS CONTAINERS EACH  DOCKER CONTAINERS EACH
vtep_subnet   10.255.0.0/30  one address  2                     -                      -
vtep_subnet6  fd01:a::/64    one address  18446744073709551615  -                      -
dual          10.0.0.0/16    /24          256                   125                    125
dual          fd01:b::/64    /80          65536                 125                    125
six           fd01:c::/64    /120         72057594037927936     0                      126

capacity for 2 agents: then nothing is left in vtep_subnet
mesos-overlay: dual.json: 2 of 3 agents fit: from agent 3 on, agents get nothing at all: configure a larger vtep_subnet
exit code 1
"
    );
}

#[test]
fn option_all_shows_every_agent() {
    let dir = TestDir::with_network();
    let all = dir.run("plan network.json --agents 100 --all").success();
    let rows = all.lines().filter(|line| line.contains(" vxlan-2  192.168.")).count();
    assert_eq!(rows, 100);
    let environment = [("MESOS_OVERLAY_ALL", "true"), ("MESOS_OVERLAY_AGENTS", "100")];
    assert_eq!(dir.run_with("plan network.json", &environment, "").success(), all);
}

#[test]
fn json_output_has_documented_keys_and_every_agent() {
    let dir = TestDir::with_network();
    let plan = dir.run("plan network.json --agents 128 --json").json();
    assert_eq!(plan["plan"].as_array().unwrap().len(), 128);
    assert_eq!(
        plan["plan"][127],
        serde_json::json!({
            "agent": 128,
            "vtep_ip": "44.128.0.128/16",
            "vtep_mac": "70:b3:d5:80:00:80",
            "overlays": [
                {
                    "name": "vxlan-1",
                    "subnet": "192.168.127.0/24",
                    "mesos_bridge": { "ip": "192.168.127.0/25" },
                    "docker_bridge": { "ip": "192.168.127.128/25" }
                },
                {
                    "name": "vxlan-2",
                    "subnet": "192.168.255.0/24",
                    "mesos_bridge": { "ip": "192.168.255.0/25" },
                    "docker_bridge": { "ip": "192.168.255.128/25" }
                }
            ]
        })
    );
    let mut rest = plan.clone();
    rest.as_object_mut().unwrap().remove("plan");
    assert_eq!(
        rest,
        serde_json::json!({
            "agents": 128,
            "agents_that_fit": 128,
            "exhausted_first": ["vxlan-1", "vxlan-2"],
            "vteps": [{ "subnet": "44.128.0.0/16", "agents_that_fit": 65534 }],
            "overlays": [
                {
                    "name": "vxlan-1",
                    "agents_that_fit": 128,
                    "mesos_containers_per_agent": 125,
                    "docker_containers_per_agent": 125
                },
                {
                    "name": "vxlan-2",
                    "agents_that_fit": 128,
                    "mesos_containers_per_agent": 125,
                    "docker_containers_per_agent": 125
                }
            ]
        })
    );
}

#[test]
fn plan_of_million_agents_fits_in_300_mb() {
    let dir = TestDir::new();
    dir.write(
        "large.json",
        r#"{ "vtep_subnet": "44.0.0.0/8", "vtep_mac_oui": "70:B3:D5:00:00:00",
             "overlays": [ { "name": "large", "subnet": "10.0.0.0/8", "prefix": 28 } ] }"#,
    );
    // 300 MB of address space. The binary maps most of this without touching it.
    let output = Command::new("sh")
        .args(["-c", "ulimit -v 300000 && exec \"$@\"", "sh"])
        .arg(program())
        .args(["plan", "large.json", "--agents", "1000000"])
        .current_dir(dir.path(""))
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    let last = "1000000  44.15.66.64/8  70:b3:d5:0f:42:40  large    10.244.35.240/28";
    assert!(stdout.contains(last), "{stdout}");
    assert!(stdout.ends_with("\ncapacity for 1048576 agents: then nothing is left in large\n"));
}

#[test]
fn invalid_file_is_refused_with_every_problem() {
    let dir = TestDir::new();
    dir.write("bad.json", "{\"overlays\":[]}");
    assert_eq!(
        dir.run("plan bad.json --agents 1").transcript(),
        "\
bad.json:1:1: vtep_subnet: is missing: write the IPv4 space of the VTEPs, such as \"198.19.0.0/16\"
bad.json:1:1: vtep_mac_oui: is missing: write the upper half of MACs, such as \"70:B3:D5:00:00:00\"
bad.json:1:13: overlays: is empty: write at least one overlay, with name, subnet and prefix
mesos-overlay: bad.json: 3 problems: fix them and try again
exit code 1
"
    );
}

#[test]
fn closed_pipe_exits_with_0_and_no_error() {
    let dir = TestDir::with_network();
    let outcome = dir.run_into_closed_pipe("plan network.json --agents 128 --all");
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
    let outcome = dir.run_into_closed_pipe("plan network.json --agents 128 --json");
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
}
