//! `forget`: what it frees, and what it says where it cannot. A master of ours is asked in
//! `cluster`.

use crate::support::{FakeMaster, Place, http};

const RECORDED: &str = include_str!("../golden/overlay-master-state.json");
const STATE: &str = "/overlay-master/state";
const DELETE: &str = "/overlay-master/agents/delete";

fn without_agents() -> String {
    let mut state: serde_json::Value = serde_json::from_str(RECORDED).unwrap();
    state.as_object_mut().unwrap().remove("agents");
    state.to_string()
}

fn forget(master: &FakeMaster, arguments: &str) -> String {
    let outcome = Place::new().run(&format!("forget --master {} {arguments}", master.address));
    outcome.transcript().replace(&master.address, "MASTER")
}

#[test]
fn a_master_with_the_cpp_modules_forgets_too() {
    let deleted = http("200 OK", &without_agents());
    let master = FakeMaster::start(vec![(STATE, http("200 OK", RECORDED)), (DELETE, deleted)]);
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
fn an_agent_that_is_still_there_is_a_failure() {
    let unchanged = http("200 OK", RECORDED);
    let master = FakeMaster::start(vec![(STATE, unchanged.clone()), (DELETE, unchanged)]);
    let said = forget(&master, "127.0.0.1");
    assert!(said.contains("  not deleted\n"), "{said}");
    let reason =
        "mesos-overlay: forget 127.0.0.1: master MASTER still has it: see its log\nexit code 1\n";
    assert!(said.ends_with(reason), "{said}");
}

#[test]
fn nothing_is_asked_for_agents_that_are_not_known() {
    // There is no answer to a deletion here: it would be a failure.
    let master = FakeMaster::with_state(http("200 OK", RECORDED));
    assert_eq!(
        forget(&master, "10.0.0.9 10.0.0.8"),
        "\
AGENT     VTEP IP  SUBNETS  RESULT
10.0.0.9  -        -        not known
10.0.0.8  -        -        not known
mesos-overlay: forget 10.0.0.9, 10.0.0.8: master MASTER knows no such agent: `mesos-overlay state` shows those that it knows
exit code 1
"
    );
}

#[test]
fn a_dry_run_asks_for_no_deletion() {
    let master = FakeMaster::with_state(http("200 OK", RECORDED));
    let said = forget(&master, "127.0.0.1 --dry-run");
    assert!(said.contains("  would be deleted\n") && said.ends_with("exit code 0\n"), "{said}");
    let environment = [
        ("MESOS_OVERLAY_MASTER", master.address.as_str()),
        ("MESOS_OVERLAY_DRY_RUN", "1"),
        ("MESOS_OVERLAY_JSON", "1"),
    ];
    assert_eq!(
        Place::new().run_with("forget 127.0.0.1", &environment, "").json(),
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
fn a_master_that_refuses_is_told_in_one_line() {
    let refusal = http("403 Forbidden", "refused");
    let master = FakeMaster::start(vec![(STATE, http("200 OK", RECORDED)), (DELETE, refusal)]);
    assert_eq!(
        forget(&master, "127.0.0.1"),
        "mesos-overlay: master MASTER: /overlay-master/agents/delete: 403 Forbidden: refused: it wants \
         to know who asks: ask with curl and its credentials\nexit code 1\n"
    );
}
