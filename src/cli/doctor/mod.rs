//! `mesos-overlay doctor`: diagnoses a host, before an agent runs on it and afterwards.
//!
//! The command first observes the host, which changes nothing. Pure functions then derive the
//! findings from the observation. Tests of the kernel run in a temporary network namespace. Only
//! `--probe` sends packets, to the peers that the kernel knows.

mod agent_query;

use std::path::PathBuf;

use clap::Args;
use overlay_config::AgentConfig;
use overlay_doctor::observation::Observation;
use overlay_doctor::{Finding, QueryResults, Severity};
use serde::Serialize;

use super::Failure;
use super::http_client::block_on;
use super::master_address::{AgentAddress, CredentialFile, MasterSource};
use super::output::{Output, OutputFormat, sanitize};
use super::process::{pluralize, read_agent_config};

/// Find problems of this host, and show their remedies.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay doctor --config agent.json             before an agent runs here
  mesos-overlay doctor                                 while an agent runs here
  mesos-overlay doctor --master 10.0.0.1:5050 --probe  every check

Run it as root on the host of the agent. It changes nothing, and sends packets only with --probe.
Exit code 0 if nothing is wrong, even with warnings; 1 if something is.")]
pub(super) struct DoctorCommand {
    /// The agent_config of this host
    #[arg(long, env = "MESOS_OVERLAY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The address of the local agent
    #[arg(
        long,
        env = "MESOS_OVERLAY_AGENT_ADDRESS",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:5051"
    )]
    agent: AgentAddress,
    /// The running master, whose state is compared with this host: as for `state --master`
    // Agents read the same variable, whose value may contain a password. So no message shows the
    // value.
    #[arg(long, env = "MESOS_OVERLAY_MASTER", hide_env_values = true, value_name = "MASTER")]
    master: Option<String>,
    #[command(flatten)]
    credential: CredentialFile,
    /// Send packets through the tunnel to every peer, small ones and the largest that fit, and find
    /// the cause of a loss
    #[arg(
        long,
        env = "MESOS_OVERLAY_PROBE",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    probe: bool,
    #[command(flatten)]
    format: OutputFormat,
}

/// The output with `--json`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Whether no finding is wrong.
    ok: bool,
    findings: &'a [Finding],
}

impl DoctorCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = read_agent_config(self.config.as_deref())?;
        let observed = self.observe(config)?;
        let mut findings = overlay_doctor::check(&observed);
        if self.probe {
            let port = self.agent.port_of_peers();
            let probed = overlay_doctor::probe(&observed, |ips| agent_query::agents(ips, port));
            findings.extend(probed.map_err(|error| {
                Failure::new(format!("doctor: probe: {error}: run it as root"))
            })?);
        }
        for finding in &mut findings {
            // Findings quote responses of peers and output of other programs.
            let remedies = finding.command.iter_mut().chain(&mut finding.advice);
            for text in [&mut finding.summary, &mut finding.explanation].into_iter().chain(remedies)
            {
                *text = sanitize(text);
            }
        }
        self.report(&findings)
    }

    fn observe(&self, config: AgentConfig) -> Result<Observation, Failure> {
        let master = self.master.as_deref().filter(|address| !address.is_empty());
        let master = master.map(|address| MasterSource::from_flag("--master", address));
        let master = master.transpose()?;
        let credential = self.credential.read()?;
        let answers = block_on(async {
            let master = match &master {
                Some(source) => Some(agent_query::master(source, credential.as_ref()).await),
                None => None,
            };
            Ok(QueryResults {
                agent: agent_query::local_agent(&self.agent, credential.as_ref()).await,
                master,
                docker: agent_query::docker(&config).await,
            })
        })?;
        overlay_doctor::observe(config, answers)
            .map_err(|error| Failure::new(format!("doctor: {error}")))
    }

    /// Prints the findings. Fails if one of them is wrong.
    fn report(&self, findings: &[Finding]) -> Result<(), Failure> {
        let count =
            |severity| findings.iter().filter(|finding| finding.severity == severity).count();
        let wrong = count(Severity::Wrong);
        let print_text = |output: &mut Output| {
            findings.iter().try_for_each(|finding| output.line(finding))?;
            output.line("")?;
            output.line(format_args!(
                "{}: {} ok, {}, {}, {wrong} wrong",
                pluralize(findings.len() as u128, "finding"),
                count(Severity::Ok),
                pluralize(count(Severity::Note) as u128, "note"),
                pluralize(count(Severity::Warning) as u128, "warning"),
            ))
        };
        self.format.print(&Report { ok: wrong == 0, findings }, print_text)?;
        match wrong {
            0 => Ok(()),
            1 => Err(Failure::new("doctor: 1 thing is wrong: fix it as shown")),
            more => {
                Err(Failure::new(format!("doctor: {more} things are wrong: fix them as shown")))
            }
        }
    }
}
