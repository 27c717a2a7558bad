//! How subcommands find a master and log in to it: elections, files, Unix sockets, the leader that
//! a standby names, and credentials.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use crate::support::{FakeMaster, NETWORK, TestDir, http_response};

const STATE: &str = include_str!("../golden/overlay-master-state.json");
const SECRET: &str = "s3cret-77";
const CREDENTIAL: &str = r#"{"principal": "operator", "secret": "s3cret-77"}"#;
/// The header of this credential, in base64.
const HEADER: &str = "authorization: Basic b3BlcmF0b3I6czNjcmV0LTc3";
const HEALTH: &str = r#"{"status":"ok","problems":[],"epoch":1,"version":2}"#;
/// Every subcommand that asks a master.
const SUBCOMMANDS: [&str; 5] = [
    "state --master MASTER",
    "forget 10.0.0.7 --master MASTER",
    "reload --master MASTER",
    "history --master MASTER",
    "check network.json --against MASTER",
];
/// Time limit of a command that finds no master.
const LOOKUP_MAX: Duration = Duration::from_secs(20);

fn directory() -> TestDir {
    let dir = TestDir::new();
    dir.write("network.json", NETWORK);
    dir.write("credential", CREDENTIAL);
    set_mode(&dir, 0o600);
    dir
}

fn set_mode(dir: &TestDir, mode: u32) {
    std::fs::set_permissions(dir.path("credential"), Permissions::from_mode(mode)).unwrap();
}

/// Every path that a subcommand requests.
const PATHS: [&str; 6] = ["state", "health", "agents/delete", "preview", "reload", "history"];

