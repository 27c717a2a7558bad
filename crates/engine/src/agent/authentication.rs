//! What the agent knows about the authentication of its master. The sessions themselves are in
//! [`crate::authentication`], since they seal the bytes of messages.

use overlay_types::addr::Upid;
use overlay_types::protocol::{
    AuthenticationMode, AuthenticationRefusal, AuthenticityFault, MessageKind, Principal,
};

use super::Agent;
use super::command::Command;
use super::health::UNANSWERED_MAX;
use super::settings::AuthenticationSettings;
use super::view::AuthenticationHealth;
use crate::authentication::AuthenticationStatus;
use crate::state_machine::should_log_sample;

/// The authentication of the master, for an agent with a credential.
#[derive(Debug)]
pub(super) struct Authentication {
    mode: AuthenticationMode,
    principal: Principal,
    status: AuthenticationStatus,
    /// Whether the state of the agent says that a master has authenticated.
    is_remembered: bool,
}

impl Authentication {
    pub(super) fn new(settings: &AuthenticationSettings) -> Self {
        let was_authenticated = settings.was_authenticated;
        Self {
            mode: settings.mode,
            principal: settings.credential.principal.clone(),
            status: AuthenticationStatus { was_authenticated, ..AuthenticationStatus::default() },
            is_remembered: was_authenticated,
        }
    }

    /// Returns whether the agent accepts a master that does not authenticate.
    fn permits_unauthenticated(&self) -> bool {
        self.mode == AuthenticationMode::Permitted && !self.status.was_authenticated
    }

    /// Returns whether the current master has authenticated.
    pub(super) const fn is_authenticated(&self) -> bool {
        self.status.is_authenticated
    }

    pub(super) fn health(&self) -> AuthenticationHealth {
        AuthenticationHealth {
            mode: self.mode,
            principal: self.principal.to_string(),
            is_master_authenticated: self.status.is_authenticated,
            was_master_authenticated: self.status.was_authenticated,
        }
    }

    /// Returns a sentence if the master does not authenticate, and why.
    pub(super) fn problem(&self, master: &Upid) -> Option<String> {
        let principal = &self.principal;
        let status = &self.status;
        if status.is_authenticated {
            return None;
        }
        match status.refusal {
            Some(AuthenticationRefusal::WrongCredential) => Some(format!(
                "master {master} has no principal '{principal}' with the secret of this agent: \
                 compare the file of 'credential' with the file of 'credentials' of the master"
            )),
            _ if self.permits_unauthenticated() => None,
            Some(AuthenticationRefusal::NoCredentials) => Some(format!(
                "master {master} has no credentials, and this agent accepts only a master that \
                 authenticates: set 'credentials' of the master"
            )),
            Some(AuthenticationRefusal::Other) => Some(format!(
                "master {master} does not authenticate this agent: see its log, since this version \
                 does not know the reason"
            )),
            None if status.unanswered > UNANSWERED_MAX => Some(format!(
                "master {master} has not answered {UNANSWERED_MAX} requests for authentication: if \
                 it is a C++ module or a former version, update it, or set 'authentication' of this \
                 agent to permitted"
            )),
            None => None,
        }
    }
}

impl Agent {
    /// Notes another status of the session with the master.
    pub(super) fn set_authentication(&mut self, status: AuthenticationStatus) {
        let Some(authentication) = &mut self.authentication else { return };
        let master = self.registration.master();
        let former = master.and_then(|master| authentication.problem(master));
        if status.is_authenticated && !authentication.status.is_authenticated {
            let name = master.map(ToString::to_string).unwrap_or_default();
            log::info!("master {name} has authenticated");
        }
        if status.was_authenticated && !authentication.is_remembered {
            authentication.is_remembered = true;
            self.commands.push_back(Command::RememberAuthentication);
        }
        authentication.status = status;
        let problem = master.and_then(|master| authentication.problem(master));
        if let Some(problem) = problem.filter(|problem| former.as_ref() != Some(problem)) {
            log::warn!("{problem}");
        }
    }

    /// Notes another credential. The agent authenticates with it at once.
    pub(super) fn set_principal(&mut self, principal: Principal) {
        if let Some(authentication) = &mut self.authentication {
            authentication.principal = principal;
        }
    }

    /// Counts a message that is not authentic, and logs a sample of such messages.
    pub(super) fn count_unauthentic(
        &mut self,
        from: &Upid,
        kind: MessageKind,
        fault: &AuthenticityFault,
    ) {
        self.counters.unauthentic_messages_refused += 1;
        let count = self.counters.unauthentic_messages_refused;
        if should_log_sample(count) {
            log::warn!("refused {kind} from {from}: {fault} ({count} refused since the start)");
        }
    }
}
