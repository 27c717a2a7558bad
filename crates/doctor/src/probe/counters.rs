//! The kernel's counters of dropped packets. Their increase during the probe is evidence of a
//! cause.

use std::collections::BTreeMap;
use std::fs;

/// The evaluated columns of `/proc/net/dev`, with a description.
const COLUMNS: [(usize, &str); 4] =
    [(2, "receive errors"), (3, "receive drops"), (10, "transmit errors"), (11, "transmit drops")];
/// The evaluated counters of `/proc/net/snmp` and `/proc/net/netstat`, with a description.
const PROTOCOLS: [(&str, &str, &str); 4] = [
    ("Udp", "InCsumErrors", WRONG_CHECKSUM),
    ("Icmp", "InCsumErrors", "ICMP packets with a wrong checksum"),
    ("TcpExt", "IPReversePathFilter", RP_FILTER),
    ("Udp", "RcvbufErrors", "UDP packets dropped by a full receive buffer"),
];
/// Description of the counter of UDP packets with a wrong checksum.
pub(super) const WRONG_CHECKSUM: &str = "UDP packets with a wrong checksum";
/// Description of the counter of packets that strict `rp_filter` drops.
pub(super) const RP_FILTER: &str = "packets dropped by rp_filter";

/// Counter values by their description.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// Reads the counters of these devices and of the protocols.
    pub(super) fn read(devices: &[String]) -> Self {
        let read = |name: &str| fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
        let mut counters = Self::default();
        counters.add_devices(&read("dev"), devices);
        counters.add_protocols(&read("snmp"));
        counters.add_protocols(&read("netstat"));
        counters
    }

    fn add_devices(&mut self, text: &str, devices: &[String]) {
        for line in text.lines() {
            let Some((name, numbers)) = line.split_once(':') else { continue };
            let name = name.trim();
            if !devices.iter().any(|device| device == name) {
                continue;
            }
            let numbers: Vec<&str> = numbers.split_whitespace().collect();
            for (column, description) in COLUMNS {
                let number = numbers.get(column).and_then(|number| number.parse().ok());
                self.0.extend(
                    number.map(|number| (format!("{description} of device {name}"), number)),
                );
            }
        }
    }

    /// Adds the counters of a file with two lines for each protocol: names, then numbers.
    fn add_protocols(&mut self, text: &str) {
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.chunks_exact(2) {
            let [names, numbers] = [pair[0], pair[1]].map(|line| line.split_whitespace());
            let protocol = pair[0].split(':').next().unwrap_or_default();
            for (name, number) in names.zip(numbers) {
                let mut evaluated = PROTOCOLS.iter();
                let counter = evaluated.find(|counter| (counter.0, counter.1) == (protocol, name));
                if let (Some((.., description)), Ok(number)) = (counter, number.parse()) {
                    self.0.insert((*description).to_owned(), number);
                }
            }
        }
    }

    /// Returns the increase since `before`, without the counters that did not increase.
    pub(super) fn since(&self, before: &Self) -> Self {
        let increases = self.0.iter().filter_map(|(description, number)| {
            let old = before.0.get(description).copied().unwrap_or(*number);
            let increase = number.saturating_sub(old);
            (increase > 0).then(|| (description.clone(), increase))
        });
        Self(increases.collect())
    }

    #[cfg(test)]
    pub(super) fn with(description: &str, number: u64) -> Self {
        Self(BTreeMap::from([(description.to_owned(), number)]))
    }

    pub(super) fn count(&self, description: &str) -> u64 {
        self.0.get(description).copied().unwrap_or(0)
    }

    /// Returns a text to append to a summary. It is empty if no counter increased.
    pub(super) fn evidence(&self) -> String {
        let counters = self.0.iter().map(|(description, number)| format!("{number} {description}"));
        let counters: Vec<_> = counters.collect();
        if counters.is_empty() {
            return String::new();
        }
        format!("; counted during the probe: {}", counters.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICES: &str =
        "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop
vtep1024:     100       1    2    3    0     0          0         0      200       2    4    5    0
  eth0: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n";
    const PROTOCOLS: &str = "Udp: InDatagrams RcvbufErrors InCsumErrors\nUdp: 10 0 7\nTcpExt: \
                             SyncookiesSent IPReversePathFilter\nTcpExt: 0 9\n";

    #[test]
    fn evidence_lists_increased_counters() {
        let devices = ["vtep1024".to_owned(), "eth0".to_owned()];
        let read = |device: &str, protocols: &str| {
            let mut counters = Counters::default();
            counters.add_devices(device, &devices);
            counters.add_protocols(protocols);
            counters
        };
        let before = read(DEVICES, PROTOCOLS);
        assert_eq!(before.since(&before).evidence(), "");
        let after = read(&DEVICES.replace(" 4    5", " 6    5"), &PROTOCOLS.replace('7', "8"));
        assert_eq!(
            after.since(&before).evidence(),
            "; counted during the probe: 1 UDP packets with a wrong checksum, 2 transmit errors \
             of device vtep1024"
        );
        assert_eq!(before.count(RP_FILTER), 9);
    }
}
