//! Limits the log of causes that repeat: an agent that is refused registers again every minute, and
//! each attempt has the same cause. The first is logged, then a count once an hour.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

/// Interval between two lines about one cause.
const INTERVAL: Duration = Duration::from_secs(3600);
/// The most causes. Further agents share one entry, so that no number of agents fills the memory.
const CAUSES_MAX: usize = 20_000;

/// One cause of one agent.
#[derive(Debug)]
struct Entry {
    cause: String,
    /// Repetitions since the last line.
    unlogged: u64,
    /// When the next line is due, since `Now::elapsed` 0.
    next_line: Duration,
}

/// The causes that were logged.
#[derive(Debug, Default)]
pub(super) struct RepeatedCauses(BTreeMap<(Ipv4Addr, String), Entry>);

impl RepeatedCauses {
    /// Notes a cause of an agent, and returns the end of the line if it has to be logged. `topic`
    /// distinguishes the causes that an agent can have at a time. A changed cause is logged.
    pub(super) fn note(
        &mut self,
        ip: Ipv4Addr,
        topic: &str,
        cause: &str,
        elapsed: Duration,
    ) -> Option<String> {
        let mut key = (ip, topic.to_owned());
        if self.0.len() >= CAUSES_MAX && !self.0.contains_key(&key) {
            key = (Ipv4Addr::UNSPECIFIED, topic.to_owned());
        }
        let is_shared = key.0 != ip;
        let next_line = elapsed + INTERVAL;
        let entry = self.0.get_mut(&key);
        let Some(entry) = entry.filter(|entry| is_shared || entry.cause == cause) else {
            self.0.insert(key, Entry { cause: cause.to_owned(), unlogged: 0, next_line });
            return Some(String::new());
        };
        entry.unlogged += 1;
        if elapsed < entry.next_line {
            return None;
        }
        entry.next_line = next_line;
        let repetitions = std::mem::take(&mut entry.unlogged);
        Some(format!(" ({repetitions} times since the last line about it)"))
    }

    /// Returns the repetitions that were not logged.
    #[cfg(test)]
    pub(super) fn unlogged(&self) -> u64 {
        self.0.values().map(|entry| entry.unlogged).sum()
    }

    /// Forgets the cause of an agent about one topic: it has ended.
    pub(super) fn end(&mut self, ip: Ipv4Addr, topic: &str) {
        self.0.remove(&(ip, topic.to_owned()));
    }

    /// Forgets the causes of an agent: they have ended.
    pub(super) fn clear(&mut self, ip: Ipv4Addr) {
        let topics = self.0.range((ip, String::new())..).take_while(|((of, _), _)| *of == ip);
        let keys: Vec<(Ipv4Addr, String)> = topics.map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.0.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    #[test]
    fn repeated_cause_is_logged_once_then_counted() {
        let mut causes = RepeatedCauses::default();
        let mut note = |cause: &str, seconds| {
            causes.note(AGENT, "register", cause, Duration::from_secs(seconds))
        };
        assert_eq!(note("full", 0), Some(String::new()));
        for attempt in 1..60 {
            assert_eq!(note("full", attempt * 60), None);
        }
        let counted = " (60 times since the last line about it)".to_owned();
        assert_eq!(note("full", 3600), Some(counted));
        assert_eq!(note("full", 3660), None);
        assert_eq!(note("other", 3661), Some(String::new()), "another cause is logged at once");
        causes.clear(AGENT);
        let again = causes.note(AGENT, "register", "other", Duration::from_secs(3662));
        assert_eq!(again, Some(String::new()), "a cause that returns is logged");
    }

    #[test]
    fn agents_beyond_limit_share_one_entry() {
        let mut causes = RepeatedCauses::default();
        let count = u32::try_from(CAUSES_MAX).unwrap() + 1000;
        let mut lines = 0;
        for number in 1..=count {
            let ip = Ipv4Addr::from(number);
            lines += usize::from(causes.note(ip, "register", "full", Duration::ZERO).is_some());
        }
        assert_eq!((causes.0.len(), lines), (CAUSES_MAX + 1, CAUSES_MAX + 1));
    }
}
