//! The access rules of a running server. A reload replaces them, and the names of the host are
//! added when they are resolved.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use dns_lookup::{AddrInfoHints, getaddrinfo, lookup_addr};
use overlay_config::{Credentials, HttpConfig, normalize_hostname};
use overlay_types::protocol::Author;
use parking_lot::RwLock;

use crate::http::{Access, AccessRules, Authentication, Denial, Request};

/// `AI_CANONNAME` of `netdb.h`: return the full name.
const CANONICAL_NAME: i32 = 2;

/// The access rules of a running server. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct AccessControl(Arc<RwLock<Arc<AccessRules>>>);

impl AccessControl {
    /// Creates the control with these rules.
    #[must_use]
    pub fn new(rules: AccessRules) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(rules))))
    }

    /// Replaces what a reload can change: the configuration, and the credentials if the server
    /// authenticates.
    pub fn replace(&self, config: HttpConfig, new: Option<Credentials>) {
        self.change(|rules| {
            rules.config = config;
            if let (Authentication::Basic { credentials, .. }, Some(new)) =
                (&mut rules.authentication, new)
            {
                *credentials = new;
            }
        });
    }

    /// Adds names of the host. Invalid names are ignored.
    pub fn add_names(&self, names: impl IntoIterator<Item = String>) {
        let names: BTreeSet<_> =
            names.into_iter().filter_map(|name| normalize_hostname(&name)).collect();
        self.change(|rules| rules.own_names.extend(names));
    }

    /// Adds the names of the host at `address`, on another thread: a name server may take seconds
    /// to answer.
    pub fn resolve_names(&self, address: Ipv4Addr) {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        self.add_names([host.clone()]);
        let control = self.clone();
        let resolve = move || {
            let hints = AddrInfoHints { flags: CANONICAL_NAME, ..AddrInfoHints::default() };
            let found = getaddrinfo(Some(&host), None, Some(hints)).into_iter().flatten();
            control.add_names(found.flatten().filter_map(|found| found.canonname));
            control.add_names(lookup_addr(&address.into()));
        };
        let thread = std::thread::Builder::new().name("overlay-names".to_owned()).spawn(resolve);
        if let Err(reason) = thread {
            log::warn!("resolve the names of this host: {reason}: requests must use its address");
        }
    }

    /// Decides whether a request may have this access. Returns the client.
    ///
    /// # Errors
    /// The refusal.
    pub fn authorize(&self, request: &Request, access: Access) -> Result<Author, Box<Denial>> {
        let rules = Arc::clone(&self.0.read());
        rules.authorize(request, access)
    }

    fn change(&self, change: impl FnOnce(&mut AccessRules)) {
        change(Arc::make_mut(&mut self.0.write()));
    }
}
