//! `mesos-overlay doctor`: diagnoses a host, before an agent runs on it and afterwards.
//!
//! The command first observes the host, which changes nothing. Pure functions then derive the
//! findings from the observation. Tests of the kernel run in a temporary network namespace. Only
//! `--probe` sends packets, to the peers that the kernel knows.

pub(super) mod agent_query;
pub(super) mod discovery;

use std::path::PathBuf;

use clap::Args;
use overlay_doctor::observation::Observation;
use overlay_doctor::{Entry, QueryResults, Report, Severity};
use serde::Serialize;

use self::discovery::Discovery;
use super::Failure;
use super::agent_options::AgentHostOptions;
use super::color;
use super::http_client::block_on;
use super::master_address::{AgentAddress, CredentialFile, MasterSource};
use super::output::{Output, OutputFormat, sanitize};
use super::process::pluralize;
use super::progress::Progress;

/// Find problems of this host, and show their remedies.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesos-overlay doctor                                 while an agent runs here
  mesos-overlay doctor --config agent.json             before an agent runs here
  mesos-overlay doctor --master 10.0.0.1:5050 --probe  every check

Run it as root on the host of the agent. It changes nothing, and sends packets only with --probe.
Root causes come first, each with the findings that follow from it. Exit code 0 if nothing is wrong, even with warnings; 1 if something is.")]
pub(super) struct DoctorCommand {
    /// The agent_config; otherwise that of the running agent, also of a Mesos agent
    /// with the module, if no other user controls it; or agent.json or agent_modules.json in /etc/mesos-overlay or
    /// /usr/local/etc/mesos-overlay
    #[arg(long, env = "MESOS_OVERLAY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The address of the local agent; otherwise that of the running agent, or 127.0.0.1:5051
    #[arg(long, env = "MESOS_OVERLAY_AGENT_ADDRESS", value_name = "IP:PORT")]
    agent: Option<AgentAddress>,
    /// The running master: as for `state`. Its state is compared with this host
    // Agents read the same variable, whose value may contain a password. So no message shows the
    // value.
    #[arg(long, env = "MESOS_OVERLAY_MASTER", hide_env_values = true, value_name = "MASTER")]
    master: Option<String>,
    #[command(flatten)]
    host: AgentHostOptions,
    #[command(flatten)]
    credential: CredentialFile,
    /// Send packets through the tunnel to every peer, small ones and the largest that fit, and at
    /// most 6 MB to each of eight peers, and find the cause of a loss
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
struct JsonReport<'a> {
    /// Whether no finding is wrong.
    ok: bool,
    findings: &'a [Entry],
}

impl DoctorCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut discovery = discovery::discover(self.config.as_deref())?;
        self.host.apply(&mut discovery.config)?;
        let agent = self.agent_address(&discovery);
        let port = agent.port_of_peers();
        let progress = Progress::start("examining this host");
        let observed = self.observe(discovery, &agent)?;
        let mut findings = overlay_doctor::check(&observed);
        if self.probe {
            progress.describe("sending packets through the tunnels to the peers");
            let probed = overlay_doctor::probe(&observed, |ips| agent_query::agents(ips, port));
            findings.extend(probed.map_err(|error| {
                Failure::new(format!("doctor: probe: {error}: run it as root"))
            })?);
        }
        drop(progress);
        let findings = findings.into_iter().map(|finding| finding.map_texts(sanitize));
        self.report(&Report::new(findings.collect(), &observed))
    }

    fn agent_address(&self, discovery: &Discovery) -> AgentAddress {
        self.agent.clone().unwrap_or_else(|| AgentAddress::local(discovery.address))
    }

    fn observe(&self, discovery: Discovery, agent: &AgentAddress) -> Result<Observation, Failure> {
        let is_agent_known = self.agent.is_some() || discovery.address.is_some();
        let Discovery { config, configuration, .. } = discovery;
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
                agent: agent_query::local_agent(agent, is_agent_known, credential.as_ref()).await,
                master,
                docker: agent_query::docker(&config).await,
            })
        })?;
        overlay_doctor::observe(config, configuration, answers)
            .map_err(|error| Failure::new(format!("doctor: {error}")))
    }

    /// Prints the findings. Fails if one of them is wrong.
    fn report(&self, report: &Report) -> Result<(), Failure> {
        let wrong = report.count(Severity::Wrong);
        let print_text = |output: &mut Output| {
            let mut lines = report.lines().into_iter();
            lines.try_for_each(|line| output.painted_line(line, color::paint_severity))?;
            output.line("")?;
            output.status_line(summary(report))
        };
        let json = JsonReport { ok: wrong == 0, findings: report.entries() };
        self.format.print(&json, print_text)?;
        match wrong {
            0 => Ok(()),
            1 => Err(Failure::new("doctor: 1 thing is wrong: fix it as shown")),
            more => {
                Err(Failure::new(format!("doctor: {more} things are wrong: fix them as shown")))
            }
        }
    }
}

/// Counts the findings. Those that follow from others are counted separately.
fn summary(report: &Report) -> String {
    let count = |severity| report.count(severity) as u128;
    let followers = match report.count_followers() {
        0 => String::new(),
        count => format!(", and {count} that follow"),
    };
    format!(
        "{}: {} ok, {}, {}, {} wrong{followers}",
        pluralize(report.entries().len() as u128, "finding"),
        count(Severity::Ok),
        pluralize(count(Severity::Note), "note"),
        pluralize(count(Severity::Warning), "warning"),
        count(Severity::Wrong),
    )
}
