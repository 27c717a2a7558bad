//! The session of an agent with its master.

use std::mem;
use std::net::SocketAddrV4;

use overlay_types::addr::Upid;
use overlay_types::mutation::Mutation;
use overlay_types::protocol::{
    AgentCredential, AuthenticateAgent, AuthenticationChallenge, AuthenticationMode,
    AuthenticationRefusal, AuthenticityFault, Message, MessageKind, Nonce, Seal, SessionOpening,
};

use super::keys::{Channel, ContentDigest, End, Key};

/// The session of an agent with its master. Holds a registration back until the master has answered
/// the request for a session.
#[derive(Debug)]
pub struct AgentSession {
    /// `None` without a credential: no message is sealed or checked.
    credential: Option<AgentCredential>,
    mode: AuthenticationMode,
    nonces: Key,
    /// The number of nonces.
    requests: u64,
    /// The master that the rest belongs to.
    master: Option<Upid>,
    /// The last request for a session.
    request: Option<Request>,
    channel: Option<Channel>,
    /// The opening of the session, until the first message has it.
    opening: Option<SessionOpening>,
    /// Whether an authenticated message has arrived since the last registration.
    is_answered: bool,
    status: AuthenticationStatus,
}

/// A request for a session.
#[derive(Debug)]
struct Request {
    message: AuthenticateAgent,
    /// The registration that waits for the challenge, and what follows it. Empty after the challenge.
    held: Vec<Message>,
}

/// What an agent knows about its authentication, for its operator.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthenticationStatus {
    /// Whether the current master has sent an authenticated message.
    pub is_authenticated: bool,
    /// Whether a master has authenticated since the state of this agent was created.
    pub was_authenticated: bool,
    /// Why the current master refused the last request.
    pub refusal: Option<AuthenticationRefusal>,
    /// Consecutive requests that the current master has not answered.
    pub unanswered: u32,
}

impl AgentSession {
    /// Creates the session of a process. `seed` is random and secret: the nonces depend on it.
    /// `was_authenticated` tells whether a master has authenticated before.
    #[must_use]
    pub fn new(
        credential: Option<AgentCredential>,
        mode: AuthenticationMode,
        was_authenticated: bool,
        seed: &[u8; 32],
    ) -> Self {
        Self {
            credential,
            mode,
            nonces: Key::new(seed),
            requests: 0,
            master: None,
            request: None,
            channel: None,
            opening: None,
            is_answered: false,
            status: AuthenticationStatus { was_authenticated, ..AuthenticationStatus::default() },
        }
    }

