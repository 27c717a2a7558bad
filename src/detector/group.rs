//! The candidates of an election in ZooKeeper: ephemeral children of one znode, numbered by the
//! servers. Who has been there longest leads, and that is the lowest number.
//!
//! What is read is what Mesos reads: every child counts whose name ends in `_` and a number, or is
//! one; what stands before it only says how its content is to be read.

use zookeeper_client::{Error, OneshotWatcher};

use crate::protocol::Candidate;
use crate::wire::{decode_candidate, implausible_candidate};
use crate::zookeeper::{Failure, Session};

/// How often the children are read again when the one that leads is gone before it could be read.
const ATTEMPTS: usize = 10;

/// Longest content of a candidate, in bytes. The masters of Mesos write some hundred bytes. Servers
/// take up to 1 MiB from every client that may write there, and decoding takes many times that.
const CONTENT_MAX: usize = 64 * 1024;
/// How much of a strange znode's content is repeated, in characters.
const SHOWN_MAX: usize = 200;

/// A child that stands for election.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Member {
    /// First, since it is what they are ordered by.
    number: i32,
    pub(super) name: String,
}

impl Member {
    /// `None` if a child of this name stands for nothing.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let number = name.rsplit('_').next()?.parse().ok()?;
        Some(Self { number, name: name.to_owned() })
    }

    /// What says how the content is to be read.
    fn label(&self) -> &str {
        self.name.rsplit_once('_').map_or("", |(label, _)| label)
    }
}

/// Those of `names` that stand for election, the leader first.
pub(super) fn members(names: &[String]) -> Vec<Member> {
    let mut members: Vec<Member> = names.iter().filter_map(|name| Member::parse(name)).collect();
    members.sort();
    members
}

