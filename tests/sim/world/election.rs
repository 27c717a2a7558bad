//! The election, in which masters keep sessions. The other masters notice a lost session first, and
//! the master that lost it a little later. Each agent notices a new leader after a random delay.

use std::time::Duration;

use super::{SimEvent, World};

/// The session timeout after the death of a master.
const SESSION: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));
/// The longest time until a master notices its lost session. Shorter than any `reuse_after`.
const UNAWARE_MAX: Duration = Duration::from_secs(30);
/// The longest delay until an agent is notified.
const NOTIFICATION_MAX: Duration = Duration::from_secs(60);

/// The election.
pub(crate) struct Election {
    pub(crate) leader: Option<usize>,
    /// The masters with a session, in the order of their sessions.
    candidates: Vec<usize>,
    /// The last notification of each master.
    notified: Vec<bool>,
}

/// An event of the election.
pub(crate) enum ElectionEvent {
    /// The session of this process of a master ends.
    Ends { master: usize, run: u64 },
    /// A master is elected, if none leads.
    Choose,
}

impl Election {
    pub(crate) fn new(masters: usize) -> Self {
        Self { leader: None, candidates: Vec::new(), notified: vec![false; masters] }
    }
}

impl World {
    /// Adds a started master to the candidates. Its former session has ended.
    pub(super) fn master_joins(&mut self, master: usize) {
        self.session_ends(master);
        self.election.notified[master] = false;
        self.election.candidates.push(master);
        self.plan_choice();
    }

    /// Plans the end of the session of a killed master.
    pub(super) fn master_dies(&mut self, master: usize) {
        let run = self.masters[master].run;
        let wait = self.chance.time_between(SESSION.0, SESSION.1);
        self.plan_in(wait, SimEvent::Election(ElectionEvent::Ends { master, run }));
    }

    /// Ends the session of the leader, which does not notice yet, and makes it a candidate again.
    pub(super) fn lose_session(&mut self) {
        let Some(master) = self.election.leader else {
            return;
        };
        self.note(|| format!("master {master} loses its session"));
        self.session_ends(master);
        self.election.candidates.push(master);
    }

    pub(super) fn handle_election(&mut self, event: ElectionEvent) {
        match event {
            ElectionEvent::Ends { master, run } => {
                if self.masters[master].run == run && self.masters[master].process.is_none() {
                    self.session_ends(master);
                }
            }
            ElectionEvent::Choose => {
                if self.election.leader.is_none()
                    && let Some(&master) = self.election.candidates.first()
                {
                    self.election.leader = Some(master);
                    self.note(|| format!("master {master} is elected"));
                    self.announce();
                }
            }
        }
    }

    fn session_ends(&mut self, master: usize) {
        self.election.candidates.retain(|candidate| *candidate != master);
        if self.election.leader == Some(master) {
            self.election.leader = None;
            self.announce();
            self.plan_choice();
        }
    }

    fn plan_choice(&mut self) {
        let wait = self.chance.time_up_to(Duration::from_secs(2));
        self.plan_in(wait, SimEvent::Election(ElectionEvent::Choose));
    }

    /// Notifies all masters and agents of the leader.
    fn announce(&mut self) {
        for master in 0..self.masters.len() {
            let leads = self.election.leader == Some(master);
            if self.election.notified[master] == leads || self.masters[master].process.is_none() {
                continue;
            }
            self.election.notified[master] = leads;
            let run = self.masters[master].run;
            let longest = if leads { Duration::from_secs(1) } else { UNAWARE_MAX };
            let wait = self.notification_delay(longest);
            // The notifications of one master keep their order.
            let when = self.masters[master].last_notification.max(self.now + wait);
            self.masters[master].last_notification = when;
            self.queue.plan(when, SimEvent::Elected { master, run, leads });
        }
        for agent in 0..self.agents.len() {
            if self.agents[agent].process.is_some() {
                let run = self.agents[agent].run;
                self.plan_detection(agent, run);
            }
        }
    }

    /// Plans the notification of an agent.
    pub(super) fn plan_detection(&mut self, agent: usize, run: u64) {
        let wait = self.notification_delay(NOTIFICATION_MAX);
        self.plan_in(wait, SimEvent::Detected { agent, run });
    }

    fn notification_delay(&mut self, longest: Duration) -> Duration {
        let is_slow = self.has_faults && self.chance.is(0.2);
        let longest = if is_slow { longest } else { Duration::from_millis(200) };
        self.chance.time_up_to(longest)
    }
}
