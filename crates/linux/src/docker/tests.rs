//! Tests of every branch with a fake `docker`: a shell script that replays recorded answers and
//! logs its calls. The answers of 20.10 and of the 28.2 client are recorded from real engines. The
//! answers of other versions are derived from documented differences.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use overlay_types::addr::{Mtu, OverlayName};
use overlay_types::container_network::DockerNetwork;

use super::{Difference, Docker, DockerError, DockerFailure, Outcome, Removal};

const SCRIPT: &str = r#"
dir=${0%/*}
n=$(($(cat "$dir/count") + 1))
echo "$n" > "$dir/count"
echo "$*" >> "$dir/calls"
. "$dir/$n"
"#;
const GOLDEN: &str = include_str!("../../../../tests/golden/docker-network-inspect.json");
const MISSING: Answer = Answer("echo '[]'; echo 'Error: No such network: vxlan-1' >&2; exit 1");

/// The shell commands that the script runs at one call.
#[derive(Debug, Clone, Copy)]
struct Answer<'a>(&'a str);

struct FakeDocker {
    directory: tempfile::TempDir,
}

impl FakeDocker {
    fn new(answers: &[Answer<'_>]) -> Self {
        let fake = Self { directory: tempfile::tempdir().unwrap() };
        fs::write(fake.path("docker"), SCRIPT).unwrap();
        fs::write(fake.path("count"), "0").unwrap();
        fs::write(fake.path("calls"), "").unwrap();
        for (index, answer) in answers.iter().enumerate() {
            fs::write(fake.path(&(index + 1).to_string()), answer.0).unwrap();
        }
        fake
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Returns a client that runs the script. The shell opens the script, because the kernel
    /// refuses to execute a file that a child of another thread still has open for writing.
    fn docker(&self, timeout: Duration) -> Docker {
        let mut docker = Docker::new("/bin/sh", timeout);
        docker.leading.push(self.path("docker").into());
        docker
    }

    async fn ensure(&self, network: &DockerNetwork) -> Result<Outcome, DockerError> {
        self.docker(Duration::from_secs(60)).ensure(network).await
    }

    async fn error(&self) -> String {
        self.ensure(&dual()).await.unwrap_err().to_string()
    }

    fn calls(&self) -> Vec<String> {
        fs::read_to_string(self.path("calls")).unwrap().lines().map(str::to_owned).collect()
    }
}

fn name() -> OverlayName {
    "vxlan-1".parse().unwrap()
}

fn v4() -> DockerNetwork {
    DockerNetwork {
        name: name(),
        bridge: name().docker_bridge(),
        subnet: Some("192.168.0.128/25".parse().unwrap()),
        subnet6: None,
        mtu: Mtu::OVERLAY_DEFAULT,
    }
}

fn dual() -> DockerNetwork {
    DockerNetwork { subnet6: Some("fd01:b::8000:0:0/81".parse().unwrap()), ..v4() }
}

fn v6() -> DockerNetwork {
    DockerNetwork { subnet: None, ..dual() }
}

fn engine(version: &str, api: &str) -> String {
    format!(r#"echo '{{"Version":"{version}","ApiVersion":"{api}","MinAPIVersion":"1.12"}}'"#)
}

const ENGINES: [(&str, &str); 5] = [
    ("17.06.2-ce", "1.30"),
    ("20.10.24+dfsg1", "1.41"),
    ("27.5.1", "1.47"),
    ("28.2.2", "1.50"),
    ("29.0.0", "1.52"),
];

/// The output of `docker network inspect` with `subnets`, more `options`, and `containers`.
fn inspected(subnets: &[&str], options: &str, containers: &str) -> String {
    let pools: Vec<String> =
        subnets.iter().map(|subnet| format!(r#"{{"Subnet":"{subnet}"}}"#)).collect();
    let has_v6 = subnets.iter().any(|subnet| subnet.contains(':'));
    format!(
        r#"cat <<'EOF'
[{{"Name":"vxlan-1","Id":"0ee1867e","Scope":"local","Driver":"bridge","EnableIPv4":true,
"EnableIPv6":{has_v6},"IPAM":{{"Driver":"default","Options":{{}},"Config":[{}]}},"Internal":false,
"Containers":{{{containers}}},"Labels":{{}},"Options":{{"com.docker.network.bridge.name":"d-vxlan-1",
"com.docker.network.bridge.enable_ip_masquerade":"false","com.docker.network.driver.mtu":"1420"{options}}}}}]
EOF"#,
        pools.join(",")
    )
}

const DUAL: [&str; 2] = ["192.168.0.128/25", "fd01:b::8000:0:0/81"];
const UNPROTECTED: &str = r#","com.docker.network.bridge.gateway_mode_ipv4":"nat-unprotected",
    "com.docker.network.bridge.gateway_mode_ipv6":"nat-unprotected""#;
const CREATE: &str = "network create --driver=bridge --label=org.apache.mesos.overlay=1 \
    --opt=com.docker.network.bridge.name=d-vxlan-1 \
    --opt=com.docker.network.bridge.enable_ip_masquerade=false \
    --opt=com.docker.network.driver.mtu=1420";

#[tokio::test]
async fn create_arguments_match_engine() {
    for (version, api) in ENGINES {
        let is_28 = version.starts_with("28") || version.starts_with("29");
        let mode = |family: &str| {
            let option = "--opt=com.docker.network.bridge.gateway_mode_ip";
            if is_28 { format!(" {option}{family}=nat-unprotected") } else { String::new() }
        };
        let own4 = " --subnet=192.168.0.128/25";
        let own6 = " --ipv6 --subnet=fd01:b::8000:0:0/81 vxlan-1";
        let no4 = if is_28 { " --ipv4=false" } else { "" };
        let cases = [
            (v4(), &DUAL[..1], format!("{CREATE}{}{own4} vxlan-1", mode("v4"))),
            (dual(), &DUAL[..], format!("{CREATE}{}{}{own4}{own6}", mode("v4"), mode("v6"))),
            (v6(), &DUAL[1..], format!("{CREATE}{}{no4}{own6}", mode("v6"))),
        ];
        for (network, subnets, create) in cases {
            let options = if is_28 { UNPROTECTED } else { "" };
            let fake = FakeDocker::new(&[
                Answer(&engine(version, api)),
                MISSING,
                Answer("echo 0ee1867e"),
                Answer(&inspected(subnets, options, "")),
            ]);
            assert_eq!(fake.ensure(&network).await, Ok(Outcome::Created));
            let inspect = "network inspect vxlan-1";
            let version = "version --format={{json .Server}}";
            assert_eq!(fake.calls(), [version, inspect, &create, inspect]);
        }
    }
}

#[tokio::test]
async fn cpp_network_is_right_up_to_docker_27() {
    for (version, api) in &ENGINES[..3] {
        let answers = [engine(version, api), format!("cat <<'EOF'\n{GOLDEN}\nEOF")];
        let fake = FakeDocker::new(&answers.each_ref().map(|answer| Answer(answer)));
        assert_eq!(fake.ensure(&v4()).await, Ok(Outcome::Unchanged));
        assert_eq!(fake.calls().len(), 2);
    }
}

#[tokio::test]
async fn empty_network_of_older_engine_is_replaced() {
    for (version, api) in &ENGINES[3..] {
        let fake = FakeDocker::new(&[
            Answer(&engine(version, api)),
            Answer(&inspected(&DUAL, "", "")),
            Answer("echo 0ee1867e"),
            Answer("echo 1ff"),
            Answer(&inspected(&DUAL, UNPROTECTED, "")),
        ]);
        assert_eq!(fake.ensure(&dual()).await, Ok(Outcome::Recreated));
        assert_eq!(fake.calls()[2], "network rm 0ee1867e");

        let containers: Vec<String> =
            (1..6).map(|n| format!(r#""{n}":{{"Name":"web-{n}","IPv4Address":""}}"#)).collect();
        let fake = FakeDocker::new(&[
            Answer(&engine(version, api)),
            Answer(&inspected(&DUAL, "", &containers.join(","))),
        ]);
        assert_eq!(
            fake.error().await,
            format!(
                "docker network vxlan-1: was made for an older engine: Docker {version} drops \
                 packets of other agents to its containers: stop them (web-1, web-2, web-3 and 2 \
                 more), then the agent creates it again"
            )
        );
        assert_eq!(fake.calls().len(), 2);
    }
}

#[tokio::test]
async fn network_without_bridge_is_replaced_unless_it_has_containers() {
    let version = engine("20.10.24+dfsg1", "1.41");
    let (exists, right) = (inspected(&DUAL, "", ""), "echo 0ee1867e");
    let fake = FakeDocker::new(&[
        Answer(&version),
        Answer(&exists),
        Answer(""),
        Answer(right),
        Answer(right),
        Answer(&exists),
    ]);
    let mut docker = fake.docker(Duration::from_secs(60));
    docker.has_device = Some(|name| name.as_str() != "d-vxlan-1");
    assert_eq!(docker.ensure(&dual()).await, Ok(Outcome::Recreated));
    assert_eq!(fake.calls()[3], "network rm 0ee1867e");

    let running = r#""1":{"Name":"web"}"#;
    for (containers, text) in [(running, " (web)"), ("", "")] {
        let exists = inspected(&DUAL, "", containers);
        let fake = FakeDocker::new(&[Answer(&version), Answer(&exists), Answer("echo web")]);
        let mut docker = fake.docker(Duration::from_secs(60));
        docker.has_device = Some(|_| false);
        assert_eq!(
            docker.ensure(&dual()).await.unwrap_err().to_string(),
            format!(
                "docker network vxlan-1: its bridge d-vxlan-1 was removed, and containers use the \
                 network{text}: run 'ip link add name d-vxlan-1 type bridge', and restart these \
                 containers, which have no connection until then: the agent configures the bridge"
            )
        );
        assert_eq!(fake.calls().len(), 3, "nothing is removed");
    }
}

#[tokio::test]
async fn network_with_new_container_is_kept() {
    let fake = FakeDocker::new(&[
        Answer(&engine("28.2.2", "1.50")),
        Answer(&inspected(&DUAL, "", "")),
        Answer(
            "echo 'Error response from daemon: error while removing network: network vxlan-1 id \
             0ee has active endpoints' >&2; exit 1",
        ),
    ]);
    assert_eq!(
        fake.error().await,
        "docker network vxlan-1: has containers and cannot be removed: stop them"
    );
}

#[tokio::test]
async fn every_difference_is_named() {
    let other = r#"cat <<'EOF'
[{"Name":"vxlan-1","Id":"1","Driver":"bridge","EnableIPv6":false,"Internal":true,"Options":{},
"IPAM":{"Config":[{"Subnet":"172.18.0.0/16","Gateway":"172.18.0.1"}]},"Containers":{}}]
EOF"#;
    let fake = FakeDocker::new(&[Answer(&engine("20.10.24", "1.41")), Answer(other)]);
    assert_eq!(
        fake.error().await,
        "docker network vxlan-1: exists, but bridge is one that Docker named instead of d-vxlan-1, \
         subnet is 172.18.0.0/16 instead of 192.168.0.128/25 and fd01:b::8000:0:0/81, mtu is 1500 \
         instead of 1420, masquerade is on instead of off, ipv6 is off instead of on, internal is \
         on instead of off: stop its containers and run 'docker network rm vxlan-1', then the \
         agent creates it again"
    );

    let overlay =
        r#"echo '[{"Name":"vxlan-1","Id":"1","Driver":"overlay","IPAM":{"Config":null}}]'"#;
    let fake = FakeDocker::new(&[Answer(&engine("20.10.24", "1.41")), Answer(overlay)]);
    let DockerFailure::Differs { differences, .. } = fake.ensure(&v4()).await.unwrap_err().reason
    else {
        panic!("another kind of error");
    };
    let driver = Difference {
        property: "driver",
        found: "overlay".to_owned(),
        desired: "bridge".to_owned(),
    };
    assert_eq!(differences[0], driver);
    assert_eq!(differences[2].to_string(), "subnet is none instead of 192.168.0.128/25");
}

#[tokio::test]
async fn network_with_smaller_mtu_is_kept_and_larger_one_is_refused() {
    let with_mtu = |mtu| DockerNetwork { mtu: Mtu::new(mtu).unwrap(), ..dual() };
    for (desired, expected) in
        [(1420, Some(Outcome::Unchanged)), (8920, Some(Outcome::SmallerMtu(1420))), (1320, None)]
    {
        let fake = FakeDocker::new(&[
            Answer(&engine("28.2.2", "1.50")),
            Answer(&inspected(&DUAL, UNPROTECTED, "")),
        ]);
        let result = fake.ensure(&with_mtu(desired)).await;
        assert_eq!(result.as_ref().ok(), expected.as_ref());
        if let Err(error) = result {
            assert_eq!(
                error.to_string(),
                "docker network vxlan-1: exists, but mtu is 1420 instead of 1320: stop its \
                 containers and run 'docker network rm vxlan-1', then the agent creates it again"
            );
        }
        assert_eq!(fake.calls().len(), 2, "the network is only inspected");
    }
}

#[tokio::test]
async fn subnets_compare_by_value_and_extra_ipv4_is_ignored() {
    let found = inspected(&["fd01:000b:0::8000:0:0/81", "172.19.0.0/16"], "", "");
    let fake = FakeDocker::new(&[Answer(&engine("20.10.24", "1.41")), Answer(&found)]);
    assert_eq!(fake.ensure(&v6()).await, Ok(Outcome::Unchanged));
    // An extra IPv6 subnet is an error.
    let found = inspected(&DUAL, "", "");
    let fake = FakeDocker::new(&[Answer(&engine("20.10.24", "1.41")), Answer(&found)]);
    assert!(matches!(fake.ensure(&v4()).await.unwrap_err().reason, DockerFailure::Differs { .. }));
}

#[tokio::test]
async fn id_prefix_is_not_accepted_as_name() {
    let wrong = inspected(&DUAL, "", "").replace("\"vxlan-1\"", "\"other\"");
    let ambiguous = "echo '[]'; echo 'Error response from daemon: 3 matches found based on ID \
                     prefix: network vxlan-1 is ambiguous' >&2; exit 1";
    for answer in [&wrong, ambiguous] {
        let fake = FakeDocker::new(&[
            Answer(&engine("20.10.24", "1.41")),
            Answer(answer),
            Answer("echo 1"),
            Answer(&inspected(&DUAL, "", "")),
        ]);
        assert_eq!(fake.ensure(&dual()).await, Ok(Outcome::Created));
    }
    let twice = "echo '[]'; echo 'Error response from daemon: 2 matches found based on name: \
                 network vxlan-1 is ambiguous' >&2; exit 1";
    let fake = FakeDocker::new(&[Answer(&engine("20.10.24", "1.41")), Answer(twice)]);
    assert_eq!(
        fake.error().await,
        "docker network vxlan-1: several networks have this name: find their IDs with 'docker \
         network inspect $(docker network ls -q)', and remove all of them by ID"
    );
}

#[tokio::test]
async fn concurrently_created_network_is_compared() {
    let exists =
        "echo 'Error response from daemon: network with name vxlan-1 already exists' >&2; exit 1";
    for (found, is_equal) in
        [(inspected(&DUAL, "", ""), true), (inspected(&DUAL[..1], "", ""), false)]
    {
        let fake = FakeDocker::new(&[
            Answer(&engine("20.10.24", "1.41")),
            MISSING,
            Answer(exists),
            Answer(&found),
        ]);
        let result = fake.ensure(&dual()).await;
        assert_eq!(result == Ok(Outcome::Unchanged), is_equal, "{result:?}");
    }
    let fake =
        FakeDocker::new(&[Answer(&engine("20.10.24", "1.41")), MISSING, Answer("echo 1"), MISSING]);
    assert_eq!(
        fake.error().await,
        "docker network vxlan-1: was created and is gone again: find the program that removes \
         Docker networks on this agent"
    );
}

#[tokio::test]
async fn overlapping_network_is_named() {
    let overlaps = [
        "Error response from daemon: Pool overlaps with other one on this address space",
        "Error response from daemon: invalid pool request: Pool overlaps with other one on this \
         address space",
    ];
    let others = r#"cat <<'EOF'
[{"Name":"host","Id":"1","Driver":"host","IPAM":{"Config":[]}},
{"Name":"NAME","Id":"2","Driver":"bridge","IPAM":{"Config":[{"Subnet":"192.168.0.0/24"}]}}]
EOF
exit 1"#;
    for text in overlaps {
        let refusal = format!("echo '{text}' >&2; exit 1");
        let error = async |list: &str, others: &str| {
            let fake = FakeDocker::new(&[
                Answer(&engine("20.10.24", "1.41")),
                MISSING,
                Answer(&refusal),
                Answer(list),
                Answer(others),
            ]);
            let error = fake.error().await;
            (error, fake.calls())
        };
        let own =
            "docker network vxlan-1: subnet 192.168.0.128/25 or fd01:b::8000:0:0/81 overlaps ";
        let (text, calls) = error("echo 1; echo 2", &others.replace("NAME", "lab")).await;
        assert_eq!(
            text,
            format!(
                "{own}192.168.0.0/24 of the Docker network lab: give the overlay another \
                 subnet, or remove that network if nothing uses it"
            )
        );
        assert_eq!(calls[3..], ["network ls --no-trunc --quiet", "network inspect 1 2"]);
        let (text, _) = error("echo 1; echo 2", &others.replace("NAME", "bridge")).await;
        assert_eq!(
            text,
            format!(
                "{own}192.168.0.0/24 of Docker's default network: set another 'bip' in Docker's \
                 daemon.json, or give the overlay another subnet"
            )
        );
        let (text, _) = error("exit 1", "exit 1").await;
        assert_eq!(
            text,
            format!(
                "{own}another Docker network: find it with 'docker network inspect $(docker network \
                 ls -q)', and give one of the two another subnet"
            )
        );
    }
}

#[tokio::test]
async fn owner_of_bridge_is_named() {
    let id = "af3df61e55c1904c3297d4831a70aa5e39800e9bd6a84577a05321e594cfdd89";
    let refusal = format!(
        "echo 'Error response from daemon: cannot create network 2b79 (d-vxlan-1): conflicts with \
         network {id} (d-vxlan-1): networks have same bridge name' >&2; exit 1"
    );
    let owner = inspected(&DUAL, "", "").replace("\"vxlan-1\"", "\"lab\"");
    for (answer, shown) in [(owner.as_str(), "lab"), ("exit 1", id)] {
        let fake = FakeDocker::new(&[
            Answer(&engine("20.10.24", "1.41")),
            MISSING,
            Answer(&refusal),
            Answer(answer),
        ]);
        assert_eq!(
            fake.error().await,
            format!(
                "docker network vxlan-1: bridge d-vxlan-1 belongs to the Docker network {shown}: \
                 rename the overlay, or remove that network if nothing uses it"
            )
        );
        assert_eq!(fake.calls()[3], format!("network inspect {id}"));
    }
}

#[tokio::test]
async fn missing_daemon_or_permission_has_own_error() {
    let cases = [
        (
            "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker \
             daemon running?",
            "docker network vxlan-1: the Docker daemon is not running: Cannot connect to the \
             Docker daemon at unix:///var/run/docker.sock: start it, or set \
             network_config.docker_bridge to false in the agent_config",
        ),
        (
            "failed to connect to the docker API at unix:///run/docker.sock; check if the path is \
             correct and if the daemon is running: dial unix /run/docker.sock: connect: no such \
             file or directory",
            "docker network vxlan-1: the Docker daemon is not running: failed to connect to the \
             docker API at unix:///run/docker.sock; check if the path is correct and if the daemon \
             is running: dial unix /run/docker.sock: connect: no such file or directory: start it, \
             or set network_config.docker_bridge to false in the agent_config",
        ),
        (
            "WARNING: Error loading config file: open /var/empty/.docker/config.json: permission denied\n\
             permission denied while trying to connect to the Docker daemon socket at \
             unix:///x.sock: Get \"http://%2Fx.sock/v1.24/networks/a\": dial unix /x.sock: \
             connect: permission denied",
            "docker network vxlan-1: no permission to talk to the Docker daemon: permission denied \
             while trying to connect to the Docker daemon socket at unix:///x.sock: Get \
             \"http://%2Fx.sock/v1.24/networks/a\": dial unix /x.sock: connect: permission denied: \
             run the agent as root or in the group of the daemon's socket",
        ),
    ];
    for (message, expected) in cases {
        let answer = format!("cat >&2 <<'EOF'\n{message}\nEOF\necho null\nexit 1");
        assert_eq!(FakeDocker::new(&[Answer(&answer)]).error().await, expected);
    }
}

#[tokio::test]
async fn docker_message_is_shown_on_one_line() {
    let long = format!("echo 'Error response from daemon: {}' >&2; exit 1", "x".repeat(301));
    let cases = [
        (
            "printf '\\nError response from daemon: \\033[31mbad\\tthing\\nmore\\n' >&2; exit 1",
            r"\u{1b}[31mbad\tthing".to_owned(),
        ),
        (
            "printf 'WARNING: none\\n' >&2; exit 3",
            "the program wrote no error and ended with exit status: 3".into(),
        ),
        ("kill -9 $$", "the program wrote no error and ended with signal: 9 (SIGKILL)".into()),
        (
            "printf 'unknown flag: --ipv4\\nSee docker network create --help.\\n' >&2; exit 125",
            "unknown flag: --ipv4".into(),
        ),
        (&long, format!("{}… (cut)", "x".repeat(293))),
    ];
    for (answer, message) in cases {
        let fake = FakeDocker::new(&[Answer(&engine("20.10", "1.41")), MISSING, Answer(answer)]);
        assert_eq!(
            fake.error().await,
            format!("docker network vxlan-1: 'docker network create' failed: {message}")
        );
    }
}

#[tokio::test]
async fn unparsable_answer_has_own_error() {
    let cases = [
        ("echo null", "it contains no engine"),
        ("echo '{\"Version\":\"x\",\"ApiVersion\":\"new\"}'", "API version \"new\""),
        ("echo", "EOF while parsing a value at line 2 column 0"),
    ];
    for (answer, reason) in cases {
        assert_eq!(
            FakeDocker::new(&[Answer(answer)]).error().await,
            format!(
                "docker network vxlan-1: 'docker version' gave an answer that cannot be parsed: \
                 {reason}: run it by hand"
            )
        );
    }
}

#[tokio::test]
async fn missing_or_broken_program_has_own_error() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("docker");
    fs::write(&file, "").unwrap();
    let error = async |program: PathBuf| {
        let error = Docker::new(program, Duration::from_secs(60)).ensure(&v4()).await.unwrap_err();
        error.to_string().replace(directory.path().to_str().unwrap(), "")
    };
    assert_eq!(
        error(directory.path().join("none")).await,
        "docker network vxlan-1: program '/none' not found: install Docker on this agent, or set \
         network_config.docker_bridge to false in its agent_config"
    );
    assert_eq!(
        error(file.clone()).await,
        "docker network vxlan-1: start '/docker': Permission denied (os error 13)"
    );
}

#[tokio::test]
async fn hanging_program_is_killed_with_children() {
    // The grandchild holds our pipes open, like a helper of docker.
    let hang = r#"sleep 1000 & echo $! > "$dir/grandchild"; wait"#;
    let fake = FakeDocker::new(&[Answer(hang)]);
    let begin = tokio::time::Instant::now();
    let error = fake.docker(Duration::from_millis(2500)).ensure(&v4()).await.unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(30));
    assert_eq!(
        error.to_string(),
        "docker network vxlan-1: docker did not answer within 2s 500ms, 'docker version' was \
         killed: look into the Docker daemon's log, restart it if it hangs"
    );
    assert_ended(&fake).await;
}

#[tokio::test]
async fn dropped_call_leaves_no_process() {
    let hang = r#"sleep 1000 & echo $! > "$dir/grandchild"; wait"#;
    let fake = FakeDocker::new(&[Answer(hang)]);
    let docker = fake.docker(Duration::from_secs(1000));
    let call = tokio::spawn(async move { docker.ensure(&v4()).await });
    while !fake.path("grandchild").exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    assert_ended(&fake).await;
}

/// Asserts that the grandchild has ended. It may be a zombie that process 1 has not reaped yet.
async fn assert_ended(fake: &FakeDocker) {
    for _ in 0..1000 {
        let pid = fs::read_to_string(fake.path("grandchild")).unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        if !pid.is_empty() && (stat.is_empty() || stat.contains(") Z ")) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the grandchild still runs");
}

#[tokio::test]
async fn program_with_endless_output_is_killed() {
    for answer in ["yes", "yes >&2"] {
        let fake = FakeDocker::new(&[Answer(answer)]);
        assert_eq!(
            fake.error().await,
            "docker network vxlan-1: 'docker version' wrote too much output and was killed: run it \
             by hand"
        );
    }
}

#[tokio::test]
async fn remove_refuses_foreign_network() {
    let remove = async |answers: &[Answer<'_>]| {
        let fake = FakeDocker::new(answers);
        let result = fake.docker(Duration::from_secs(60)).remove(&name()).await;
        (result.map_err(|error| error.to_string()), fake.calls())
    };
    let found = inspected(&DUAL, "", "");
    let (result, calls) = remove(&[Answer(&found), Answer("echo 0ee1867e")]).await;
    assert_eq!((result, calls[1].as_str()), (Ok(true), "network rm 0ee1867e"));
    assert_eq!(remove(&[MISSING]).await.0, Ok(false));
    let gone = "printf 'Error: No such network: 0ee1867e\nexit status 1\n' >&2; exit 1";
    assert_eq!(remove(&[Answer(&found), Answer(gone)]).await.0, Ok(true));

    let foreign = found.replace("d-vxlan-1", "br0");
    let (result, calls) = remove(&[Answer(&foreign)]).await;
    assert_eq!(
        result,
        Err("docker network vxlan-1: is not managed by the agent, so it is left alone".to_owned())
    );
    assert_eq!(calls.len(), 1);
    let busy = inspected(&DUAL, "", r#""1":{"Name":"web"}"#);
    let refusal = "echo 'Error response from daemon: error while removing network: network vxlan-1 \
                   id 0 has active endpoints' >&2; exit 1";
    assert_eq!(
        remove(&[Answer(&busy), Answer(refusal)]).await.0,
        Err("docker network vxlan-1: has containers and cannot be removed: stop them (web)"
            .to_owned())
    );
}

/// A network of the overlay `name`, as `docker network inspect` prints it.
fn listed(name: &str, options: &str) -> String {
    format!(
        r#"{{"Name":"{name}","Id":"id-{name}","Driver":"bridge","IPAM":{{"Config":[]}},"Containers":{{}},
"Options":{{"com.docker.network.bridge.name":"d-{name}"{options}}}}}"#
    )
}

#[tokio::test]
async fn remove_stale_keeps_foreign_and_used_networks() {
    let managed_options = r#","com.docker.network.bridge.enable_ip_masquerade":"false",
        "com.docker.network.driver.mtu":"1420""#;
    let networks = [
        listed("assigned", managed_options),
        listed("unused", managed_options),
        listed("stopped", managed_options),
        listed("by-hand", ""),
        listed("foreign", managed_options).replace("d-foreign", "br0"),
        listed("odd", managed_options).replace("\"odd\"", "\"no overlay\""),
    ];
    let inspected = format!(
        "cat <<'EOF'\n[{}]\nEOF\necho 'Error: No such network: 2' >&2; exit 1",
        networks.join(",")
    );
    let fake = FakeDocker::new(&[
        Answer("echo id-unused; echo 2"),
        Answer(&inspected),
        Answer("true"),
        Answer("echo id-unused"),
        Answer("echo web; echo db"),
    ]);
    let assigned = BTreeSet::from(["assigned".parse().unwrap()]);
    let removal = fake.docker(Duration::from_secs(60)).remove_stale(&assigned).await.unwrap();
    assert_eq!(removal.removed, ["unused".parse().unwrap()]);
    let kept: Vec<String> = removal.kept.iter().map(ToString::to_string).collect();
    assert_eq!(
        kept,
        ["docker network stopped: is no longer assigned and has containers: remove them (web, \
          db), then the agent removes it"]
    );
    let ps = "ps --all --no-trunc --format={{.Names}} --filter=network=id-";
    assert_eq!(
        fake.calls(),
        [
            "network ls --no-trunc --quiet --filter=driver=bridge",
            "network inspect id-unused 2",
            &format!("{ps}unused --filter=network=unused"),
            "network rm id-unused",
            &format!("{ps}stopped --filter=network=stopped"),
        ]
    );
}

#[tokio::test]
async fn remove_stale_without_docker_removes_nothing() {
    let assigned = BTreeSet::new();
    let none = Docker::new("/nowhere/docker", Duration::from_secs(60));
    assert_eq!(none.remove_stale(&assigned).await, Ok(Removal::default()));
    let fake = FakeDocker::new(&[Answer("true")]);
    let docker = fake.docker(Duration::from_secs(60));
    assert_eq!(docker.remove_stale(&assigned).await, Ok(Removal::default()));
    let down = "echo 'Cannot connect to the Docker daemon at unix:///x. Is the docker daemon \
                running?' >&2; exit 1";
    let fake = FakeDocker::new(&[Answer(down)]);
    let error = fake.docker(Duration::from_secs(60)).remove_stale(&assigned).await.unwrap_err();
    assert!(matches!(error, DockerFailure::NotRunning { .. }), "{error}");
}

#[tokio::test]
async fn failed_inspection_is_no_empty_list() {
    let failures = [
        (
            "echo '[]'; echo 'Error response from daemon: context deadline exceeded' >&2; exit 1",
            "'docker network inspect' failed: context deadline exceeded",
        ),
        (
            "echo '[]'; echo 'Cannot connect to the Docker daemon. Is the docker daemon running?' \
             >&2; exit 1",
            "the Docker daemon is not running",
        ),
        (
            "echo '[]'; echo 'Error response from daemon: plugin of network x: driver not found' \
             >&2; exit 1",
            "'docker network inspect' failed: plugin of network x: driver not found",
        ),
        (
            "echo '[]'",
            "'docker network inspect' gave an answer that cannot be parsed: it does not mention the \
             network id-a",
        ),
        ("echo '[]'; exit 1", "'docker network inspect' failed: the program wrote no error"),
    ];
    for (answer, reason) in failures {
        let answers = [Answer("echo id-a; echo id-b"), Answer(answer)];
        let fake = FakeDocker::new(&answers);
        let docker = fake.docker(Duration::from_secs(60));
        let error = docker.remove_stale(&BTreeSet::new()).await.unwrap_err().to_string();
        assert!(error.starts_with(reason), "{error}");
        let fake = FakeDocker::new(&answers);
        let error = fake.docker(Duration::from_secs(60)).ours().await.unwrap_err().to_string();
        assert!(error.starts_with(reason), "{error}");
    }
    // Both networks were removed meanwhile.
    let gone = "echo '[]'; echo 'Error response from daemon: network id-a not found' >&2; echo \
                'Error: No such network: id-b' >&2; exit 1";
    let fake = FakeDocker::new(&[Answer("echo id-a; echo id-b"), Answer(gone)]);
    let docker = fake.docker(Duration::from_secs(60));
    assert_eq!(docker.remove_stale(&BTreeSet::new()).await, Ok(Removal::default()));
}

#[tokio::test]
async fn networks_of_named_overlays_are_removed_alone() {
    let options = r#","com.docker.network.bridge.enable_ip_masquerade":"false",
        "com.docker.network.driver.mtu":"1420""#;
    let subnet = r#""Config":[{"Subnet":"192.168.3.128/25"}]"#;
    let networks = [listed("a", options), listed("b", options)];
    let networks = networks.map(|network| network.replace(r#""Config":[]"#, subnet));
    let inspected = format!("cat <<'EOF'\n[{}]\nEOF\n", networks.join(","));
    let list = [Answer("echo id-a; echo id-b"), Answer(&inspected)];
    let [listed, inspected] = list;
    let fake = FakeDocker::new(&[listed, inspected, Answer("true"), Answer("echo id-a")]);
    let overlays = BTreeSet::from(["a".parse().unwrap()]);
    let docker = fake.docker(Duration::from_secs(60));
    let removal = docker.remove_overlays(&overlays).await.unwrap();
    assert_eq!((removal.removed, removal.kept), (vec!["a".parse().unwrap()], Vec::new()));
    let fake = FakeDocker::new(&list);
    let found = fake.docker(Duration::from_secs(60)).subnets().await.unwrap();
    let subnet = vec!["192.168.3.128/25".parse().unwrap()];
    assert_eq!(found[&"b".parse::<OverlayName>().unwrap()], subnet);
}
