//! The commands of `docs/quickstart.md`, as a reader pastes them into root shells on two hosts with
//! Docker. The output matches what the page shows.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use crate::docker_daemon::{DOCKER, DockerDaemon};
use crate::hosts::{Underlay, connect_to_switch, switch};
use crate::namespace::BUSYBOX;
use crate::process::PROGRAM;

const PAGE: &str = include_str!("../../docs/quickstart.md");
/// The line that a shell prints after the output of a step.
const END: &str = "end of the step";

/// Commands of the page, and what the reader sees.
struct Step {
    /// Numbers of the hosts on which the reader runs the commands.
    hosts: Vec<u8>,
    commands: String,
    output: String,
}

/// Returns the steps of the page. A paragraph `On HOST:` precedes commands, and a paragraph
/// `You see:` precedes their output.
fn steps() -> Vec<Step> {
    let (page, _) = PAGE.split_once("\n## Next steps\n").expect("a section after the steps");
    let mut steps: Vec<Step> = Vec::new();
    let mut prose = "";
    for block in page.split("\n\n") {
        if !block.starts_with("    ") {
            prose = block.trim();
            if prose.starts_with("On ") && prose.ends_with(':') {
                let is_named = |number: &u8| prose.contains(&format!("10.0.0.{number}"));
                let hosts = if prose == "On both hosts:" {
                    vec![1, 2]
                } else {
                    (1..=2).filter(is_named).collect()
                };
                steps.push(Step { hosts, commands: String::new(), output: String::new() });
            }
            continue;
        }
        let step = steps.last_mut().expect("a paragraph 'On HOST:' before the code");
        let text = match (prose.starts_with("On "), prose.starts_with("You see")) {
            (true, _) => &mut step.commands,
            (_, true) => &mut step.output,
            _ => panic!("the page does not say where to run {block}"),
        };
        for line in block.lines() {
            *text += line.strip_prefix("    ").unwrap_or(line);
            text.push('\n');
        }
    }
    steps
}

/// A root shell on a host.
struct Shell {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Shell {
    /// Opens a shell on the host of `docker`, in an empty directory.
    fn open(docker: &DockerDaemon) -> Self {
        let home = docker.path("home");
        let programs = docker.path("programs");
        for directory in [&home, &programs] {
            fs::create_dir(directory).expect("a new directory");
        }
        symlink(PROGRAM, programs.join("mesos-overlay")).expect("a link");
        symlink(DOCKER, programs.join("docker")).expect("a link");
        // The host has a directory /var/lib of its own.
        let script = "export PATH=$0:$PATH; mount -t tmpfs mesos-overlay-test /var/lib && \
                      exec bash 2>&1";
        let mut command = docker.namespace.command("unshare");
        command.args(["--mount", "bash", "-c", script]).arg(programs).current_dir(home);
        command.env("DOCKER_HOST", docker.socket());
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a shell");
        let input = process.stdin.take().expect("a pipe");
        let output = BufReader::new(process.stdout.take().expect("a pipe"));
        Self { process, input, output }
    }

    /// Runs commands to their end, and returns their output.
    fn run(&mut self, commands: &str) -> String {
        writeln!(self.input, "{commands}echo '{END}'").expect("the shell runs");
        let mut output = String::new();
        while !output.ends_with(&format!("{END}\n")) {
            let length = self.output.read_line(&mut output).expect("the shell runs");
            assert!(length > 0, "the shell ended: {output}");
        }
        output.replace(&format!("{END}\n"), "")
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // A shell whose test failed still has the master and the agent as jobs.
        let _ = self.input.write_all(b"kill -9 $(jobs -p); exit\n");
        let _ = self.process.wait();
    }
}

/// Replaces times in a line of output, which differ from run to run.
fn without_times(line: &str) -> String {
    let mask = |word: &str| {
        let is_number = |text: &str| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || ['.', '/'].contains(&c))
        };
        let is_age = word.strip_suffix(['s', 'm']).is_some_and(is_number);
        let is_time = word.starts_with("[20") || word.starts_with("time=");
        let is_mean = word.matches('/').count() == 2 && is_number(word);
        if is_age || is_time || is_mean { "TIME".to_owned() } else { word.to_owned() }
    };
    line.split_whitespace().map(mask).collect::<Vec<_>>().join(" ")
}

fn import_image(docker: &DockerDaemon) {
    let bin = docker.path("image/bin");
    fs::create_dir_all(&bin).expect("a directory");
    fs::copy(BUSYBOX, bin.join("busybox")).expect("busybox is copied");
    for name in ["ping", "sleep"] {
        symlink("busybox", bin.join(name)).expect("a link");
    }
    let script = "tar -C \"$0\" -c . | \"$1\" --host \"$2\" import - alpine";
    let image = docker.path("image");
    let mut command = std::process::Command::new("sh");
    command.arg("-c").arg(script).arg(Path::new(&image)).arg(DOCKER).arg(docker.socket());
    crate::namespace::succeed(&mut command);
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn quickstart_commands_print_what_the_page_shows() {
    let switch = switch();
    let hosts: Vec<DockerDaemon> = (1..=2)
        .map(|number| {
            let docker = DockerDaemon::started();
            connect_to_switch(&switch, &docker.namespace, number, Underlay::V4);
            docker.namespace.run("ip route add default via 10.0.0.254");
            import_image(&docker);
            docker
        })
        .collect();
    let mut shells: Vec<Shell> = hosts.iter().map(Shell::open).collect();
    let steps = steps();
    assert!(steps.len() >= 7, "the page has {} steps", steps.len());
    for step in steps {
        for host in step.hosts {
            let output = shells[usize::from(host - 1)].run(&step.commands);
            let shown: Vec<String> = output.lines().map(without_times).collect();
            println!("host {host}:\n{}{output}", step.commands);
            for line in step.output.lines() {
                assert!(
                    shown.contains(&without_times(line)),
                    "10.0.0.{host}: the page shows {line:?}, the commands printed\n{output}"
                );
            }
            let is_error = |line: &str| line.starts_with("mesos-overlay: ");
            assert!(!output.lines().any(is_error), "10.0.0.{host}: {output}");
        }
    }
    // The last step removes everything.
    for docker in &hosts {
        let mut devices = docker.namespace.devices();
        devices.sort();
        assert_eq!(devices, ["docker0", "eth0"]);
    }
}
