//! Checks access lists: warns if foreign clients can change the znodes that masters and agents rely
//! on.
//!
//! The check reads only the znodes of the overlay masters, not their parents: removing or replacing
//! a znode with children needs a permission on the znode itself.

use zookeeper_client::{Acl, AuthId, Error, Permission};

use super::Session;

/// The permissions that allow a change of a znode or its children, and their names.
const WRITE_RIGHTS: [(Permission, &str); 4] = [
    (Permission::CREATE, "create"),
    (Permission::WRITE, "write"),
    (Permission::DELETE, "delete"),
    (Permission::ADMIN, "change access lists"),
];

/// Longest part of an identity that a warning quotes, in characters.
const IDENTITY_MAX: usize = 80;

/// A client that can change a znode.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Writer {
    path: String,
    identity: String,
    rights: String,
}

/// The znodes whose access lists are checked.
#[derive(Debug, Clone)]
pub(crate) struct GuardedZnodes {
    /// The path of the election.
    pub(crate) election: String,
    /// The path of the state and its znodes. Empty for a client that only follows the election.
    pub(crate) state: Vec<String>,
}

impl Session {
    /// Reads the identities of this session from the access list of a znode that it created. A
    /// session without credentials has no identity.
    ///
    /// # Errors
    /// The error of the request.
    pub(crate) async fn identities(&self, own_znode: &str) -> Result<Vec<AuthId>, Error> {
        let (acls, _) = self.with_timeout(self.client().get_acl(own_znode)).await?;
        let owners = acls.iter().filter(|acl| acl.permission().has(Permission::ADMIN));
        let is_known = |id: &&AuthId| **id != AuthId::anyone();
        Ok(owners.map(Acl::auth_id).filter(is_known).cloned().collect())
    }

    /// Returns a warning if a foreign client can change these znodes. `own` are the identities that
    /// may change them. `None` means that they are unknown: then every user counts as a master.
    ///
    /// # Errors
    /// When the servers do not reply. A missing znode, or a znode whose list this session may not
    /// read, is skipped.
    pub(crate) async fn access_warning(
        &self,
        guarded: &GuardedZnodes,
        own: Option<&[AuthId]>,
    ) -> Result<Option<String>, Error> {
        let paths = std::iter::once(&guarded.election).chain(&guarded.state);
        // The client sends a request when it is made, so all requests run concurrently.
        let requests: Vec<_> = paths.map(|path| (path, self.client().get_acl(path))).collect();
        let mut writers = Vec::new();
        for (path, request) in requests {
            match self.with_timeout(request).await {
                Ok((acls, _)) => writers.extend(foreign_writers(path, &acls, own)),
                Err(Error::NoNode | Error::NoAuth) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(warning_text(guarded, &writers))
    }
}

/// Returns the clients that can change the znode at `path`, without `own`.
fn foreign_writers<'a>(
    path: &'a str,
    acls: &'a [Acl],
    own: Option<&'a [AuthId]>,
) -> impl Iterator<Item = Writer> + 'a {
    acls.iter().filter_map(move |acl| {
        let is_own = match own {
            Some(own) => own.contains(acl.auth_id()),
            None => !matches!(acl.scheme(), "world" | "ip"),
        };
        let rights: Vec<&str> = WRITE_RIGHTS
            .iter()
            .filter(|(permission, _)| acl.permission().has(*permission))
            .map(|(_, right)| *right)
            .collect();
        (!is_own && !rights.is_empty()).then(|| Writer {
            path: path.to_owned(),
            identity: identity_text(acl.auth_id()),
            rights: rights.join(", "),
        })
    })
}

/// Returns the text of an identity, without the hash of its password.
fn identity_text(id: &AuthId) -> String {
    let text = match (id.scheme(), id.id()) {
        ("world", _) => return "anybody (world:anyone)".to_owned(),
        ("digest", id) => format!("digest:{}", id.split(':').next().unwrap_or_default()),
        (scheme, id) => format!("{scheme}:{id}"),
    };
    text.chars().take(IDENTITY_MAX).flat_map(char::escape_debug).collect()
}