    /// Returns whether messages are sealed and checked.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.credential.is_some()
    }

    /// Returns what the agent knows about its authentication.
    #[must_use]
    pub const fn status(&self) -> &AuthenticationStatus {
        &self.status
    }

    /// Replaces the credential. The next registration begins another session with it.
    pub fn set_credential(&mut self, credential: AgentCredential) {
        self.credential = Some(credential);
        self.end();
    }

    /// Notes that the link to the process at `address` has ended.
    pub fn link_ended(&mut self, address: SocketAddrV4) {
        if self.master.as_ref().is_some_and(|master| master.address == address) {
            self.end();
        }
    }

    fn end(&mut self) {
        (self.request, self.channel, self.opening) = (None, None, None);
        self.is_answered = false;
        self.status.is_authenticated = false;
    }

    /// Returns whether an unauthenticated master is accepted.
    const fn permits_unauthenticated(&self) -> bool {
        matches!(self.mode, AuthenticationMode::Permitted) && !self.status.was_authenticated
    }

    /// Returns what to send now in the place of `message`, in this order. A registration waits for a
    /// session with the master. Other messages without a session are dropped: the state machine
    /// repeats them.
    pub fn send(&mut self, to: &Upid, message: Message) -> Vec<Message> {
        let Some(credential) = &self.credential else {
            return vec![message];
        };
        let principal = credential.principal.clone();
        if self.master.as_ref() != Some(to) {
            self.end();
            self.master = Some(to.clone());
            (self.status.refusal, self.status.unanswered) = (None, 0);
        }
        let is_registration = message.kind() == MessageKind::RegisterAgent;
        let is_held = if is_registration {
            let needs_session = self.channel.is_none() || !self.is_answered;
            self.is_answered = false;
            needs_session
        } else {
            let held = self.request.as_ref().is_some_and(|request| !request.held.is_empty());
            message.kind() == MessageKind::HeldAddresses && held
        };
        let has_session = self.channel.is_some() && !is_held;
        let is_sent = has_session || self.permits_unauthenticated();
        let mut messages = Vec::new();
        if is_held && is_registration {
            let request = AuthenticateAgent { principal, nonce: self.next_nonce() };
            self.status.unanswered = self.status.unanswered.saturating_add(1);
            messages.push(Message::AuthenticateAgent(request.clone()));
            self.request = Some(Request { message: request, held: vec![message.clone()] });
        } else if is_held && let Some(request) = &mut self.request {
            request.held.push(message.clone());
        }
        messages.extend(is_sent.then_some(message));
        messages
    }

    fn next_nonce(&mut self) -> Nonce {
        self.requests += 1;
        let code = self.nonces.code(&[&self.requests.to_be_bytes()]);
        let mut nonce = Nonce::default();
        nonce.copy_from_slice(&code[..size_of::<Nonce>()]);
        nonce
    }

    /// Handles the answer of the master to the last request. Returns the held messages, which open
    /// the session.
    ///
    /// # Errors
    /// If it does not answer the last request, or if that was answered before.
    pub fn receive_challenge(
        &mut self,
        from: &Upid,
        challenge: &AuthenticationChallenge,
    ) -> Result<Vec<Message>, AuthenticityFault> {
        let is_of_master = self.master.as_ref() == Some(from);
        let request = self
            .request
            .as_mut()
            .filter(|request| is_of_master && request.message.nonce == challenge.agent_nonce);
        let (Some(request), Some(credential)) = (request, &self.credential) else {
            return Err(AuthenticityFault::UnknownSession);
        };
        let held = mem::take(&mut request.held);
        self.status.unanswered = 0;
        match challenge.answer {
            // The master also refuses the opening that follows the challenge.
            Err(refusal) => {
                self.status.refusal = Some(refusal);
                (self.channel, self.opening) = (None, None);
                Ok(Vec::new())
            }
            Ok(_) if held.is_empty() => Err(AuthenticityFault::Replayed),
            Ok(nonce) => {
                let message = request.message.clone();
                let channel = Channel::new(End::Agent, &credential.secret, &message, &nonce);
                self.channel = Some(channel);
                self.opening = Some(SessionOpening { request: message, cookie: nonce.cookie });
                self.status.is_authenticated = false;
                Ok(held)
            }
        }
    }

    /// Seals a message that is sent now. Returns `None` without a session. `digest` returns the
    /// digest of the content.
    pub fn seal(
        &mut self,
        kind: MessageKind,
        digest: impl FnOnce() -> ContentDigest,
    ) -> Option<Seal> {
        if kind == MessageKind::AuthenticateAgent {
            return None;
        }
        let opening = self.opening.take();
        self.channel.as_mut().map(|channel| channel.seal(kind, digest(), opening))
    }

    /// Checks that a message is authentic, or needs not be.
    ///
    /// # Errors
    /// Why the message is refused.
    pub fn authenticate(
        &mut self,
        from: &Upid,
        kind: MessageKind,
        content: &[u8],
        seal: Option<&Seal>,
    ) -> Result<(), AuthenticityFault> {
        // The nonce in a challenge is checked.
        if !self.is_on() || kind == MessageKind::AuthenticationChallenge {
            return Ok(());
        }
        let Some(seal) = seal else {
            let is_permitted =
                self.permits_unauthenticated() || Mutation::AcceptUnsealedMessages.is_on();
            return if is_permitted { Ok(()) } else { Err(AuthenticityFault::NotSealed) };
        };
        let is_of_master = self.master.as_ref() == Some(from);
        let channel = self.channel.as_mut().filter(|_| is_of_master);
        let channel = channel.ok_or(AuthenticityFault::UnknownSession)?;
        channel.accept(kind, ContentDigest::of(content), seal)?;
        // A refusal would end the session.
        self.request.take_if(|request| request.held.is_empty());
        self.is_answered = true;
        self.status.refusal = None;
        (self.status.is_authenticated, self.status.was_authenticated) = (true, true);
        Ok(())
    }
}
