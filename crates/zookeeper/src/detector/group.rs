//! The candidates of an election in ZooKeeper: ephemeral children of one znode, numbered by the
//! servers. The oldest candidate leads, which has the lowest number.
//!
//! Candidates are read as Mesos reads them: every child counts whose name is a number, or ends in
//! `_` and a number. The part before the number is the label, which selects the format of the
//! content.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;

use overlay_types::protocol::Candidate;
use overlay_wire::{decode_candidate, implausible_candidate};
use zookeeper_client::{Error, OneshotWatcher};

use crate::session::{Session, SessionError};

/// Largest number of members that are read. There are fewer masters, and a client that creates
/// thousands of members must not delay the election.
pub(super) const MEMBERS_MAX: usize = 64;

/// Number of attempts to read the leader, which may disappear between the list and the read.
const ATTEMPTS: usize = 10;

/// Longest content of a candidate, in bytes. Mesos masters write some hundred bytes. Servers accept
/// up to 1 MiB from every client with write permission, and decoding needs many times that memory.
const CONTENT_MAX: usize = 64 * 1024;
/// Longest part of a znode's content that a warning quotes, in characters.
const EXCERPT_MAX: usize = 200;

/// A member of the election: a child with a number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Member {
    /// The first field, because members are sorted by number.
    number: i32,
    pub(super) name: String,
}

impl Member {
    /// Parses the name of a child. Returns `None` if the child is no member.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let number = name.rsplit('_').next()?.parse().ok()?;
        Some(Self { number, name: name.to_owned() })
    }

    /// Returns the label, which selects the format of the content.
    fn label(&self) -> &str {
        self.name.rsplit_once('_').map_or("", |(label, _)| label)
    }
}

/// Returns the members of the election among `names`, the leader first.
pub(super) fn members(names: &[String]) -> Vec<Member> {
    let mut members: Vec<Member> = names.iter().filter_map(|name| Member::parse(name)).collect();
    members.sort();
    members
}

/// Lists the members and watches for the next change of the list. Returns `None` if the path does
/// not exist.
pub(super) async fn list(
    session: &Session,
    path: &str,
) -> Result<Option<(Vec<Member>, OneshotWatcher)>, Error> {
    match session.with_timeout(session.client().list_and_watch_children(path)).await {
        Ok((names, watcher)) => Ok(Some((members(&names), watcher))),
        Err(Error::NoNode) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The content of a member.
#[derive(Debug)]
pub(super) struct MemberContent {
    /// The decoded candidate, or the reason why the content is malformed.
    pub(super) candidate: Result<Candidate, String>,
    /// Why the member is no master, with an excerpt of the content. `None` for a master.
    pub(super) defect: Option<String>,
    /// Whether the znode is not ephemeral, so that no process is behind it. Such a member takes no
    /// part in the election: otherwise one foreign znode would end leadership for ever.
    pub(super) is_persistent: bool,
    /// Whether the znode has children.
    has_children: bool,
    path: String,
}

impl MemberContent {
    /// Decodes the content of the member at `path`. `owner` is the session that owns the ephemeral
    /// znode; 0 for a persistent znode.
    fn new(path: String, label: &str, bytes: &[u8], (owner, children): (i64, i32)) -> Self {
        let candidate = decode(label, bytes).map_err(|error| format!("{path}: {error}"));
        let reason = if owner == 0 {
            Some("it is not ephemeral, so that no process is behind it".to_owned())
        } else {
            match &candidate {
                Ok(candidate) => implausible_candidate(label, bytes, candidate),
                Err(_) => Some("its content does not describe a master".to_owned()),
            }
        };
        let defect = reason.map(|reason| {
            let content = excerpt(bytes);
            format!("{path} in the election is no master: {reason}; its content is '{content}'")
        });
        let (is_persistent, has_children) = (owner == 0, children > 0);
        Self { candidate, defect, is_persistent, has_children, path }
    }

    /// Returns the address of the candidate if it is a master of this program.
    fn program(&self) -> Option<SocketAddrV4> {
        let candidate = self.candidate.as_ref().ok().filter(|_| self.defect.is_none())?;
        (candidate.is_own() && is_reachable(candidate)).then_some(candidate.address)
    }

    /// Returns the warning about a persistent member.
    pub(super) fn ignored_warning(&self) -> Option<String> {
        self.defect.as_ref().map(|defect| {
            format!(
                "{defect}: masters and agents of this program ignore it, and agents with the C++ \
                 modules may follow it: {}",
                self.remedy()
            )
        })
    }

    /// Returns the commands that delete the znode.
    pub(super) fn remedy(&self) -> String {
        let delete = if self.has_children { "deleteall" } else { "delete" };
        format!(
            "find the client that created it, and delete it: in zkCli.sh, `{delete} {}` (after \
             `addauth digest USER:PASSWORD`, if the election has a user)",
            self.path.escape_debug()
        )
    }
}

/// Decodes the candidate in the content of a member's znode.
fn decode(label: &str, content: &[u8]) -> Result<Candidate, String> {
    if content.len() > CONTENT_MAX {
        return Err(format!("has {} bytes, limit {CONTENT_MAX}", content.len()));
    }
    decode_candidate(label, content).map_err(|error| error.to_string())
}

/// Returns an escaped excerpt of the content of a znode.
fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * EXCERPT_MAX)]);
    let mut letters = text.chars();
    let mut excerpt: String =
        letters.by_ref().take(EXCERPT_MAX).flat_map(char::escape_debug).collect();
    if letters.next().is_some() || bytes.len() > 4 * EXCERPT_MAX {
        excerpt.push('…');
    }
    excerpt
}

