//! `mesos-overlay doctor`: what is wrong with a host, before an agent runs on it and after.
//!
//! First everything is looked at, which changes nothing; then the findings are made of that, by
//! functions of plain data. What is tried out is tried in a network namespace that is thrown away.
//! Only `--probe` sends packets, to the peers that the kernel knows.

mod ask;
mod finding;
mod host;
mod look;
mod observed;
mod overlay;
mod probe;
mod rules;
#[cfg(test)]
mod tests;
mod trial;

use std::net::SocketAddrV4;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use self::finding::{Finding, Grade};
use self::observed::{MasterSeen, Observed};
use super::Failure;
use super::host::{counted, read_config};
use super::http_client::{MasterClient, block_on};
use super::output::{Form, Output, harmless};
use crate::config::{AgentConfig, parse_agent};

/// Find out what is wrong with this host, and what mends it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay doctor --config agent.json             before an agent runs here
  mesos-overlay doctor                                 afterwards
  mesos-overlay doctor --master 10.0.0.1:5050 --probe  all that there is

Run it as root on the host of the agent. It changes nothing, and sends packets with --probe only. Exit
code 0 if nothing is wrong, be there warnings; 1 if something is.")]
pub(super) struct DoctorCommand {
    /// The agent_config: what the agent is to do here
    #[arg(long, env = "MESOS_OVERLAY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the local agent answers
    #[arg(
        long,
        env = "MESOS_OVERLAY_AGENT_ADDRESS",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:5051"
    )]
    agent: SocketAddrV4,
    /// The running master, with whose state this host is compared
    // Agents have the same variable, and there it may hold a password: nothing repeats it.
    #[arg(long, env = "MESOS_OVERLAY_MASTER", hide_env_values = true, value_name = "IP:PORT")]
    master: Option<String>,
    /// Send packets through the tunnel to every peer, small and as large as fit, and name the cause
    /// of a loss
    #[arg(
        long,
        env = "MESOS_OVERLAY_PROBE",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    probe: bool,
    #[command(flatten)]
    form: Form,
}

/// With `--json`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Whether nothing is wrong.
    ok: bool,
    findings: &'a [Finding],
}

impl DoctorCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = match &self.config {
            Some(path) => read_config(path, parse_agent)?,
            None => AgentConfig::new(PathBuf::new()),
        };
        let observed = block_on(self.observe(config))?;
        let mut findings = host::check(&observed);
        findings.extend(overlay::check(&observed));
        if self.probe {
            findings.extend(probe::check(&observed, self.agent.port())?);
        }
        for finding in &mut findings {
            // Much of it is what others wrote.
            let rest = finding.command.iter_mut().chain(&mut finding.advice);
            for text in [&mut finding.what, &mut finding.why].into_iter().chain(rest) {
                *text = harmless(text);
            }
        }
        self.show(&findings)
    }

    async fn observe(&self, config: AgentConfig) -> Result<Observed, Failure> {
        let is_root = rustix::process::geteuid().is_root();
        let agent = ask::local_agent(self.agent).await;
        let master = self.ask_master().await?;
        let docker = ask::docker(&config).await;
        let firewall = config.dataplane.firewall;
        let info = agent.answer.as_ref().ok().map(|answer| &answer.info);
        let state = master.as_ref().and_then(|master| master.answer.as_ref().ok());
        let tunnel = ask::tunnel(&config, info, state)
            .map_err(|error| Failure::new(format!("doctor: {error}")))?;
        // Other programs are run by a thread that is not within this runtime.
        let look = move || {
            let needs_root = || Err("that needs root".to_owned());
            let trials = if is_root { trial::run(firewall) } else { needs_root() };
            let ports = tunnel.ports();
            Looked {
                trials,
                settings: look::settings(&tunnel),
                holders: look::holders(&ports, is_root),
                managers: look::managers(&ports),
                rules: look::rules(),
                offloads: look::offloads(tunnel.devices()),
                tunnel,
            }
        };
        let looked = std::thread::Builder::new().name("doctor-look".to_owned()).spawn(look);
        let looked = looked.map_err(|error| Failure::new(format!("doctor: start: {error}")))?;
        let looked = looked.join().map_err(|_| Failure::new("doctor: looking ended by a panic"))?;
        Ok(Observed {
            is_root,
            kernel: look::kernel(),
            trials: looked.trials,
            settings: looked.settings,
            holders: looked.holders,
            managers: looked.managers,
            rules: looked.rules,
            plugins: look::plugins(&config),
            docker,
            offloads: looked.offloads,
            tunnel: looked.tunnel,
            agent,
            master,
            config,
        })
    }

    /// Where masters are elected, their address is known to who elects them only.
    async fn ask_master(&self) -> Result<Option<MasterSeen>, Failure> {
        let address = match self.master.as_deref() {
            None | Some("") => return Ok(None),
            Some(address) if address.contains("://") => return Ok(None),
            Some(address) => address,
        };
        let client = MasterClient::of(address, "--master")?;
        Ok(Some(ask::master(&client).await))
    }

    fn show(&self, findings: &[Finding]) -> Result<(), Failure> {
        let count = |grade| findings.iter().filter(|finding| finding.result == grade).count();
        let wrong = count(Grade::Wrong);
        let mut output = Output::new();
        if self.form.json {
            output.json(&Report { ok: wrong == 0, findings })?;
        } else {
            for finding in findings {
                output.line(finding)?;
            }
            output.line("")?;
            output.line(format_args!(
                "{}: {} ok, {}, {}, {wrong} wrong",
                counted(findings.len() as u128, "finding"),
                count(Grade::Ok),
                counted(count(Grade::Note) as u128, "note"),
                counted(count(Grade::Warning) as u128, "warning"),
            ))?;
        }
        output.finish()?;
        match wrong {
            0 => Ok(()),
            1 => Err(Failure::new("doctor: 1 thing is wrong: mend it as shown")),
            more => {
                Err(Failure::new(format!("doctor: {more} things are wrong: mend them as shown")))
            }
        }
    }
}

/// What a thread looks at.
struct Looked {
    trials: Result<observed::Trials, String>,
    settings: std::collections::BTreeMap<String, u32>,
    holders: Vec<observed::Holder>,
    managers: observed::Managers,
    rules: observed::Rules,
    offloads: std::collections::BTreeMap<String, bool>,
    tunnel: observed::Tunnel,
}
