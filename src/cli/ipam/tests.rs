//! The problems and the addresses of made-up observations.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::sync::Arc;

use overlay_linux::cni::{Doubt, LeaseState, Leases};
use overlay_linux::dataplane::ContainerEndpoint;
use overlay_linux::docker::{Endpoint, NetworkUse};
use overlay_types::addr::OverlayName;
use overlay_types::protocol::State;

use super::check::{Problem, problems, unknown_leases};
use super::host::{Observation, OverlayLeases, halves};
use super::usage::{half_usage, used_addresses};
use crate::cli::response::read_state;

/// One agent with the halves 192.168.0.0/25 and 192.168.0.128/25 of vxlan-1, and 192.168.128.0/25 and
/// 192.168.128.128/25 of vxlan-2.
const STATE: &[u8] = include_bytes!("../../../tests/golden/overlay-master-state.json");

fn state() -> State {
    read_state(STATE).unwrap()
}

fn overlay(name: &str) -> OverlayName {
    name.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Returns a host without containers.
fn host() -> Observation {
    let agent = Arc::unwrap_or_clone(state().agents.remove(0));
    let halves = agent.overlays.iter().map(|found| (found.name().clone(), halves(found)));
    Observation {
        halves: halves.collect(),
        is_assigned: true,
        agent: Some(agent),
        docker: Some(Vec::new()),
        ..Observation::default()
    }
}

/// Adds the leases of an overlay, with their states.
fn lease(observed: &mut Observation, name: &str, leases: &[(&str, LeaseState)]) {
    let root = tempfile::tempdir().unwrap();
    let store = Leases::new(Some(root.path()));
    fs::create_dir(store.path(&overlay(name))).unwrap();
    for (address, _) in leases {
        let content = format!("c-{address}\r\neth0");
        fs::write(store.path(&overlay(name)).join(address), content).unwrap();
    }
    let files = store.files(&overlay(name)).unwrap();
    let states = leases.iter().map(|(_, state)| *state).collect();
    observed.leases.insert(overlay(name), OverlayLeases { files, states });
}

fn docker(observed: &mut Observation, subnet: &str, containers: &[(&str, &str)]) {
    let endpoint = |(name, address): &(&str, &str)| Endpoint {
        container: format!("id-of-{name}"),
        name: (*name).to_owned(),
        addresses: vec![ip(address)],
    };
    observed.docker = Some(vec![NetworkUse {
        overlay: overlay("vxlan-1"),
        subnets: vec![subnet.parse().unwrap()],
        endpoints: containers.iter().map(endpoint).collect(),
    }]);
}

fn connect(observed: &mut Observation, address: &str, port: &str, bridge: &str) {
    observed.endpoints.push(ContainerEndpoint {
        address: ip(address),
        port: port.to_owned(),
        bridge: Some(bridge.to_owned()),
    });
    observed.lasting.insert(ip(address));
}

fn lines(observed: &Observation) -> Vec<String> {
    let addresses = used_addresses(observed);
    let problems = problems(observed, &addresses, &half_usage(observed, &addresses));
    problems.iter().map(Problem::to_string).collect()
}

#[test]
fn host_without_problem_has_none() {
    let mut observed = host();
    lease(&mut observed, "vxlan-1", &[("192.168.0.2", LeaseState::InUse)]);
    connect(&mut observed, "192.168.0.2", "veth1", "m-vxlan-1");
    docker(&mut observed, "192.168.0.128/25", &[("web", "192.168.0.130")]);
    connect(&mut observed, "192.168.0.130", "veth2", "d-vxlan-1");
    observed.cni.insert(overlay("vxlan-1"), vec!["192.168.0.0/25".parse().unwrap()]);
    let bridge = vec!["192.168.0.1/25".parse().unwrap()];
    observed.bridges.insert("m-vxlan-1".to_owned(), bridge);
    observed.master = Some(state());
    assert_eq!(lines(&observed), [""; 0]);
    let addresses = used_addresses(&observed);
    let shown: Vec<String> = addresses
        .iter()
        .map(|used| {
            let sources: Vec<&str> = used.sources.iter().map(|source| source.name()).collect();
            let label = used.container_label().unwrap_or_default();
            format!("{} {label} {} {sources:?}", used.address, used.interface_label())
        })
        .collect();
    assert_eq!(
        shown,
        [
            r#"192.168.0.2 c-192.168.0.2 eth0@veth1 ["lease", "kernel"]"#,
            r#"192.168.0.130 web veth2 ["docker", "kernel"]"#,
        ]
    );
    let usage = half_usage(&observed, &addresses);
    let counts: Vec<_> = usage.iter().map(|half| (half.used, half.free)).collect();
    assert_eq!(counts, [(1, 124), (1, 124), (0, 125), (0, 125)]);
}

#[test]
fn leak_and_doubtful_lease_are_told_apart() {
    let mut observed = host();
    lease(
        &mut observed,
        "vxlan-1",
        &[
            ("192.168.0.2", LeaseState::Leaked),
            ("192.168.0.3", LeaseState::Young),
            ("192.168.0.4", LeaseState::Unknown(Doubt::KnownToMesos)),
        ],
    );
    assert_eq!(
        lines(&observed),
        [
            "leak: overlay vxlan-1: 192.168.0.2 is leased to container c-192.168.0.2 (eth0), which is \
          gone: run 'mesos-overlay ipam check --fix'"
        ]
    );
    let unknown: Vec<String> = unknown_leases(&observed).iter().map(Problem::to_string).collect();
    assert_eq!(
        unknown,
        ["unknown: overlay vxlan-1: 192.168.0.4 is leased to container c-192.168.0.4 (eth0): no \
          device has it, and Mesos knows the container: the Mesos agent ends the lease with the \
          container: see that it runs"]
    );
}

#[test]
fn address_with_two_users_is_a_conflict() {
    let mut observed = host();
    lease(&mut observed, "vxlan-1", &[("192.168.0.130", LeaseState::InUse)]);
    lease(&mut observed, "vxlan-2", &[("192.168.0.130", LeaseState::Young)]);
    docker(&mut observed, "192.168.0.128/25", &[("web", "192.168.0.130")]);
    connect(&mut observed, "192.168.0.130", "veth1", "m-vxlan-1");
    connect(&mut observed, "192.168.0.130", "veth2", "d-vxlan-1");
    let lines = lines(&observed);
    assert_eq!(
        lines,
        [
            "conflict: 192.168.0.130 is leased twice: to container c-192.168.0.130 in overlay \
             vxlan-1 and to container c-192.168.0.130 in overlay vxlan-2: stop one of the \
             containers",
            "conflict: several containers have 192.168.0.130: at ports veth1, veth2: stop all of \
             them but one",
            "conflict: overlay vxlan-1: 192.168.0.130 is leased to container c-192.168.0.130 and \
             used by the Docker container web: stop one of the two containers",
            "conflict: overlay vxlan-2: 192.168.0.130 of container c-192.168.0.130 is outside of \
             192.168.128.0/25, the addresses of Mesos containers on this host: restart the \
             container: other hosts do not reach it",
        ]
    );
}

#[test]
fn user_outside_of_assignment_and_without_lease_are_conflicts() {
    let mut observed = host();
    lease(&mut observed, "vxlan-1", &[("192.168.9.2", LeaseState::InUse)]);
    docker(&mut observed, "192.168.9.128/25", &[("web", "192.168.9.130")]);
    connect(&mut observed, "192.168.0.7", "veth7", "m-vxlan-1");
    connect(&mut observed, "192.168.0.140", "veth8", "d-vxlan-1");
    // A container that started after the first look may get its lease after the second.
    connect(&mut observed, "192.168.0.8", "veth9", "m-vxlan-1");
    observed.lasting.remove(&ip("192.168.0.8"));
    observed.neighbors = vec![(ip("192.168.0.9"), "m-vxlan-1".to_owned())];
    observed.answering = [ip("192.168.0.9")].into();
    assert_eq!(
        lines(&observed),
        [
            "conflict: overlay vxlan-1: a container at port veth7 has 192.168.0.7 without a lease \
             of host-local: restart the container: another one may get the same address",
            "conflict: overlay vxlan-1: 192.168.0.9 answers at bridge m-vxlan-1 without a lease of \
             host-local: find the device with this address, and give it another one",
            "conflict: overlay vxlan-1: a container at port veth8 has 192.168.0.140, which Docker \
             does not know: stop the container: one of Docker may get the same address",
            "conflict: overlay vxlan-1: 192.168.9.2 of container c-192.168.9.2 is outside of \
             192.168.0.0/25, the addresses of Mesos containers on this host: restart the \
             container: other hosts do not reach it",
            "conflict: overlay vxlan-1: 192.168.9.130 of the Docker container web is outside of \
             192.168.0.128/25, the addresses of Docker containers on this host: stop the \
             containers of the network, which the agent then creates again",
            "conflict: overlay vxlan-1: its Docker network has 192.168.9.128/25, and the assigned \
             addresses are 192.168.0.128/25: stop its containers and run 'docker network rm \
             vxlan-1', then the agent creates it again",
        ]
    );
}

#[test]
fn configuration_that_differs_from_assignment_is_a_conflict() {
    let mut observed = host();
    observed.cni.insert(overlay("vxlan-1"), vec!["192.168.9.0/25".parse().unwrap()]);
    let bridge = vec!["192.168.9.1/25".parse().unwrap()];
    observed.bridges.insert("m-vxlan-1".to_owned(), bridge);
    assert_eq!(
        lines(&observed),
        [
            "conflict: overlay vxlan-1: its CNI configuration has 192.168.9.0/25, and the assigned \
             addresses are 192.168.0.0/25: the agent writes it again: see the status of the \
             overlay",
            "conflict: overlay vxlan-1: bridge m-vxlan-1 has 192.168.9.0/25, and the assigned \
             addresses are 192.168.0.0/25: run 'mesos-overlay doctor', which shows the command",
        ]
    );
    observed.is_assigned = false;
    assert_eq!(lines(&observed), [""; 0], "without an assignment there is nothing to compare with");
}

#[test]
fn master_and_agents_that_disagree_are_conflicts() {
    let mut observed = host();
    observed.master_name = "10.0.0.1:5050".to_owned();
    let mut master = state();
    let mut other = Arc::unwrap_or_clone(master.agents[0].clone());
    other.ip = "10.0.0.8".parse().unwrap();
    other.overlays.truncate(1);
    master.agents.push(Arc::new(other));
    let own = Arc::make_mut(&mut master.agents[0]);
    own.overlays.truncate(1);
    observed.master = Some(master);
    assert_eq!(
        lines(&observed),
        [
            "conflict: overlay vxlan-2: master 10.0.0.1:5050 has assigned nothing to agent \
             127.0.0.1, which uses 192.168.128.0/25 and fd01:b::/81 and 192.168.128.128/25 and \
             fd01:b::8000:0:0/81: restart the agent, which then registers again",
            "conflict: master 10.0.0.1:5050: agents 10.0.0.8 and 127.0.0.1 both have 192.168.0.0: \
             run 'mesos-overlay status', and forget the agent that is gone",
        ]
    );
    observed.master = Some(State { agents: Vec::new(), ..state() });
    assert_eq!(
        lines(&observed),
        ["conflict: master 10.0.0.1:5050 has no agent 127.0.0.1, which runs here: see that the \
          agent has the same master in its configuration"]
    );
}

#[test]
fn full_half_and_unreadable_source_are_problems() {
    let mut observed = host();
    let leases: BTreeMap<u8, String> =
        (2..121).map(|number| (number, format!("192.168.0.{number}"))).collect();
    let leases: Vec<_> =
        leases.values().map(|address| (address.as_str(), LeaseState::InUse)).collect();
    lease(&mut observed, "vxlan-1", &leases);
    observed.failures.push(("agent 127.0.0.1:5051: refused".to_owned(), "start it"));
    assert_eq!(
        lines(&observed),
        [
            "unreadable: agent 127.0.0.1:5051: refused: start it",
            "nearly full: overlay vxlan-1: 119 of 125 addresses of 192.168.0.0/25 for Mesos \
             containers are in use: run fewer containers of this overlay on this host, or add an \
             overlay with a shorter prefix at the master for new containers",
        ]
    );
}

#[test]
fn large_subnet_and_many_agents_cost_nothing_per_free_address() {
    let mut observed = host();
    let halves = observed.halves.get_mut(&overlay("vxlan-1")).unwrap();
    halves.mesos = vec!["10.0.0.0/9".parse().unwrap()];
    lease(&mut observed, "vxlan-1", &[("10.0.0.2", LeaseState::InUse)]);
    let mut master = state();
    let agent = master.agents[0].clone();
    for number in 0..1000_u32 {
        let mut agent = Arc::unwrap_or_clone(agent.clone());
        agent.ip = (0x0a00_0000 + number).into();
        agent.overlays.truncate(1);
        let subnet = format!("172.{}.{}.0/24", 16 + number / 256, number % 256);
        agent.overlays[0].subnet = Some(subnet.parse().unwrap());
        master.agents.push(Arc::new(agent));
    }
    observed.master = Some(master);
    let taken = allocation_counter::measure(|| assert_eq!(lines(&observed), [""; 0]));
    assert!(taken.bytes_total < 1024 * 1024, "{} bytes", taken.bytes_total);
    let usage = half_usage(&observed, &used_addresses(&observed));
    assert_eq!((usage[0].used, usage[0].free), (1, (1 << 23) - 4));
}
