//! The sessions of a master with its agents.

use std::collections::HashMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

use overlay_types::addr::Upid;
use overlay_types::protocol::{
    AuthenticateAgent, AuthenticationChallenge, AuthenticationRefusal, AuthenticityFault,
    MasterNonce, MessageKind, Nonce, Principal, Seal, SessionOpening, SharedSecret, SharedSecrets,
};

use super::keys::{Channel, ContentDigest, End, Key};

/// The sessions of a master with its agents. Each agent has at most one.
#[derive(Debug)]
pub struct MasterSessions {
    /// `None` without credentials: no message is sealed or checked.
    secrets: Option<Arc<SharedSecrets>>,
    cookies: Key,
    /// The number of the last challenge.
    last: u64,
    /// No challenge up to this number opens a session any more.
    closed: u64,
    sessions: HashMap<Ipv4Addr, Session>,
}

/// The session with one agent.
struct Session {
    agent: Upid,
    principal: Principal,
    secret: SharedSecret,
    channel: Channel,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "session {} of {}", self.channel.session(), self.agent)
    }
}

impl MasterSessions {
    /// Creates the sessions of a process. `seed` is random and secret: the cookies depend on it.
    #[must_use]
    pub fn new(secrets: Option<Arc<SharedSecrets>>, seed: &[u8; 32]) -> Self {
        let (cookies, sessions) = (Key::new(seed), HashMap::new());
        Self { secrets, cookies, last: 0, closed: 0, sessions }
    }

    /// Replaces the secrets. Sessions whose secret is removed end.
    pub fn set_secrets(&mut self, secrets: Option<Arc<SharedSecrets>>) {
        self.sessions.retain(|_, session| {
            let valid = secrets.as_ref().map(|secrets| secrets.of(&session.principal));
            valid.is_some_and(|valid| valid.contains(&session.secret))
        });
        self.closed = self.last;
        self.secrets = secrets;
    }

    /// Returns whether messages are sealed and checked.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.secrets.is_some()
    }

    /// Answers a request for a session. Keeps nothing but the number of challenges.
    pub fn challenge(
        &mut self,
        from: &Upid,
        request: &AuthenticateAgent,
    ) -> AuthenticationChallenge {
        let answer = if self.is_on() {
            self.last += 1;
            let cookie = self.cookie(from, request, self.last);
            Ok(MasterNonce { session: self.last, cookie })
        } else {
            Err(AuthenticationRefusal::NoCredentials)
        };
        AuthenticationChallenge { agent_nonce: request.nonce, answer }
    }

    fn cookie(&self, from: &Upid, request: &AuthenticateAgent, session: u64) -> Nonce {
        let (ip, session) = (from.address.ip().octets(), session.to_be_bytes());
        let code = self.cookies.code(&cookie_parts(&ip, &session, request));
        let mut cookie = Nonce::default();
        cookie.copy_from_slice(&code[..size_of::<Nonce>()]);
        cookie
    }

    /// Checks the seal of a message. Returns the principal of the sender.
    ///
    /// # Errors
    /// Why the message is not authentic.
    pub fn authenticate(
        &mut self,
        from: &Upid,
        kind: MessageKind,
        content: &[u8],
        seal: &Seal,
    ) -> Result<Principal, AuthenticityFault> {
        let digest = ContentDigest::of(content);
        let current = self.sessions.get(from.address.ip()).map(|it| it.channel.session());
        if let Some(opening) = &seal.opening
            && current != Some(seal.session)
        {
            return self.open(from, opening, (kind, digest, seal), current.unwrap_or(0));
        }
        let session = self.sessions.get_mut(from.address.ip());
        let session = session.filter(|session| session.agent == *from);
        let session = session.ok_or(AuthenticityFault::UnknownSession)?;
        session.channel.accept(kind, digest, seal)?;
        Ok(session.principal.clone())
    }

    /// Opens a session by its first message, in the place of the session `current` of the agent.
    fn open(
        &mut self,
        from: &Upid,
        opening: &SessionOpening,
        (kind, digest, seal): (MessageKind, ContentDigest, &Seal),
        current: u64,
    ) -> Result<Principal, AuthenticityFault> {
        let SessionOpening { request, cookie } = opening;
        let (ip, number) = (from.address.ip().octets(), seal.session.to_be_bytes());
        let is_new = seal.session > current.max(self.closed);
        if !is_new || !self.cookies.is_code(&cookie_parts(&ip, &number, request), cookie) {
            return Err(AuthenticityFault::UnknownSession);
        }
        let nonce = MasterNonce { session: seal.session, cookie: *cookie };
        let secrets = self.secrets.clone().unwrap_or_default();
        for secret in secrets.of(&request.principal) {
            let mut channel = Channel::new(End::Master, secret, request, &nonce);
            if channel.accept(kind, digest, seal).is_ok() {
                let (agent, principal) = (from.clone(), request.principal.clone());
                let secret = secret.clone();
                let session = Session { agent, principal, secret, channel };
                self.sessions.insert(*from.address.ip(), session);
                return Ok(request.principal.clone());
            }
        }
        Err(AuthenticityFault::WrongCredential(request.clone()))
    }

    /// Seals a message that is sent now. Returns `None` if there is no session with the agent.
    /// `digest` returns the digest of the content.
    pub fn seal(
        &mut self,
        to: &Upid,
        kind: MessageKind,
        digest: impl FnOnce() -> ContentDigest,
    ) -> Option<Seal> {
        // A challenge begins another session, and has to be readable without the current one.
        if kind == MessageKind::AuthenticationChallenge {
            return None;
        }
        let session = self.sessions.get_mut(to.address.ip())?;
        (session.agent == *to).then(|| session.channel.seal(kind, digest(), None))
    }
}

/// Returns what a cookie covers. Only the principal, which is last, has no fixed length.
fn cookie_parts<'a>(
    ip: &'a [u8; 4],
    session: &'a [u8; 8],
    request: &'a AuthenticateAgent,
) -> [&'a [u8]; 4] {
    [ip, session, &request.nonce, request.principal.as_str().as_bytes()]
}
