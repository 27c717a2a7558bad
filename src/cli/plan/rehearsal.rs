//! A real master with nothing around it: what it commits is durable at once, and nobody hears what
//! it sends.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use super::Failure;
use super::share::Share;
use crate::addr::Upid;
use crate::clock::Now;
use crate::config::MasterConfig;
use crate::machine::Machine as _;
use crate::master::{Command, Event, Master, Settings};
use crate::protocol::{AgentOptions, Assignment, Message, Network};
use crate::store::{Epoch, Loaded, Version};

/// How many shares of overlays are rehearsed: a master needs half a kilobyte for each, and a plan
/// of a million agents should not need gigabytes.
const REHEARSED_MAX: usize = 20_000;

/// Lets the first of `agents` register with a real master, and compares what it gives them with the
/// plan.
///
/// # Errors
/// When they differ.
pub(super) fn compare(network: &Arc<Network>, agents: u32) -> Result<(), Failure> {
    // What a master would log of it is no event of any cluster.
    let level = log::max_level();
    log::set_max_level(log::LevelFilter::Off);
    let mut rehearsal = Rehearsal::new(network);
    let rehearsed = u32::try_from(REHEARSED_MAX / network.overlays.len().max(1)).unwrap_or(agents);
    let differs = (1..=agents.min(rehearsed)).find(|&agent| {
        let assigned = Share::assigned(agent, &rehearsal.register(agent));
        let planned = Share::planned(network, agent);
        let is_told_nothing = assigned.overlays.is_empty();
        if is_told_nothing { !planned.overlays.is_empty() } else { planned != assigned }
    });
    log::set_max_level(level);
    match differs {
        None => Ok(()),
        Some(agent) => Err(Failure::new(format!(
            "plan: a master gives agent {agent} something else: this is a bug: please report it \
             with the file"
        ))),
    }
}

struct Rehearsal {
    master: Master,
    version: Version,
}

impl Rehearsal {
    const NOW: Now = Now { elapsed: Duration::ZERO, unix: 0 };

    fn new(network: &Arc<Network>) -> Self {
        let settings = Settings {
            network: Arc::clone(network),
            reuse_after: MasterConfig::REUSE_AFTER_DEFAULT,
        };
        let mut rehearsal = Self { master: Master::new(settings, 0), version: Version(0) };
        rehearsal.run();
        rehearsal
    }

    /// What the agent with this number is told.
    fn register(&mut self, agent: u32) -> Vec<Assignment> {
        // Any address will do, as long as each agent has its own.
        let from = Upid::agent(SocketAddrV4::new(Ipv4Addr::from(agent), 5051));
        let message = Message::RegisterAgent(AgentOptions::default());
        self.master.handle(Self::NOW, Event::Message { from, message });
        self.run()
    }

    /// Does what the master wants until it wants nothing more.
    fn run(&mut self) -> Vec<Assignment> {
        let mut told = Vec::new();
        while let Some(command) = self.master.poll_command() {
            match command {
                Command::Load => {
                    let (epoch, version) = (Epoch(1), self.version);
                    let loaded = Loaded { epoch, version, records: Vec::new() };
                    self.master.handle(Self::NOW, Event::Loaded(Ok(loaded)));
                }
                Command::Commit { .. } => {
                    self.version = self.version.next();
                    self.master.handle(Self::NOW, Event::Committed(Ok(self.version)));
                }
                Command::Send { message: Message::UpdateAgentOverlays(overlays), .. } => {
                    told = overlays;
                }
                Command::Abandon(_)
                | Command::Withdraw(_)
                | Command::ReadConfig(_)
                | Command::Preview { .. }
                | Command::Send { .. }
                | Command::Broadcast { .. }
                | Command::Reply { .. } => {}
            }
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cli::room::Room;
    use crate::config::parse_master;

    /// A small network, so that everything in it runs out.
    fn network() -> impl Strategy<Value = Network> {
        let vteps6 = prop_oneof![
            Just(String::new()),
            (121_u8..=126).prop_map(|it| format!(r#""vtep_subnet6":"fd01:a::/{it}","#))
        ];
        let overlay = (21_u8..=27, 25_u8..=29, 120_u8..=123, 122_u8..=127, 1_u8..=3, 0_u8..=4);
        let overlays = prop::collection::vec(overlay, 1..4);
        (26_u8..=29, vteps6, overlays).prop_map(|(vteps, vteps6, overlays)| {
            let overlays = overlays.into_iter().enumerate().map(|(index, overlay)| {
                let (subnet, prefix, subnet6, prefix6, families, enabled) = overlay;
                let (prefix, prefix6) = (prefix.max(subnet), prefix6.max(subnet6));
                let mut text = format!(r#"{{"name":"o{index}","enabled":{}"#, enabled > 0);
                if families != 2 {
                    text += &format!(r#","subnet":"10.{index}.0.0/{subnet}","prefix":{prefix}"#);
                }
                if families != 1 {
                    text +=
                        &format!(r#","subnet6":"fd02:{index}::/{subnet6}","prefix6":{prefix6}"#);
                }
                text + "}"
            });
            let overlays = overlays.collect::<Vec<_>>().join(",");
            let text = format!(
                r#"{{"vtep_subnet":"44.128.0.0/{vteps}",{vteps6}
                    "vtep_mac_oui":"70:B3:D5:00:00:00","overlays":[{overlays}]}}"#
            );
            parse_master("f", &text).expect(&text).0.network
        })
    }

    proptest! {
        #[test]
        fn the_plan_is_what_a_master_does_also_when_everything_is_exhausted(network in network()) {
            let network = Arc::new(network);
            prop_assert!(compare(&network, 100).is_ok());
        }

        #[test]
        fn room_is_for_as_many_agents_as_get_everything(network in network()) {
            let wanted = network.overlays.iter().filter(|overlay| overlay.enabled).count();
            let gets_all = |agent| {
                let share = Share::planned(&network, agent);
                share.overlays.len() == wanted
                    && share.vtep_ip.is_some()
                    && share.vtep_ip6.is_some() == network.vtep_subnet6.is_some()
            };
            let fit = (1..=100).take_while(|&agent| gets_all(agent)).count();
            prop_assert_eq!(fit as u128, Room::of(&network).agents().min(100));
        }
    }
}