fn warning_text(
    GuardedZnodes { election, state }: &GuardedZnodes,
    writers: &[Writer],
) -> Option<String> {
    let Writer { path, identity, rights } = writers.first()?;
    let more_paths = match writers.iter().filter(|writer| writer.path != *path).count() {
        0 => String::new(),
        count => format!(" (likewise at {count} more places below)"),
    };
    let login = "in zkCli.sh, after `addauth digest USER:PASSWORD`,";
    let open_election = format!("`setAcl {election} auth::cdrwa,world:anyone:r`");
    let (danger, remedy) = match state.first() {
        None => (
            "can lead agents to a false master",
            format!(
                "give all masters an address with user and password, and then, {login} run \
                 {open_election}, which changes this znode alone"
            ),
        ),
        Some(root) => (
            "can end leadership, lead agents to a false master and change who has which addresses",
            format!(
                "give all masters an address with user and password, \
                 zk://USER:PASSWORD@HOST:PORT{election}, and then, {login} run `setAcl -R {root} \
                 auth::cdrwa`, which changes the state and all below it, and {open_election}, \
                 which changes the election's own znode, for agents to read"
            ),
        ),
    };
    Some(format!(
        "ZooKeeper: {identity} may {rights} at {path}{more_paths}, and so {danger}: {remedy}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guarded(state: &[&str]) -> GuardedZnodes {
        let state = state.iter().map(|path| (*path).to_owned()).collect();
        GuardedZnodes { election: "/overlay".to_owned(), state }
    }

    fn warning(guarded: &GuardedZnodes, acls: &[Acl], own: Option<&[AuthId]>) -> Option<String> {
        let writers: Vec<Writer> = foreign_writers("/overlay", acls, own).collect();
        warning_text(guarded, &writers)
    }

    #[test]
    fn open_path_names_rights_and_remedy() {
        let open = [Acl::new(Permission::ALL, AuthId::anyone())];
        assert_eq!(
            warning(&guarded(&["/overlay/state"]), &open, Some(&[])).unwrap(),
            "ZooKeeper: anybody (world:anyone) may create, write, delete, change access lists at \
             /overlay, and so can end leadership, lead agents to a false master and change who has \
             which addresses: give all masters an address with user and password, \
             zk://USER:PASSWORD@HOST:PORT/overlay, and then, in zkCli.sh, after `addauth digest \
             USER:PASSWORD`, run `setAcl -R /overlay/state auth::cdrwa`, which changes the state \
             and all below it, and `setAcl /overlay auth::cdrwa,world:anyone:r`, which changes the \
             election's own znode, for agents to read"
        );
        assert_eq!(
            warning(&guarded(&[]), &open, None).unwrap(),
            "ZooKeeper: anybody (world:anyone) may create, write, delete, change access lists at \
             /overlay, and so can lead agents to a false master: give all masters an address with \
             user and password, and then, in zkCli.sh, after `addauth digest USER:PASSWORD`, run \
             `setAcl /overlay auth::cdrwa,world:anyone:r`, which changes this znode alone"
        );
    }

    #[test]
    fn other_user_is_named_without_hash() {
        let own = [AuthId::new("digest", "overlay:HASH1=")];
        let owned = [
            Acl::new(Permission::READ, AuthId::anyone()),
            Acl::new(Permission::ALL, own[0].clone()),
        ];
        assert_eq!(warning(&guarded(&["/overlay/state"]), &owned, Some(&own)), None);
        // An agent does not know which users are masters.
        assert_eq!(warning(&guarded(&[]), &owned, None), None);
        let other = Acl::new(Permission::CREATE, AuthId::new("digest", "ev\u{202e}il:HASH2="));
        let shared = [owned[1].clone(), other];
        let text = warning(&guarded(&["/overlay/state"]), &shared, Some(&own)).unwrap();
        assert!(
            text.starts_with("ZooKeeper: digest:ev\\u{202e}il may create at /overlay, and"),
            "{text}"
        );
        assert!(!text.contains("HASH"), "{text}");
        let host = [Acl::new(Permission::DELETE, AuthId::new("ip", "10.0.0.0/8"))];
        let text = warning(&guarded(&[]), &host, None).unwrap();
        assert!(text.starts_with("ZooKeeper: ip:10.0.0.0/8 may delete at /overlay, and"), "{text}");
    }
}