/// The responses of a master to all subcommands. Each key ends with `condition`, a text that the
/// request must contain.
fn responses(condition: &str) -> Vec<(&'static str, String)> {
    let released = r#"{"agents":[{"ip":"10.0.0.7","subnets":[],"result":"deleted"}]}"#;
    let effect = r#"{"accepted":true,"changes":[],"problems":[],"warnings":[],"agents":[]}"#;
    [
        ("state", STATE),
        ("health", HEALTH),
        ("agents/delete", released),
        ("preview", effect),
        ("reload", effect),
        ("history", r#"{"entries":[]}"#),
    ]
    .map(|(path, body)| {
        let key: &'static str = format!("/overlay-master/{path} {condition}").leak();
        (key, http_response("200 OK", body))
    })
    .into()
}

/// The responses of a master that requires the credential.
fn authenticating() -> Vec<(&'static str, String)> {
    let mut pages = responses(HEADER);
    pages.extend(refusals("401 Unauthorized", ""));
    pages
}

/// Refusals of every path with this status. Each key ends with `condition`.
fn refusals(status: &str, condition: &str) -> Vec<(&'static str, String)> {
    let refusal = |path: &str| {
        let key: &'static str = format!("/overlay-master/{path} {condition}").leak();
        (key, http_response(status, "no\n"))
    };
    PATHS.map(refusal).into()
}

/// A master that refuses every request with this status, except for its health.
fn refusing_master(status: &str, health: &str) -> FakeMaster {
    let mut pages = vec![("/overlay-master/health", http_response("200 OK", health))];
    pages.extend(refusals(status, ""));
    FakeMaster::start(pages)
}

fn health_of_standby(leader: Option<&str>) -> String {
    let leader = leader.map(|address| serde_json::json!({ "address": address, "id": "x" }));
    let health = serde_json::json!({
        "status": "standby", "problems": [], "epoch": 0, "version": 0, "leader": leader
    });
    health.to_string()
}

/// A standby that requires no credential.
fn standby(leader: Option<&str>) -> FakeMaster {
    refusing_master("503 Service Unavailable", &health_of_standby(leader))
}

/// A standby that requires the credential.
fn authenticating_standby(leader: &str) -> FakeMaster {
    let health: &'static str = format!("/overlay-master/health {HEADER}").leak();
    let mut pages = vec![(health, http_response("200 OK", &health_of_standby(Some(leader))))];
    pages.extend(refusals("503 Service Unavailable", HEADER));
    pages.extend(refusals("401 Unauthorized", ""));
    FakeMaster::start(pages)
}

#[test]
fn credential_is_sent_by_every_subcommand() {
    let dir = directory();
    let master = FakeMaster::start(authenticating());
    for subcommand in SUBCOMMANDS {
        let arguments = subcommand.replace("MASTER", &master.address);
        dir.run(&format!("{arguments} --credential credential")).success();
        let path = dir.path("credential").display().to_string();
        for value in ["credential", &path, &format!("file://{path}")] {
            dir.run_with(&arguments, &[("MESOS_OVERLAY_CREDENTIAL", value)], "").success();
        }
        assert_eq!(dir.run(&arguments).code, Some(1), "{subcommand}");
    }
    dir.write("credential", format!("operator {SECRET}\n"));
    dir.run(&format!("state --master {} --credential credential", master.address)).success();
}

#[test]
fn doctor_sends_credential_to_master_and_agent() {
    let dir = directory();
    let agent = STATE.split_once("\"agents\":[").unwrap().1.rsplit_once("]").unwrap().0;
    let agent = agent.rsplit_once("],\"network\"").map_or(agent, |(agent, _)| agent);
    let key: &'static str = format!("/overlay-agent/overlay {HEADER}").leak();
    let refuse = |path| (path, http_response("401 Unauthorized", ""));
    let mut pages = vec![(key, http_response("200 OK", agent)), refuse("/overlay-agent/overlay")];
    pages.extend(authenticating());
    let server = FakeMaster::start(pages);
    let finding = |options: &str, check: &str| {
        let address = &server.address;
        let arguments = format!("doctor --agent {address} --master {address} --json {options}");
        let report: serde_json::Value = serde_json::from_str(&dir.run(&arguments).stdout).unwrap();
        let findings = report["findings"].as_array().unwrap().clone();
        findings.into_iter().find(|finding| finding["check"] == check).unwrap()
    };
    let agent = finding("", "agent");
    let what = agent["what"].as_str().unwrap();
    assert!(what.ends_with("refuses the request (401 Unauthorized)"), "{agent}");
    let master = finding("", "master")["what"].to_string();
    assert!(master.contains("give the file of a credential that it accepts"), "{master}");
    for check in ["agent", "master"] {
        let finding = finding("--credential credential", check).to_string();
        assert!(!finding.contains("401"), "{finding}");
    }
}

#[test]
fn refused_login_has_remedy_and_no_secret() {
    let dir = directory();
    let failure = |status: &str, options: &str| {
        let mut pages = Vec::new();
        if !options.is_empty() {
            pages.extend(refusals(status, HEADER));
            pages.extend(refusals("401 Unauthorized", ""));
        }
        pages.extend(refusals(status, ""));
        let master = FakeMaster::start(pages);
        for subcommand in SUBCOMMANDS {
            let arguments = subcommand.replace("MASTER", &master.address);
            let error = dir.run(&format!("{arguments} {options}")).failure();
            assert!(!error.contains(SECRET), "{error}");
            assert!(error.contains(&format!("{status}: no: ")), "{error}");
        }
        let error = dir.run(&format!("state --master {} {options}", master.address)).failure();
        error.split_once(": no: ").unwrap().1.to_owned()
    };
    assert_eq!(
        failure("401 Unauthorized", ""),
        "give the file of a credential that it accepts, as --credential FILE\n"
    );
    assert_eq!(
        failure("403 Forbidden", ""),
        "run the command on the master's host, or give --credential FILE, or start the master with \
         --credentials or --insecure-writes\n"
    );
    let login = "--credential credential";
    assert_eq!(
        failure("401 Unauthorized", login),
        "it does not accept the credential in credential: check principal and secret\n"
    );
    assert_eq!(
        failure("403 Forbidden", login),
        "its access list does not allow this to the principal in credential: use the credential of \
         another principal, or change the list\n"
    );
    // A master without credentials does not ask for one.
    let master = refusing_master("403 Forbidden", HEALTH);
    let error = dir.run(&format!("reload --master {} {login}", master.address)).failure();
    assert!(error.contains(": no: it does not take the credential: run the command "), "{error}");
}

#[test]
fn credential_is_sent_only_to_master_that_requires_it() {
    let dir = directory();
    // A request with the credential would not be answered.
    let mut pages: Vec<_> = refusals("400 Bad Request", "authorization: ");
    pages.extend(responses(""));
    let open = FakeMaster::start(pages);
    for subcommand in SUBCOMMANDS {
        let arguments = subcommand.replace("MASTER", &open.address);
        dir.run(&format!("{arguments} --credential credential")).success();
    }
    let arguments = format!("doctor --agent 127.0.0.77:9 --master {}", open.address);
    let report = dir.run(&format!("{arguments} --credential credential")).stdout;
    assert!(!report.contains("400 Bad Request"), "{report}");
}

#[test]
fn credential_is_not_sent_to_leader_that_open_standby_names() {
    let dir = directory();
    // The leader of another cluster, which would get the secret.
    let leader = FakeMaster::start(authenticating());
    let open = standby(Some(&leader.address));
    for subcommand in SUBCOMMANDS {
        let arguments = subcommand.replace("MASTER", &open.address);
        let error = dir.run(&format!("{arguments} --credential credential")).failure();
        let end = ": 401 Unauthorized: no: a standby that requires no credential has named it, so \
                   it does not get the credential: if it is the right master, give its address as \
                   --master\n";
        assert!(error.ends_with(end), "{error}");
    }
}

#[test]
fn redirect_is_not_followed() {
    let dir = directory();
    let other = FakeMaster::start(authenticating());
    let location = format!("302 Found\r\nLocation: http://{}/overlay-master/state", other.address);
    let master = FakeMaster::with_state(http_response(&location, ""));
    let command = format!("state --master {} --credential credential", master.address);
    let error = dir.run(&command).failure();
    assert!(error.contains("/overlay-master/state: 302 Found: see its log"), "{error}");
}

#[test]
fn unusable_credential_is_refused_without_its_content() {
    let dir = directory();
    let failure = |content: &[u8]| {
        dir.write("credential", content);
        dir.run("state --master 127.0.0.1:1 --credential credential").failure()
    };
    let start = "mesos-overlay: --credential: read credential: ";
    for content in [
        format!(r#"{{"principal": "operator", "secret": {SECRET}}}"#),
        format!(r#"{{"credentials": [{{"principal": "operator", "secret": "{SECRET}"}}]}}"#),
        format!(r#"{{"principal": "{SECRET}"}}"#),
        format!(r#"["{SECRET}"]"#),
        format!("operator {SECRET} {SECRET}"),
        SECRET.to_owned(),
        String::new(),
    ] {
        let error = failure(content.as_bytes());
        assert!(error.starts_with(start) && !error.contains("s3cret"), "{content}: {error}");
    }
    assert_eq!(failure(b"\xff"), format!("{start}it is not UTF-8 text: save it as UTF-8\n"));
    assert_eq!(
        failure(&vec![b'x'; 1024 * 1024 + 1]),
        format!("{start}it has more than 1 MiB: is it the right file?\n")
    );
    assert_eq!(
        dir.run("state --master 127.0.0.1:1 --credential nowhere").failure(),
        "mesos-overlay: --credential: read nowhere: No such file or directory (os error 2): check \
         the path\n"
    );
}

#[test]
fn credential_that_others_can_read_is_warned_about() {
    let dir = directory();
    let master = FakeMaster::start(authenticating());
    let arguments = format!("state --master {} --credential credential", master.address);
    set_mode(&dir, 0o640);
    let outcome = dir.run(&arguments);
    assert_eq!(
        (outcome.code, outcome.stderr.as_str()),
        (
            Some(0),
            "mesos-overlay: warning: credential: the file holds secrets, and its mode 0640 is \
             wider than 0600: restrict it with 'chmod 600 credential'\n"
        )
    );
    set_mode(&dir, 0o400);
    dir.run(&arguments).success();
}

#[test]
fn standby_leads_every_subcommand_to_its_leader() {
    let dir = directory();
    let leader = FakeMaster::start(authenticating());
    let second = authenticating_standby(&leader.address);
    let first = authenticating_standby(&second.address);
    for subcommand in SUBCOMMANDS {
        let arguments = subcommand.replace("MASTER", &first.address);
        let outcome = dir.run(&format!("{arguments} --credential credential"));
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        let note = |from: &FakeMaster, to: &FakeMaster| {
            let (from, to) = (&from.address, &to.address);
            format!("mesos-overlay: master {from} is a standby: asking the leader {to}\n")
        };
        assert_eq!(outcome.stderr, note(&first, &second) + &note(&second, &leader));
    }
    let output = dir.run(&format!("state --master {} --credential credential", first.address));
    assert!(output.stdout.contains(&format!("\nmaster {}: ok: ", leader.address)), "{output:?}");
}

#[test]
fn standby_without_leader_is_reported() {
    let dir = directory();
    let failure = |standby: &FakeMaster| {
        let errors = SUBCOMMANDS
            .map(|subcommand| dir.run(&subcommand.replace("MASTER", &standby.address)).failure());
        assert!(errors.iter().all(|error| *error == errors[0]), "{errors:?}");
        errors[0].replace(&standby.address, "MASTER")
    };
    assert_eq!(
        failure(&standby(None)),
        "mesos-overlay: master MASTER: it is a standby and does not know the leading master: give \
         the address of the leader, or the zk:// address of the election, as --master\n"
    );
    assert_eq!(
        failure(&standby(Some("leader\u{1b}[0m"))),
        "mesos-overlay: master MASTER: it is a standby, and its leader 'leader\\u{1b}[0m' is no \
         IPv4 address with a port: give the address of the leader as --master\n"
    );
}

#[test]
fn standbys_that_name_each_other_are_reported() {
    let dir = directory();
    // The address is known only after the start, so the listener of a closed server is reused.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let first = standby(Some(&address));
    let health = serde_json::json!({
        "status": "standby", "problems": [], "epoch": 0, "version": 0,
        "leader": { "address": first.address }
    });
    let _second = FakeMaster::start_at(
        &address,
        vec![
            ("/overlay-master/health", http_response("200 OK", &health.to_string())),
            ("/overlay-master/state", http_response("503 Service Unavailable", "")),
        ],
    );
    let error = dir.run(&format!("state --master {}", first.address)).failure();
    let end = format!(
        "mesos-overlay: master {address}: it is a standby and names {} as the leader, which does \
         not lead either: the leadership is changing: try again\n",
        first.address
    );
    assert!(error.ends_with(&end), "{error}");
}

#[test]
fn unix_socket_is_an_address_of_a_master() {
    let dir = directory();
    let socket = dir.path("http.sock");
    let _master = FakeMaster::start_on_socket(&socket, responses("host: localhost"));
    let path = socket.display();
    for address in [format!("unix:{path}"), format!("unix://{path}"), "unix:http.sock".to_owned()] {
        for subcommand in SUBCOMMANDS {
            dir.run(&subcommand.replace("MASTER", &address)).success();
        }
    }
    let output = dir.run("state --master unix:http.sock").success();
    assert!(output.contains("\nmaster unix:http.sock: ok: "), "{output}");
    dir.write("address", "unix:http.sock\n");
    let file = format!("state --master file://{}", dir.path("address").display());
    assert_eq!(dir.run(&file).success(), output);
    assert_eq!(
        dir.run("state --master unix:nothing.sock").failure(),
        "mesos-overlay: master unix:nothing.sock: connect: No such file or directory (os error 2): \
         is the master running, with this path as its --http-socket?\n"
    );
    assert_eq!(
        dir.run("state --master unix:").usage_error(),
        "mesos-overlay: --master: unix: names no socket: append the path of --http-socket, as in \
         unix:/run/mesos-overlay/http.sock\n"
    );
    assert_eq!(
        dir.run("agent --cni-dir /cni --master unix:http.sock").failure(),
        "mesos-overlay: master: an agent registers over the network, not over a Unix socket: give \
         IP:PORT or an election\n"
    );
}

#[test]
fn unreachable_ensemble_fails_in_bounded_time() {
    let dir = directory();
    let address = format!("zk://operator:{SECRET}@127.0.0.1:9/overlay");
    dir.write("address", &address);
    let file = format!("file://{}", dir.path("address").display());
    for master in [&address, &file] {
        let start = now();
        let error = dir.run(&format!("state --master {master}")).failure();
        assert!(start.elapsed() < LOOKUP_MAX, "{:?}", start.elapsed());
        let start = "mesos-overlay: find the leading master at zk://…@127.0.0.1:9/overlay: no ";
        assert!(error.starts_with(start), "{error}");
        assert!(error.contains(": check that most of them run and are reachable"), "{error}");
        assert!(!error.contains(SECRET), "{error}");
    }
    let report = dir.run(&format!("doctor --agent 127.0.0.77:9 --master {address}"));
    let start = "find the leading master at zk://…@127.0.0.1:9/overlay: no ";
    assert!(report.stdout.contains(start), "{report:?}");
    assert!(!report.transcript().contains(SECRET), "{report:?}");
}

#[test]
fn malformed_address_of_master_hides_password() {
    let dir = directory();
    for address in [
        "zk://operator:s3cret-77@10.0.0.1:2181",
        "zk://s3cret-77@10.0.0.1/overlay",
        "ZK://operator:s3cret-77@10.0.0.1/overlay",
        "'zk://operator:s3cret-77@10.0.0.1/overlay'",
        "\u{feff}zk://operator:s3cret-77@10.0.0.1/overlay",
        "zk:/operator:s3cret-77@10.0.0.1/overlay",
        "operator:s3cret-77@10.0.0.1:5050",
    ] {
        for subcommand in SUBCOMMANDS {
            let error = dir.run(&subcommand.replace("MASTER", address)).usage_error();
            assert!(!error.contains(SECRET), "{error}");
            dir.write("address", address);
            let file = format!("file://{}", dir.path("address").display());
            let outcome = dir.run(&subcommand.replace("MASTER", &file));
            assert!(matches!(outcome.code, Some(1 | 2)), "{outcome:?}");
            assert!(!outcome.transcript().contains(SECRET), "{outcome:?}");
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the test measures a time limit")]
fn now() -> Instant {
    Instant::now()
}
