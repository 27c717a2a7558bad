//! What a guest leaves alone: signals, environment, directory, mask, and the threads and the
//! descriptors of others.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::thread;

use super::agent::load_agent_of_own_master;
use super::host::{Build, Host};
use super::master::{NETWORK, agent, register_as_recorded};
use super::peer::{connect, encode, post, wait_for};

/// Bits of a mask of `/proc` that stand for signals that are to be blocked: not KILL, not STOP, not
/// the two that glibc keeps for itself, and not the faults of a thread, which Mesos explains.
const BLOCKABLE: u64 = !(1 << 8 | 1 << 18 | 1 << 31 | 1 << 32) & !FAULTS;
/// SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV.
const FAULTS: u64 = 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 10;
/// O_CLOEXEC, as fdinfo shows it.
const CLOSE_ON_EXEC: u32 = 0o2_000_000;

/// Lines of a `status` file, by name.
fn status(path: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

/// What must stay as it is.
#[derive(Debug, PartialEq, Eq)]
struct Surroundings {
    signals: Vec<String>,
    environment: Vec<String>,
    status: BTreeMap<String, String>,
    directory: PathBuf,
}

fn surroundings(host: &mut Host) -> Surroundings {
    let mut status = status(&host.proc("status"));
    status.retain(|name, _| matches!(name.as_str(), "SigBlk" | "SigIgn" | "SigCgt" | "Umask"));
    assert_eq!(status.len(), 4, "{status:?}");
    Surroundings {
        signals: host.tell(&["signals"]),
        environment: host.tell(&["environment"]),
        status,
        directory: fs::read_link(host.proc("cwd")).expect("it runs"),
    }
}

/// The descriptors, with where they lead.
fn descriptors(host: &Host) -> BTreeMap<u32, PathBuf> {
    let entries = fs::read_dir(host.proc("fd")).expect("it runs");
    let entry = |entry: fs::DirEntry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        Some((number, fs::read_link(entry.path()).ok()?))
    };
    entries.flatten().filter_map(entry).collect()
}

/// Descriptors that a task of Mesos would inherit.
fn inherited(host: &Host) -> BTreeMap<u32, PathBuf> {
    let mut found = descriptors(host);
    found.retain(|number, _| {
        let path = host.proc(&format!("fdinfo/{number}"));
        let flags = fs::read_to_string(path).unwrap_or_default();
        let flags = flags.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
        // One that is closed by now is not inherited.
        flags.is_some_and(|flags| flags & CLOSE_ON_EXEC == 0)
    });
    found
}

fn assert_own_threads_take_no_signals(host: &Host) {
    let own = host.threads().into_iter().filter(|(name, _)| name.starts_with("overlay-"));
    for (name, number) in own {
        let status = status(&host.proc(&format!("task/{number}/status")));
        // It may have ended.
        let Some(mask) = status.get("SigBlk") else { continue };
        let mask = u64::from_str_radix(mask, 16).expect("a mask");
        assert_eq!(mask & BLOCKABLE, BLOCKABLE, "{name}: {mask:x}");
    }
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn what_belongs_to_mesos_stays_as_it_is() {
    let mut host = Host::start(Build::release());
    host.tell(&["spawn", "probe"]);
    // What Mesos opens at its first request is not ours.
    host.metrics();
    let before = surroundings(&mut host);
    let (descriptors_before, inherited_before) = (descriptors(&host), inherited(&host));
    let threads_before = host.threads();

    host.load_master(NETWORK);
    load_agent_of_own_master(&mut host);
    register_as_recorded(&host, &agent());
    wait_for("a healthy agent", || (host.get("/overlay-agent/health").status == 200).then_some(()));
    post(host.address, "/overlay-master/agents/delete", br#"{"agents":["127.0.0.9"]}"#);
    host.metrics();

    assert_eq!(surroundings(&mut host), before);
    assert!(host.own_threads() >= 4, "{:?}", host.threads());
    assert_own_threads_take_no_signals(&host);
    let strange: Vec<_> = host
        .threads()
        .into_iter()
        .filter(|thread| !threads_before.contains(thread) && !thread.0.starts_with("overlay-"))
        .collect();
    assert!(strange.is_empty(), "threads without our name: {strange:?}");
    for (number, place) in inherited(&host) {
        assert!(
            inherited_before.contains_key(&number),
            "a task of Mesos would inherit {number}, {}",
            place.display()
        );
    }
    let new =
        descriptors(&host).into_iter().filter(|entry| !descriptors_before.contains_key(&entry.0));
    assert!(new.count() > 0, "it was looked at");
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn nobody_of_libprocess_waits_for_us() {
    let mut host = Host::start(Build::release());
    host.load_master(NETWORK);
    host.tell(&["spawn", "probe"]);
    let address = host.address;
    let flood = move || {
        let name = "mesos.modules.overlay.internal.RegisterAgentMessage";
        let garbage = [0xffu8; 64];
        let message = encode("overlay-master", name, "overlay-agent@127.0.0.4:1", &garbage);
        let request = b"GET /overlay-master/state HTTP/1.1\r\nHost: host\r\n\r\n";
        let mut stream = connect(address);
        let mut drain = stream.try_clone().expect("a descriptor");
        let read = move || std::io::copy(&mut drain, &mut std::io::sink());
        let reader = thread::Builder::new().spawn(read).expect("a thread");
        for _ in 0..250 {
            let burst = [message.repeat(100).as_slice(), request].concat();
            stream.write_all(&burst).expect("it is sent");
        }
        stream.shutdown(std::net::Shutdown::Write).expect("it is open");
        let answered = reader.join().expect("it does not fail");
        answered.expect("all is answered")
    };
    let floods: Vec<_> =
        (0..4).map(|_| thread::Builder::new().spawn(flood).expect("a thread")).collect();
    let mut waits: Vec<u64> = Vec::new();
    while floods.iter().any(|flood| !flood.is_finished()) {
        waits.push(host.tell(&["ping", "probe"])[0].parse().expect("microseconds"));
        super::peer::pause();
    }
    for flood in floods {
        assert!(flood.join().expect("it does not fail") > 0);
    }
    waits.sort_unstable();
    // On a busy machine one may be late; if threads of libprocess waited, half of them would be.
    let median = waits[waits.len() / 2];
    assert!(median < 100_000, "{median} of {waits:?}");
    host.wait_for_state();
}
