//! Who leads: an election in which masters keep sessions. A session that is lost is noticed by the
//! others first, and by who lost it a little later; agents hear of it when they do.

use std::time::Duration;

use super::{Happening, World};

/// How long a dead master is still believed to live.
const SESSION: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));
/// How long a master does not notice that its session was lost. Shorter than any `reuse_after`.
const UNAWARE: Duration = Duration::from_secs(30);
/// How long the news takes to an agent at most.
const NEWS: Duration = Duration::from_secs(60);

/// The election.
pub(crate) struct Election {
    pub(crate) leader: Option<usize>,
    /// Who has a session, in the order in which they came.
    candidates: Vec<usize>,
    /// What each master was told last.
    told: Vec<bool>,
}

/// What the election does.
pub(crate) enum Turn {
    /// The session of this life of a master ends.
    Ends { master: usize, run: u64 },
    /// Somebody is elected, if nobody leads.
    Choose,
}

impl Election {
    pub(crate) fn new(masters: usize) -> Self {
        Self { leader: None, candidates: Vec::new(), told: vec![false; masters] }
    }
}

impl World {
    /// A master has been started: its former session has ended.
    pub(super) fn master_joins(&mut self, master: usize) {
        self.session_ends(master);
        self.election.told[master] = false;
        self.election.candidates.push(master);
        self.plan_choice();
    }

    /// A master was killed: its session goes on for a while.
    pub(super) fn master_dies(&mut self, master: usize) {
        let run = self.masters[master].run;
        let wait = self.chance.time_between(SESSION.0, SESSION.1);
        self.plan_in(wait, Happening::Election(Turn::Ends { master, run }));
    }

    /// The leader loses its session and does not know it yet; then it comes back as a candidate.
    pub(super) fn lose_session(&mut self) {
        let Some(master) = self.election.leader else {
            return;
        };
        self.note(|| format!("master {master} loses its session"));
        self.session_ends(master);
        self.election.candidates.push(master);
    }

    pub(super) fn turn_election(&mut self, turn: Turn) {
        match turn {
            Turn::Ends { master, run } => {
                if self.masters[master].run == run && self.masters[master].process.is_none() {
                    self.session_ends(master);
                }
            }
            Turn::Choose => {
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
        self.plan_in(wait, Happening::Election(Turn::Choose));
    }

    /// The news of who leads goes to everybody.
    fn announce(&mut self) {
        for master in 0..self.masters.len() {
            let leads = self.election.leader == Some(master);
            if self.election.told[master] == leads || self.masters[master].process.is_none() {
                continue;
            }
            self.election.told[master] = leads;
            let run = self.masters[master].run;
            let longest = if leads { Duration::from_secs(1) } else { UNAWARE };
            let wait = self.news_takes(longest);
            // What one is told comes in its order.
            let when = self.masters[master].last_news.max(self.now + wait);
            self.masters[master].last_news = when;
            self.queue.plan(when, Happening::Elected { master, run, leads });
        }
        for agent in 0..self.agents.len() {
            if self.agents[agent].process.is_some() {
                let run = self.agents[agent].run;
                self.plan_detection(agent, run);
            }
        }
    }

    /// An agent hears who leads, then.
    pub(super) fn plan_detection(&mut self, agent: usize, run: u64) {
        let wait = self.news_takes(NEWS);
        self.plan_in(wait, Happening::Detected { agent, run });
    }

    fn news_takes(&mut self, longest: Duration) -> Duration {
        let is_slow = self.is_troubled && self.chance.is(0.2);
        let longest = if is_slow { longest } else { Duration::from_millis(200) };
        self.chance.time_up_to(longest)
    }
}
