//! The kernel's counters of what it dropped, before and after: evidence of a cause.

use std::collections::BTreeMap;
use std::fs;

/// Columns of `/proc/net/dev` that matter, and what they count.
const COLUMNS: [(usize, &str); 4] = [
    (2, "receive errors"),
    (3, "drops at receiving"),
    (10, "transmit errors"),
    (11, "drops at transmitting"),
];
/// Counters of the protocols that matter, and what they count.
const PROTOCOLS: [(&str, &str, &str); 4] = [
    ("Udp", "InCsumErrors", WRONG_CHECKSUM),
    ("Icmp", "InCsumErrors", "ICMP packets with a wrong checksum"),
    ("TcpExt", "IPReversePathFilter", RP_FILTER),
    ("Udp", "RcvbufErrors", "UDP packets without room"),
];
/// What is counted of packets that arrive with a wrong checksum.
pub(super) const WRONG_CHECKSUM: &str = "UDP packets with a wrong checksum";
/// What is counted of strict `rp_filter`.
pub(super) const RP_FILTER: &str = "packets dropped by rp_filter";

/// How much was counted of what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// Of these devices, and of the protocols.
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
            for (column, what) in COLUMNS {
                let number = numbers.get(column).and_then(|number| number.parse().ok());
                self.0.extend(number.map(|number| (format!("{what} of device {name}"), number)));
            }
        }
    }

    /// Two lines for each protocol: names, then numbers.
    fn add_protocols(&mut self, text: &str) {
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.chunks_exact(2) {
            let [names, numbers] = [pair[0], pair[1]].map(|line| line.split_whitespace());
            let protocol = pair[0].split(':').next().unwrap_or_default();
            for (name, number) in names.zip(numbers) {
                let wanted =
                    PROTOCOLS.iter().find(|(its, column, _)| *its == protocol && *column == name);
                if let (Some((.., what)), Ok(number)) = (wanted, number.parse()) {
                    self.0.insert((*what).to_owned(), number);
                }
            }
        }
    }

    /// What was counted since `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        let news = self.0.iter().filter_map(|(what, number)| {
            let old = before.0.get(what).copied().unwrap_or(*number);
            let news = number.saturating_sub(old);
            (news > 0).then(|| (what.clone(), news))
        });
        Self(news.collect())
    }

    #[cfg(test)]
    pub(super) fn of(what: &str, number: u64) -> Self {
        Self(BTreeMap::from([(what.to_owned(), number)]))
    }

    pub(super) fn count(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    /// In words, empty if nothing was counted.
    pub(super) fn evidence(&self) -> String {
        let words: Vec<_> =
            self.0.iter().map(|(what, number)| format!("{number} {what}")).collect();
        if words.is_empty() {
            return String::new();
        }
        format!("; counted meanwhile: {}", words.join(", "))
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
    const PROTOCOLS: &str = "Udp: InDatagrams RcvbufErrors InCsumErrors\nUdp: 10 0 7\n\
        TcpExt: SyncookiesSent IPReversePathFilter\nTcpExt: 0 9\n";

    #[test]
    fn what_came_since_is_told_in_words() {
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
            "; counted meanwhile: 1 UDP packets with a wrong checksum, 2 transmit errors of device \
             vtep1024"
        );
        assert_eq!(before.count(RP_FILTER), 9);
    }
}
