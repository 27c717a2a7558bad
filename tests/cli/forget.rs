//! `forget` against a simulated master: released addresses and error messages. `cluster` tests
//! `forget` against a running `mesos-overlay master`.

use crate::support::{FakeMaster, TestDir, http_response};

const RECORDED_STATE: &str = include_str!("../golden/overlay-master-state.json");
const STATE: &str = "/overlay-master/state";
const DELETE: &str = "/overlay-master/agents/delete";

fn state_without_agents() -> String {
    let mut state: serde_json::Value = serde_json::from_str(RECORDED_STATE).unwrap();
    state.as_object_mut().unwrap().remove("agents");
    state.to_string()
}

fn forget(master: &FakeMaster, arguments: &str) -> String {
    let outcome = TestDir::new().run(&format!("forget --master {} {arguments}", master.address));
    outcome.transcript().replace(&master.address, "MASTER")
}

#[test]
fn forget_on_cpp_master_releases_addresses() {
    let deleted = http_response("200 OK", &state_without_agents());
    let master = FakeMaster::start(vec![
        (STATE, http_response("200 OK", RECORDED_STATE)),
        (DELETE, deleted),
    ]);
    assert_eq!(
        forget(&master, "127.0.0.1"),
        "\
AGENT      VTEP IP     SUBNETS           RESULT
127.0.0.1  44.128.0.1  192.168.0.0/24    deleted
                       192.168.128.0/24
                       fd01:b::/80
exit code 0
"
    );
}

#[test]
fn forget_ignored_by_master_fails() {
    let unchanged = http_response("200 OK", RECORDED_STATE);
    let master = FakeMaster::start(vec![(STATE, unchanged.clone()), (DELETE, unchanged)]);
    let transcript = forget(&master, "127.0.0.1");
    assert!(transcript.contains("  not deleted\n"), "{transcript}");
    let reason =
        "mesos-overlay: forget 127.0.0.1: master MASTER still has it: see its log\nexit code 1\n";
    assert!(transcript.ends_with(reason), "{transcript}");
}

#[test]
fn forget_unknown_agents_sends_no_deletion() {
    // This master has no response to a deletion: sending one would fail.
    let master = FakeMaster::with_state(http_response("200 OK", RECORDED_STATE));
    assert_eq!(
        forget(&master, "10.0.0.9 10.0.0.8"),
        "\
AGENT     VTEP IP  SUBNETS  RESULT
10.0.0.9  -        -        not known
10.0.0.8  -        -        not known
mesos-overlay: forget 10.0.0.9, 10.0.0.8: master MASTER knows no such agent: `mesos-overlay state` shows the known agents
exit code 1
"
    );
}

#[test]
fn forget_dry_run_sends_no_deletion() {
    let master = FakeMaster::with_state(http_response("200 OK", RECORDED_STATE));
    let transcript = forget(&master, "127.0.0.1 --dry-run");
    assert!(
        transcript.contains("  would be deleted\n") && transcript.ends_with("exit code 0\n"),
        "{transcript}"
    );
    let environment = [
        ("MESOS_OVERLAY_MASTER", master.address.as_str()),
        ("MESOS_OVERLAY_DRY_RUN", "1"),
        ("MESOS_OVERLAY_JSON", "1"),
    ];
    assert_eq!(
        TestDir::new().run_with("forget 127.0.0.1", &environment, "").json(),
        serde_json::json!({
            "agents": [{
                "ip": "127.0.0.1",
                "vtep_ip": "44.128.0.1",
                "subnets": ["192.168.0.0/24", "192.168.128.0/24", "fd01:b::/80"],
                "result": "would_be_deleted"
            }]
        })
    );
}

#[test]
fn forget_refused_by_master_fails_with_one_line() {
    let forbidden = http_response("403 Forbidden", "refused");
    let master = FakeMaster::start(vec![
        (STATE, http_response("200 OK", RECORDED_STATE)),
        (DELETE, forbidden),
    ]);
    assert_eq!(
        forget(&master, "127.0.0.1"),
        "mesos-overlay: master MASTER: /overlay-master/agents/delete: 403 Forbidden: refused: run \
         the command on the master's host, or give --credential FILE, or start the master with \
         --credentials or --insecure-writes\nexit code 1\n"
    );
}