/// Reads who stands for election, and has the next change of that reported. `None` for a path that
/// is not there.
pub(super) async fn list(
    session: &Session,
    path: &str,
) -> Result<Option<(Vec<Member>, OneshotWatcher)>, Error> {
    match session.answer(session.client().list_and_watch_children(path)).await {
        Ok((names, watcher)) => Ok(Some((members(&names), watcher))),
        Err(Error::NoNode) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A member as it was read.
#[derive(Debug)]
pub(super) struct Seen {
    /// What it says of itself, or why that cannot be understood.
    pub(super) candidate: Result<Candidate, String>,
    /// Why it is no master, if it is none: what it is and says.
    pub(super) fault: Option<String>,
    /// Whether something is below it.
    has_children: bool,
    path: String,
}

impl Seen {
    /// `owner` is the session that an ephemeral znode belongs to; 0 where it belongs to none.
    fn new(path: String, label: &str, bytes: &[u8], (owner, children): (i64, i32)) -> Self {
        let candidate = decode(label, bytes).map_err(|error| format!("{path}: {error}"));
        let why = if owner == 0 {
            Some("it is not ephemeral, so that no process is behind it".to_owned())
        } else {
            match &candidate {
                Ok(candidate) => implausible_candidate(label, bytes, candidate),
                Err(_) => Some("its content does not describe a master".to_owned()),
            }
        };
        let fault = why.map(|why| {
            let content = shown(bytes);
            format!("{path} in the election is no master: {why}; its content is '{content}'")
        });
        Self { candidate, fault, has_children: children > 0, path }
    }

    /// How an operator gets rid of it.
    pub(super) fn remedy(&self) -> String {
        let delete = if self.has_children { "deleteall" } else { "delete" };
        format!(
            "find out who made it, and delete it: in zkCli.sh, `{delete} {}` (after `addauth digest \
             USER:PASSWORD`, if the election has a user)",
            self.path.escape_debug()
        )
    }
}

/// The candidate in the content of a member's znode.
fn decode(label: &str, content: &[u8]) -> Result<Candidate, String> {
    if content.len() > CONTENT_MAX {
        return Err(format!("has {} bytes, limit {CONTENT_MAX}", content.len()));
    }
    decode_candidate(label, content).map_err(|error| error.to_string())
}

/// The content of a znode as it stands in a sentence.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * SHOWN_MAX)]);
    let mut letters = text.chars();
    let mut shown: String = letters.by_ref().take(SHOWN_MAX).flat_map(char::escape_debug).collect();
    if letters.next().is_some() || bytes.len() > 4 * SHOWN_MAX {
        shown.push('…');
    }
    shown
}

/// What a member says of itself; `None` if it has gone.
pub(super) async fn read(
    session: &Session,
    path: &str,
    member: &Member,
) -> Result<Option<Seen>, Error> {
    let path = format!("{path}/{}", member.name);
    match session.answer(session.client().get_data(&path)).await {
        Ok((bytes, stat)) => {
            let kind = (stat.ephemeral_owner, stat.num_children);
            Ok(Some(Seen::new(path, member.label(), &bytes, kind)))
        }
        Err(Error::NoNode) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Who leads, if anybody does, a warning if it is no master, and what reports the next change.
pub(super) async fn leader(session: &Session, path: &str) -> Result<Leader, Failure> {
    let failure = |error: Error| session.failure(path, &error);
    for _ in 0..ATTEMPTS {
        let Some((members, watcher)) = list(session, path).await.map_err(failure)? else {
            let watch = session.client().check_and_watch_stat(path);
            let (stat, watcher) = session.answer(watch).await.map_err(failure)?;
            if stat.is_some() {
                continue;
            }
            return Ok(Leader { found: None, warning: None, watcher });
        };
        let Some(first) = members.first() else {
            return Ok(Leader { found: None, warning: None, watcher });
        };
        if let Some(seen) = read(session, path, first).await.map_err(failure)? {
            let warning = seen.fault.as_ref().map(|fault| {
                format!("{fault}: agents take it for the leading master: {}", seen.remedy())
            });
            let can_be_reached = |candidate: &Candidate| {
                let ip = candidate.address.ip();
                !(ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast())
            };
            let candidate = seen.candidate.ok().filter(can_be_reached);
            let found = candidate.map(|candidate| (first.clone(), candidate));
            return Ok(Leader { found, warning, watcher });
        }
    }
    Err(failure(Error::NoNode))
}

/// Who leads.
pub(super) struct Leader {
    pub(super) found: Option<(Member, Candidate)>,
    /// Set if the first member of the election is no master.
    pub(super) warning: Option<String>,
    pub(super) watcher: OneshotWatcher,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_number_leads_whatever_stands_before_it() {
        let names = [
            "log_replicas",
            "json.info_0000000012",
            "info_0000000011",
            "state",
            "0000000013",
            "json.info_",
            "json.info_99999999999",
        ];
        let members = members(&names.map(str::to_owned));
        let names: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["info_0000000011", "json.info_0000000012", "0000000013"]);
        let labels: Vec<_> = members.iter().map(Member::label).collect();
        assert_eq!(labels, ["info", "json.info", ""]);
        let wrapped = [Member::parse("a_2147483647"), Member::parse("a_-2147483648")];
        assert!(wrapped[1] < wrapped[0], "as in Mesos, after so many elections");
    }

    #[test]
    fn candidate_of_many_bytes_is_refused_undecoded() {
        let member = Member::parse("json.info_0000000012").unwrap();
        let content = format!("[{}0]", r#"{"":0},"#.repeat(CONTENT_MAX / 7));
        let mut refused = String::new();
        let taken = allocation_counter::measure(|| {
            refused = decode(member.label(), content.as_bytes()).unwrap_err();
        });
        assert_eq!(refused, format!("has {} bytes, limit 65536", content.len()));
        assert!(taken.bytes_max < 1024, "{} bytes", taken.bytes_max);
    }

    fn seen(name: &str, bytes: &[u8], ephemeral_owner: i64) -> Seen {
        let label = Member::parse(name).unwrap().label().to_owned();
        Seen::new(format!("/overlay/{name}"), &label, bytes, (ephemeral_owner, 0))
    }

    #[test]
    fn foreign_candidate_is_named_with_its_content() {
        let own = Candidate::own("10.0.0.1:5050".parse().unwrap(), 7);
        let own = crate::wire::encode_candidate(&own);
        assert_eq!(seen("json.info_0000000001", own.as_bytes(), 5).fault, None);
        let fault = seen("json.info_0000000001", own.as_bytes(), 0).fault.unwrap();
        let start = "/overlay/json.info_0000000001 in the election is no master: it is not \
                     ephemeral, so that no process is behind it; its content is '{\\\"address";
        assert!(fault.starts_with(start), "{fault}");
        let strange = seen("x_0", b"a\n\xe2\x80\xae\xff", 5);
        assert_eq!(
            strange.fault.as_deref().unwrap(),
            "/overlay/x_0 in the election is no master: its content does not describe a master; its \
             content is 'a\\n\\u{202e}\u{fffd}'"
        );
        assert_eq!(
            strange.remedy(),
            "find out who made it, and delete it: in zkCli.sh, `delete /overlay/x_0` (after `addauth \
             digest USER:PASSWORD`, if the election has a user)"
        );
        let huge = seen("x_0", &[b'a'; 1_000_000], 5).fault.unwrap();
        assert!(huge.len() < 400 && huge.ends_with("a…'"), "{huge}");
    }
}
