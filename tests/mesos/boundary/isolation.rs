//! The modules do not change the Mesos process: signals, environment, working directory, umask,
//! descriptors and threads.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::thread;

use super::agent::load_agent_with_embedded_master;
use super::host::{Build, Host};
use super::master::{NETWORK, listen_as_agent, register_recorded_agent};
use super::peer::{connect, encode, post, wait_for};

/// The signals that module threads must block, as a mask of `/proc`: all except KILL, STOP, the two
/// signals reserved by glibc, and the fault signals, for which Mesos prints a stack trace.
const BLOCKED_SIGNALS: u64 = !(1 << 8 | 1 << 18 | 1 << 31 | 1 << 32) & !FAULTS;
/// SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV.
const FAULTS: u64 = 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 10;
/// O_CLOEXEC in the flags of fdinfo.
const CLOSE_ON_EXEC: u32 = 0o2_000_000;

/// Returns the fields of a `status` file.
fn status(path: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

/// The properties of the process that must not change.
#[derive(Debug, PartialEq, Eq)]
struct ProcessProperties {
    signals: Vec<String>,
    environment: Vec<String>,
    status: BTreeMap<String, String>,
    directory: PathBuf,
}

fn process_properties(host: &mut Host) -> ProcessProperties {
    let mut status = status(&host.proc("status"));
    status.retain(|name, _| matches!(name.as_str(), "SigBlk" | "SigIgn" | "SigCgt" | "Umask"));
    assert_eq!(status.len(), 4, "{status:?}");
    ProcessProperties {
        signals: host.command(&["signals"]),
        environment: host.command(&["environment"]),
        status,
        directory: fs::read_link(host.proc("cwd")).expect("the host runs"),
    }
}

/// Returns the open descriptors and their targets.
fn descriptors(host: &Host) -> BTreeMap<u32, PathBuf> {
    let entries = fs::read_dir(host.proc("fd")).expect("the host runs");
    let entry = |entry: fs::DirEntry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        Some((number, fs::read_link(entry.path()).ok()?))
    };
    entries.flatten().filter_map(entry).collect()
}

/// Returns the descriptors that a task of Mesos would inherit.
fn inheritable_descriptors(host: &Host) -> BTreeMap<u32, PathBuf> {
    let mut found = descriptors(host);
    found.retain(|number, _| {
        let path = host.proc(&format!("fdinfo/{number}"));
        let flags = fs::read_to_string(path).unwrap_or_default();
        let flags = flags.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
        // A descriptor that was closed in the meantime is not inherited.
        flags.is_some_and(|flags| flags & CLOSE_ON_EXEC == 0)
    });
    found
}

fn assert_module_threads_block_signals(host: &Host) {
    let module_threads =
        host.threads().into_iter().filter(|(name, _)| name.starts_with("overlay-"));
    for (name, number) in module_threads {
        let status = status(&host.proc(&format!("task/{number}/status")));
        // The thread may have ended.
        let Some(mask) = status.get("SigBlk") else { continue };
        let mask = u64::from_str_radix(mask, 16).expect("a mask");
        assert_eq!(mask & BLOCKED_SIGNALS, BLOCKED_SIGNALS, "{name}: {mask:x}");
    }
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn modules_do_not_change_mesos_process() {
    let mut host = Host::start(Build::release());
    host.command(&["spawn", "probe"]);
    // Mesos opens descriptors at its first request, so send one before the first snapshot.
    host.metrics();
    let before = process_properties(&mut host);
    let (descriptors_before, inherited_before) =
        (descriptors(&host), inheritable_descriptors(&host));
    let threads_before = host.threads();

    host.load_master(NETWORK);
    load_agent_with_embedded_master(&mut host);
    register_recorded_agent(&host, &listen_as_agent());
    wait_for("agent health with the status ok", || {
        (host.get("/overlay-agent/health").status == 200).then_some(())
    });
    post(host.address, "/overlay-master/agents/delete", br#"{"agents":["127.0.0.9"]}"#);
    host.metrics();

    assert_eq!(process_properties(&mut host), before);
    assert!(host.module_thread_count() >= 4, "{:?}", host.threads());
    assert_module_threads_block_signals(&host);
    let unexpected: Vec<_> = host
        .threads()
        .into_iter()
        .filter(|thread| !threads_before.contains(thread) && !thread.0.starts_with("overlay-"))
        .collect();
    assert!(unexpected.is_empty(), "threads without the prefix overlay-: {unexpected:?}");
    for (number, target) in inheritable_descriptors(&host) {
        assert!(
            inherited_before.contains_key(&number),
            "a task of Mesos would inherit {number}, {}",
            target.display()
        );
    }
    let new =
        descriptors(&host).into_iter().filter(|entry| !descriptors_before.contains_key(&entry.0));
    assert!(new.count() > 0, "the modules opened no descriptor, so the check above is void");
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn modules_under_load_do_not_block_libprocess() {
    let mut host = Host::start(Build::release());
    host.load_master(NETWORK);
    host.command(&["spawn", "probe"]);
    let address = host.address;
    let flood = move || {
        let name = "mesos.modules.overlay.internal.RegisterAgentMessage";
        let garbage = [0xffu8; 64];
        let message = encode("overlay-master", name, "overlay-agent@127.0.0.4:1", &garbage);
        let request = b"GET /overlay-master/state HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let mut stream = connect(address);
        let mut drain = stream.try_clone().expect("a descriptor");
        let read = move || std::io::copy(&mut drain, &mut std::io::sink());
        let reader = thread::Builder::new().spawn(read).expect("a thread");
        for _ in 0..250 {
            let burst = [message.repeat(100).as_slice(), request].concat();
            stream.write_all(&burst).expect("data is sent");
        }
        stream.shutdown(std::net::Shutdown::Write).expect("the stream is open");
        let received = reader.join().expect("the thread does not panic");
        received.expect("all responses are received")
    };
    let floods: Vec<_> =
        (0..4).map(|_| thread::Builder::new().spawn(flood).expect("a thread")).collect();
    let mut latencies: Vec<u64> = Vec::new();
    while floods.iter().any(|flood| !flood.is_finished()) {
        latencies.push(host.command(&["ping", "probe"])[0].parse().expect("microseconds"));
        super::peer::sleep_briefly();
    }
    for flood in floods {
        assert!(flood.join().expect("the thread does not panic") > 0);
    }
    latencies.sort_unstable();
    // A busy machine may delay single pings. Blocked libprocess threads would delay most pings.
    let median = latencies[latencies.len() / 2];
    assert!(median < 100_000, "{median} of {latencies:?}");
    host.wait_for_state();
}
