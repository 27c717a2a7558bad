//! The configurations of a cluster, one after the other. Each differs from the previous one by a
//! change that is allowed on a running cluster. They are written as JSON and read by the real
//! parser.

use std::fmt::Write as _;
use std::sync::Arc;

use overlay_config::parse_master;
use overlay_types::protocol::Network;

use crate::chance::Chance;

/// A configuration and its possible changes.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    vtep_prefix: u8,
    /// The second byte of the VTEP subnet.
    vtep_second_byte: u8,
    vtep6: bool,
    vtep_mtu: Option<u16>,
    overlays: Vec<Overlay>,
    /// Whether changes may conflict with allocations of agents.
    pub(crate) has_conflicting_changes: bool,
}

/// An overlay. It can be widened within a /16 of its own.
#[derive(Debug, Clone)]
struct Overlay {
    number: usize,
    is_renamed: bool,
    prefix: u8,
    length: u8,
    v6: bool,
    is_enabled: bool,
    is_present: bool,
}

/// The most overlays.
const OVERLAYS_MAX: usize = 4;

impl Plan {
    /// Returns the first configuration: sometimes large enough for all agents, sometimes not.
    pub(crate) fn of(agents: usize, chance: &mut Chance) -> Self {
        let bits = |count: usize| u8::try_from(count.max(1).next_power_of_two().ilog2());
        let bits = bits(agents + 2).expect("the number of agents is small");
        let is_tight = chance.is(0.4);
        let spare_bits = if is_tight { bits.saturating_sub(1) } else { bits + 2 };
        let overlays = (0..1 + chance.index(OVERLAYS_MAX)).map(|number| {
            let length = 24 + u8::try_from(chance.index(5)).unwrap_or(0);
            let length = length.max(16 + spare_bits);
            Overlay {
                number,
                is_renamed: false,
                prefix: length - spare_bits,
                length,
                v6: chance.is(0.3),
                is_enabled: chance.is(0.8),
                is_present: true,
            }
        });
        let overlays = overlays.collect();
        let vtep_prefix = (32 - if is_tight { bits } else { bits + 2 }).min(30);
        let (vtep6, has_conflicting_changes) = (chance.is(0.3), chance.is(0.3));
        Self {
            vtep_prefix,
            vtep_second_byte: 128,
            vtep6,
            vtep_mtu: None,
            overlays,
            has_conflicting_changes,
        }
    }

    /// Returns two overlays that are large enough for all agents.
    pub(crate) fn large_enough(agents: usize) -> Self {
        let bits = |count: usize| u8::try_from(count.next_power_of_two().ilog2());
        let bits = bits(agents + 2).expect("the number of agents is small");
        let overlay = |number| Overlay {
            number,
            is_renamed: false,
            prefix: 13,
            length: 13 + bits,
            v6: false,
            is_enabled: true,
            is_present: true,
        };
        Self {
            vtep_prefix: 16,
            vtep_second_byte: 128,
            vtep6: false,
            vtep_mtu: None,
            // 10.104.0.0/13 and 10.112.0.0/13.
            overlays: vec![overlay(4), overlay(12)],
            has_conflicting_changes: false,
        }
    }

    /// Makes one change.
    pub(crate) fn change(&mut self, chance: &mut Chance) -> &'static str {
        if self.has_conflicting_changes && chance.is(0.4) {
            self.contradict(chance)
        } else {
            self.extend(chance)
        }
    }

    /// Makes one change that may conflict with allocations of agents.
    fn contradict(&mut self, chance: &mut Chance) -> &'static str {
        let index = chance.index(self.overlays.len());
        let overlay = &mut self.overlays[index];
        match chance.number(0..5) {
            0 if overlay.length < 29 => {
                overlay.length += 1;
                "smaller subnets in an overlay"
            }
            1 if overlay.length > overlay.prefix + 1 => {
                overlay.length -= 1;
                "larger subnets in an overlay"
            }
            2 if overlay.prefix + 1 < overlay.length => {
                overlay.prefix += 1;
                "an overlay made smaller"
            }
            3 => {
                self.vtep_second_byte = if self.vtep_second_byte == 128 { 129 } else { 128 };
                "the VTEP subnet moved"
            }
            _ => {
                overlay.is_renamed = !overlay.is_renamed;
                "an overlay renamed"
            }
        }
    }

    /// Makes one change that conflicts with no allocation.
    fn extend(&mut self, chance: &mut Chance) -> &'static str {
        let index = chance.index(self.overlays.len());
        let count = self.overlays.len();
        let overlay = &mut self.overlays[index];
        match chance.number(0..8) {
            0 | 1 => {
                overlay.is_enabled = !overlay.is_enabled;
                "an overlay enabled or disabled"
            }
            2 | 3 => {
                overlay.is_present = !overlay.is_present;
                "an overlay removed or brought back"
            }
            4 if overlay.prefix > 16 => {
                overlay.prefix -= 1;
                "an overlay widened"
            }
            5 if !overlay.v6 => {
                overlay.v6 = true;
                "IPv6 added to an overlay"
            }
            6 if self.vtep_prefix > 18 => {
                self.vtep_prefix -= 1;
                "the VTEP subnet widened"
            }
            7 if !self.vtep6 => {
                self.vtep6 = true;
                "IPv6 added to VTEPs"
            }
            6 | 7 => {
                self.vtep_mtu = Some(if chance.is(0.5) { 1400 } else { 1500 });
                "the MTU of VTEPs"
            }
            _ if count < OVERLAYS_MAX => {
                let (number, is_present, is_enabled) = (count, true, true);
                let added = Overlay {
                    number,
                    is_present,
                    is_enabled,
                    is_renamed: false,
                    ..overlay.clone()
                };
                self.overlays.push(added);
                "an overlay added"
            }
            _ => "nothing",
        }
    }

    /// Returns the network as a master reads it.
    pub(crate) fn network(&self) -> Arc<Network> {
        let text = self.text();
        match parse_master("network.json", &text) {
            Ok((config, _)) => Arc::new(config.network),
            Err(problems) => panic!("the simulation wrote an invalid file: {problems}\n{text}"),
        }
    }

    fn text(&self) -> String {
        let mut present: Vec<&Overlay> =
            self.overlays.iter().filter(|one| one.is_present).collect();
        if present.is_empty() {
            present.extend(self.overlays.first());
        }
        let overlays: Vec<String> = present.into_iter().map(Overlay::text).collect();
        let mut text = format!(
            r#"{{"vtep_subnet":"44.{}.0.0/{}","vtep_mac_oui":"70:B3:D5:00:00:00""#,
            self.vtep_second_byte, self.vtep_prefix
        );
        if self.vtep6 {
            text += r#","vtep_subnet6":"fd01:a::/64""#;
        }
        if let Some(mtu) = self.vtep_mtu {
            write!(text, r#","vtep_mtu":{mtu}"#).expect("a String takes all text");
        }
        text + &format!(r#","overlays":[{}]}}"#, overlays.join(","))
    }
}

impl Overlay {
    fn text(&self) -> String {
        let Self { number, prefix, length, is_enabled, .. } = self;
        let renamed = if self.is_renamed { "-b" } else { "" };
        let mut text = format!(
            r#"{{"name":"net-{number}{renamed}","enabled":{is_enabled},"subnet":"10.{}.0.0/{prefix}","prefix":{length}"#,
            100 + number
        );
        if self.v6 {
            let _ = write!(text, r#","subnet6":"fd02:{number}::/64","prefix6":80"#);
        }
        text + "}"
    }
}
