//! The candidates of an election in ZooKeeper: ephemeral children of one znode, numbered by the
//! servers. Who has been there longest leads, and that is the lowest number.
//!
//! What is read is what Mesos reads: every child counts whose name ends in `_` and a number, or is
//! one; what stands before it only says how its content is to be read.

use zookeeper_client::{Error, OneshotWatcher};

use crate::protocol::Candidate;
use crate::wire::decode_candidate;
use crate::zookeeper::{Failure, Session};

/// How often the children are read again when the one that leads is gone before it could be read.
const ATTEMPTS: usize = 10;

/// Longest content of a candidate. The masters of Mesos write some hundred bytes. Servers take up
/// to 1 MiB from every client that may write there, and decoding takes many times that.
const CONTENT_MAX: usize = 64 * 1024;

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

/// What a member says of itself; `None` if it has gone.
pub(super) async fn read(
    session: &Session,
    path: &str,
    member: &Member,
) -> Result<Option<Result<Candidate, String>>, Error> {
    let path = format!("{path}/{}", member.name);
    match session.answer(session.client().get_data(&path)).await {
        Ok((bytes, _)) => {
            let candidate = decode(member, &bytes);
            Ok(Some(candidate.map_err(|reason| format!("{path}: {reason}"))))
        }
        Err(Error::NoNode) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The candidate in the content of a member's znode.
fn decode(member: &Member, content: &[u8]) -> Result<Candidate, String> {
    if content.len() > CONTENT_MAX {
        return Err(format!("has {} bytes, limit {CONTENT_MAX}", content.len()));
    }
    decode_candidate(member.label(), content).map_err(|error| error.to_string())
}

/// Who leads, if anybody does, and what reports the next change.
pub(super) async fn leader(
    session: &Session,
    path: &str,
) -> Result<(Option<(Member, Candidate)>, OneshotWatcher), Failure> {
    let failure = |error: Error| session.failure(path, &error);
    for _ in 0..ATTEMPTS {
        let Some((members, watcher)) = list(session, path).await.map_err(failure)? else {
            let watch = session.client().check_and_watch_stat(path);
            let (stat, watcher) = session.answer(watch).await.map_err(failure)?;
            if stat.is_some() {
                continue;
            }
            return Ok((None, watcher));
        };
        let Some(first) = members.first() else { return Ok((None, watcher)) };
        match read(session, path, first).await.map_err(failure)? {
            Some(Ok(candidate)) => return Ok((Some((first.clone(), candidate)), watcher)),
            Some(Err(why)) => {
                log::warn!("the leading master cannot be understood: {why}: is it one of Mesos?");
                return Ok((None, watcher));
            }
            None => {}
        }
    }
    Err(failure(Error::NoNode))
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
            refused = decode(&member, content.as_bytes()).unwrap_err();
        });
        assert_eq!(refused, format!("has {} bytes, limit 65536", content.len()));
        assert!(taken.bytes_max < 1024, "{} bytes", taken.bytes_max);
    }
}