/// Reads the content of a member. Returns `None` if the znode does not exist.
pub(super) async fn read(
    session: &Session,
    path: &str,
    member: &Member,
) -> Result<Option<MemberContent>, Error> {
    let path = format!("{path}/{}", member.name);
    match session.with_timeout(session.client().get_data(&path)).await {
        Ok((bytes, stat)) => {
            let kind = (stat.ephemeral_owner, stat.num_children);
            Ok(Some(MemberContent::new(path, member.label(), &bytes, kind)))
        }
        Err(Error::NoNode) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the leader of the election and watches for the next change.
pub(super) async fn leader(session: &Session, path: &str) -> Result<Leader, SessionError> {
    let explain = |error: Error| session.error(path, &error);
    for _ in 0..ATTEMPTS {
        let Some((members, watcher)) = list(session, path).await.map_err(explain)? else {
            let watch = session.client().check_and_watch_stat(path);
            let (stat, watcher) = session.with_timeout(watch).await.map_err(explain)?;
            if stat.is_some() {
                continue;
            }
            return Ok(Leader { found: None, warning: None, members: Vec::new(), watcher });
        };
        if let Some((found, warning)) =
            first_master(session, path, &members).await.map_err(explain)?
        {
            return Ok(Leader { found, warning, members, watcher });
        }
    }
    Err(explain(Error::NoNode))
}

/// Returns the first member that takes part in the election, if its address is usable, and a
/// warning about members that are no masters. Returns `None` if a member has disappeared.
async fn first_master(
    session: &Session,
    path: &str,
    members: &[Member],
) -> Result<Option<(Option<(Member, Candidate)>, Option<String>)>, Error> {
    let mut ignored = None;
    for member in members.iter().take(MEMBERS_MAX) {
        let Some(content) = read(session, path, member).await? else { return Ok(None) };
        if content.is_persistent {
            ignored = ignored.or_else(|| content.ignored_warning());
            continue;
        }
        let warning = content.defect.as_ref().map(|defect| {
            format!("{defect}: agents follow it as the leading master: {}", content.remedy())
        });
        let candidate = content.candidate.ok().filter(is_reachable);
        let found = candidate.map(|candidate| (member.clone(), candidate));
        return Ok(Some((found, warning.or(ignored))));
    }
    Ok(Some((None, ignored)))
}

/// Whether the address of a candidate can belong to a host.
pub(super) fn is_reachable(candidate: &Candidate) -> bool {
    let ip = candidate.address.ip();
    !(ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast())
}

/// The addresses of candidates that are masters of this program, by member. `None` for other members.
pub(super) type ProgramCache = BTreeMap<Member, Option<SocketAddrV4>>;

/// Updates the cache for the present members. The content of a member never changes, so that each is
/// read once: thousands of agents follow the election.
pub(super) async fn update_programs(
    session: &Session,
    path: &str,
    members: &[Member],
    cache: &mut ProgramCache,
) -> Result<(), Error> {
    let members = &members[..members.len().min(MEMBERS_MAX)];
    cache.retain(|member, _| members.contains(member));
    for member in members {
        if cache.contains_key(member) {
            continue;
        }
        // A member that has disappeared changes the election, so that it is read again.
        let Some(content) = read(session, path, member).await? else { continue };
        cache.insert(member.clone(), content.program());
    }
    Ok(())
}

/// The leader of an election.
pub(super) struct Leader {
    /// `None` if there is no leader with a usable address.
    pub(super) found: Option<(Member, Candidate)>,
    /// Set if the first member of the election is no master.
    pub(super) warning: Option<String>,
    /// All members.
    pub(super) members: Vec<Member>,
    /// Fires at the next change of the election.
    pub(super) watcher: OneshotWatcher,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lowest_number_leads_regardless_of_label() {
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
        assert!(wrapped[1] < wrapped[0], "a number that overflowed sorts first, as in Mesos");
    }

    #[test]
    fn oversized_candidate_is_refused_undecoded() {
        let member = Member::parse("json.info_0000000012").unwrap();
        let content = format!("[{}0]", r#"{"":0},"#.repeat(CONTENT_MAX / 7));
        let mut error = String::new();
        let allocated = allocation_counter::measure(|| {
            error = decode(member.label(), content.as_bytes()).unwrap_err();
        });
        assert_eq!(error, format!("has {} bytes, limit 65536", content.len()));
        assert!(allocated.bytes_max < 1024, "{} bytes", allocated.bytes_max);
    }

    fn content(name: &str, bytes: &[u8], ephemeral_owner: i64) -> MemberContent {
        let label = Member::parse(name).unwrap().label().to_owned();
        MemberContent::new(format!("/overlay/{name}"), &label, bytes, (ephemeral_owner, 0))
    }

    #[test]
    fn program_among_candidates_has_own_id() {
        let address = "10.0.0.1:5050".parse().unwrap();
        let own = overlay_wire::encode_candidate(&Candidate::own(address, 7));
        let name = "json.info_0000000001";
        assert_eq!(content(name, own.as_bytes(), 5).program(), Some(address));
        assert_eq!(content(name, own.as_bytes(), 0).program(), None, "no process is behind it");
        let mesos = Candidate { id: "f692c292".to_owned(), address };
        let mesos = overlay_wire::encode_candidate(&mesos);
        assert_eq!(content(name, mesos.as_bytes(), 5).program(), None);
        assert_eq!(content("x_0", b"a", 5).program(), None);
    }

    #[test]
    fn foreign_candidate_is_named_with_its_content() {
        let own = Candidate::own("10.0.0.1:5050".parse().unwrap(), 7);
        let own = overlay_wire::encode_candidate(&own);
        assert_eq!(content("json.info_0000000001", own.as_bytes(), 5).defect, None);
        let defect = content("json.info_0000000001", own.as_bytes(), 0).defect.unwrap();
        let start = "/overlay/json.info_0000000001 in the election is no master: it is not \
                     ephemeral, so that no process is behind it; its content is '{\\\"address";
        assert!(defect.starts_with(start), "{defect}");
        let foreign = content("x_0", b"a\n\xe2\x80\xae\xff", 5);
        assert_eq!(
            foreign.defect.as_deref().unwrap(),
            "/overlay/x_0 in the election is no master: its content does not describe a master; \
             its content is 'a\\n\\u{202e}\u{fffd}'"
        );
        assert_eq!(
            foreign.remedy(),
            "find the client that created it, and delete it: in zkCli.sh, `delete /overlay/x_0` \
             (after `addauth digest USER:PASSWORD`, if the election has a user)"
        );
        let huge = content("x_0", &[b'a'; 1_000_000], 5).defect.unwrap();
        assert!(huge.len() < 400 && huge.ends_with("a…'"), "{huge}");
    }
}
