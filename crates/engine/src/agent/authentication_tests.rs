//! The agent with a credential.

use overlay_types::protocol::{
    AgentCredential, AuthenticationMode, AuthenticationRefusal, AuthenticityFault, MessageKind,
    SharedSecret,
};

use super::tests::{MASTER, NOTHING, SECOND, World};
use super::*;
use crate::authentication::AuthenticationStatus;

fn credential(principal: &str) -> AgentCredential {
    let secret = SharedSecret::from_digest([1; 32]);
    AgentCredential { principal: principal.parse().unwrap(), secret }
}

fn world(mode: AuthenticationMode) -> World {
    let mut world = World::new();
    let was_authenticated = false;
    let credential = credential("agents");
    let settings = AuthenticationSettings { credential, mode, was_authenticated };
    world.agent.authentication = Some(Authentication::new(&settings));
    world
}

fn problems(world: &World) -> Vec<String> {
    world.agent.health(world.now).problems
}

#[test]
fn first_authentication_is_stored_once() {
    let mut world = world(AuthenticationMode::Permitted);
    world.detect();
    let status = AuthenticationStatus {
        is_authenticated: true,
        was_authenticated: true,
        ..AuthenticationStatus::default()
    };
    let stored = ["store that a master has authenticated"];
    assert_eq!(world.handle(Event::AuthenticationChanged(status.clone())), stored);
    let health = world.agent.health(world.now).authentication.unwrap();
    assert!(health.is_master_authenticated && health.was_master_authenticated);
    assert!(world.agent.metrics().is_master_authenticated);
    let lost = AuthenticationStatus { is_authenticated: false, ..status.clone() };
    assert_eq!(world.handle(Event::AuthenticationChanged(lost)), NOTHING);
    assert_eq!(world.handle(Event::AuthenticationChanged(status)), NOTHING);
}

#[test]
fn refused_authentication_is_a_problem_with_remedy() {
    let of = |mode, status: AuthenticationStatus| {
        let mut world = world(mode);
        world.detect();
        assert_eq!(world.handle(Event::AuthenticationChanged(status)), NOTHING);
        problems(&world)
    };
    let refused = |refusal| AuthenticationStatus {
        refusal: Some(refusal),
        ..AuthenticationStatus::default()
    };
    let wrong = refused(AuthenticationRefusal::WrongCredential);
    let sentence = "master overlay-master@10.0.0.1:5050 has no principal 'agents' with the secret \
                    of this agent: compare the file of 'credential' with the file of \
                    'credentials' of the master";
    assert_eq!(of(AuthenticationMode::Required, wrong.clone()), [sentence]);
    assert_eq!(of(AuthenticationMode::Permitted, wrong), [sentence]);
    let none = refused(AuthenticationRefusal::NoCredentials);
    let sentence = "master overlay-master@10.0.0.1:5050 has no credentials, and this agent accepts \
                    only a master that authenticates: set 'credentials' of the master";
    assert_eq!(of(AuthenticationMode::Required, none.clone()), [sentence]);
    assert_eq!(of(AuthenticationMode::Permitted, none.clone()), [""; 0]);
    let moved = AuthenticationStatus { was_authenticated: true, ..none };
    let mut world = world(AuthenticationMode::Permitted);
    world.detect();
    world.handle(Event::AuthenticationChanged(moved));
    assert_eq!(problems(&world), [sentence]);
    let unanswered = AuthenticationStatus { unanswered: 4, ..AuthenticationStatus::default() };
    let sentence = "master overlay-master@10.0.0.1:5050 has not answered 3 requests for \
                    authentication: if it is a C++ module or a former version, update it, or set \
                    'authentication' of this agent to permitted";
    assert_eq!(of(AuthenticationMode::Required, unanswered.clone()), [sentence]);
    assert_eq!(of(AuthenticationMode::Permitted, unanswered), [""; 0]);
}

#[test]
fn changed_credential_leads_to_registration() {
    let mut world = world(AuthenticationMode::Required);
    world.detect();
    world.now.elapsed += SECOND;
    let commands = world.handle(Event::CredentialChanged(credential("other")));
    assert!(
        commands.iter().any(|command| command.contains("RegisterAgentMessage")),
        "{commands:?}"
    );
    assert_eq!(world.agent.health(world.now).authentication.unwrap().principal, "other");
}

#[test]
fn unauthentic_message_is_counted() {
    let mut world = world(AuthenticationMode::Required);
    let from = MASTER.parse().unwrap();
    let (kind, fault) = (MessageKind::UpdateAgentOverlays, AuthenticityFault::NotSealed);
    assert_eq!(world.handle(Event::Unauthentic { from, kind, fault }), NOTHING);
    assert_eq!(world.agent.metrics().counters.unauthentic_messages_refused, 1);
}
