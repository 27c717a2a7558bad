//! `bundle`: what it collects, and that no secret is in it.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use flate2::read::GzDecoder;
use serde_json::json;

use crate::support::{FakeMaster, TestDir, http_response};

/// A secret that no other text contains by chance.
const SECRET: &str = "s3cr3tW0rds3cr3tW0rd";

/// An address without an agent.
const NO_AGENT: &str = "127.0.0.1:1";

/// Returns the texts of an archive, by their paths without the directory.
fn read_archive(path: &Path) -> Vec<(String, String)> {
    let mut archive = tar::Archive::new(GzDecoder::new(fs::File::open(path).unwrap()));
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let (directory, name) = path.split_once('/').unwrap();
        assert!(directory.starts_with("mesos-overlay-bundle-"), "{path}");
        let name = name.to_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (name, text)
    });
    entries.collect()
}

fn text<'a>(texts: &'a [(String, String)], name: &str) -> &'a str {
    let found = texts.iter().find(|(path, _)| path == name);
    found.map(|(_, text)| text.as_str()).unwrap_or_else(|| panic!("no {name} in {texts:?}"))
}

/// A master whose answers contain a secret.
fn master() -> FakeMaster {
    let state = json!({ "agents": [], "note": SECRET });
    let health = json!({ "status": "ok", "problems": [format!("zk://u:{SECRET}@10.0.0.1/a: x")] });
    FakeMaster::start(vec![
        ("/overlay-master/state", http_response("200 OK", &state.to_string())),
        ("/overlay-master/health", http_response("503 Service Unavailable", &health.to_string())),
        ("/overlay-master/metrics", http_response("200 OK", "metric 1\n")),
    ])
}

#[test]
fn bundle_has_master_host_and_files_without_secrets() {
    let dir = TestDir::new();
    let master = master();
    dir.write("credential", format!("agents {SECRET}"));
    dir.write("credentials", "others Word0fAn0ther\n");
    let (cni, credential) = (dir.path("cni"), dir.path("credential"));
    dir.write("agent.json", json!({ "cni_dir": cni, "credential": credential }).to_string());
    dir.write("own.log", format!("first\nMESOS_SECRET={SECRET}x\nlast {SECRET}\n"));
    let address = &master.address;
    let arguments = format!(
        "bundle --config agent.json --agent {NO_AGENT} --master {address} --file own.log,missing,credentials \
         --output bundle.tar.gz"
    );
    let stdout = dir.run(&arguments).success();
    assert!(stdout.starts_with("bundle.tar.gz: "), "{stdout}");
    for missing in [
        "not collected: agent 127.0.0.1:1/overlay-agent/health: Connection refused (os error 111)\n",
        "not collected: missing: No such file or directory (os error 2)\n",
        "/overlay-master/history: ",
    ] {
        assert!(stdout.contains(missing), "{missing}: {stdout}");
    }
    let path = dir.path("bundle.tar.gz");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let texts = read_archive(&path);
    for (name, text) in &texts {
        assert!(!text.contains(SECRET), "{name}: {text}");
    }
    assert_eq!(text(&texts, "master/state.json"), r#"{"agents":[],"note":"…"}"#);
    assert_eq!(text(&texts, "master/metrics.txt"), "metric 1\n");
    assert_eq!(text(&texts, "files/3-credentials"), "others …\n");
    assert_eq!(text(&texts, "files/1-own.log"), "first\nMESOS_SECRET=…\nlast …\n");
    let config = text(&texts, "agent/agent.json");
    assert!(config.contains(&credential.display().to_string()), "{config}");
    let doctor = text(&texts, "doctor.txt");
    assert!(doctor.starts_with("$ ") && doctor.contains(" ok, "), "{doctor}");
    let contents = text(&texts, "contents.txt");
    for line in [
        "files/1-own.log: own.log (",
        "files/2-missing: missing: not collected: No such file or directory (os error 2)\n",
        "host/kernel.txt: /proc/version (",
    ] {
        assert!(contents.contains(line), "{line}: {contents}");
    }
}

#[test]
fn wrong_configuration_or_master_is_no_failure() {
    let dir = TestDir::new();
    dir.write("agent.json", format!("{{ \"secret\": \"{SECRET}\", "));
    let arguments =
        format!("bundle --config agent.json --agent {NO_AGENT} --master {SECRET}://x@y --units x");
    let outcome = dir.run(&arguments);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.stderr.starts_with("agent.json:1:36: bad JSON: "), "{outcome:?}");
    let stdout = outcome.stdout;
    let name = stdout.split_once(':').unwrap().0;
    let name_parts = name.strip_prefix("mesos-overlay-bundle-").unwrap();
    assert!(name_parts.ends_with("Z.tar.gz"), "{name}");
    assert!(stdout.contains("not collected: the files of the agent: agent.json: "), "{stdout}");
    assert!(stdout.contains("not collected: the master: --master: "), "{stdout}");
    assert!(!stdout.contains(SECRET), "{stdout}");
    let texts = read_archive(&dir.path(name));
    assert_eq!(text(&texts, "agent/agent.json"), "{ \"secret\": \"…\", ");
    assert!(text(&texts, "doctor.txt").contains("mesos-overlay: agent.json: "), "{texts:?}");
    assert!(text(&texts, "contents.txt").contains("--unit=x"), "{texts:?}");
    assert!(texts.iter().all(|(_, text)| !text.contains(SECRET)), "{texts:?}");
}

#[test]
fn unwritable_output_is_named() {
    let dir = TestDir::new();
    let stderr = dir.run(&format!("bundle --agent {NO_AGENT} --output none/a.tar.gz")).failure();
    assert!(stderr.contains("write none/a.tar.gz: "), "{stderr}");
}
