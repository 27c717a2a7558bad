//! What agents do with the kernels of their hosts, and what others do there.

use std::sync::Arc;
use std::time::Duration;

use mesos_network_overlay::agent::{Event, Scope};

use super::{Happening, World};
use crate::invariants::{Fact, Verdict};
use crate::kernel::{Done, Fate, Job, Kernel};

/// How long the news of a change takes to an agent at most.
const NEWS: Duration = Duration::from_millis(50);

impl World {
    /// An agent begins a job of the kernel.
    pub(super) fn begin_kernel_job(&mut self, agent: usize, attempt: u64, job: Job) {
        let faults = self.is_troubled.then_some(&self.scenario.faults);
        let (end, fate) = Kernel::begin(self.now, &job, faults, &mut self.chance);
        if fate != Fate::Works {
            self.counts.add("fault: kernel refuses or fails", 1);
        }
        let run = self.agents[agent].run;
        let ends = Happening::KernelJobEnds { agent, run, attempt, job: Box::new(job), fate };
        self.queue.plan(end, ends);
    }

    pub(super) fn kernel_job_ends(
        &mut self,
        (agent, run): (usize, u64),
        attempt: u64,
        job: &Job,
        fate: Fate,
    ) -> Verdict {
        let node = &mut self.agents[agent];
        if node.run != run {
            return Ok(());
        }
        let is_killed = node.process.is_none();
        let event = match job {
            Job::Inspect(claims) => {
                Event::Inspected { attempt, result: node.kernel.inspect(claims, fate) }
            }
            Job::Program(desired, _) if is_killed => {
                // Killed with its agent, in time or not.
                if self.chance.is(0.5) {
                    let done = node.kernel.program_in_part(desired, &mut self.chance);
                    return self.programmed(agent, desired, &done);
                }
                return Ok(());
            }
            Job::Program(desired, scope) => {
                let done = node.kernel.program((desired, *scope), fate, &mut self.chance);
                self.programmed(agent, desired, &done)?;
                Event::Programmed { attempt, result: done.result }
            }
        };
        self.tell_agent(agent, run, event)
    }

    fn programmed(
        &mut self,
        agent: usize,
        desired: &Arc<mesos_network_overlay::tunnel::Desired>,
        done: &Done,
    ) -> Verdict {
        self.counts.add("kernel operations", done.operations.len() as u64);
        let node = &self.agents[agent];
        let (ip, kernel) = (node.ip, node.kernel.state());
        let fact = Fact::Programmed { agent: ip, desired, done, kernel };
        self.monitor.observe(self.now, &fact)
    }

    /// Somebody else changes something in the kernel of a host, and the agent hears of it or not.
    pub(super) fn drift(&mut self, agent: usize, is_always_told: bool) {
        let is_told = is_always_told || self.chance.is(0.8);
        let node = &mut self.agents[agent];
        if !node.kernel.drift(&mut self.chance) || !is_told {
            return;
        }
        let run = node.run;
        // Once, until it has looked at it.
        if node.process.is_some() && !std::mem::replace(&mut node.kernel.is_told, true) {
            let scope = if self.chance.is(0.9) { Scope::Kernel } else { Scope::Everything };
            let wait = self.chance.time_up_to(NEWS);
            self.plan_in(wait, Happening::Drifted { agent, run, scope });
        }
    }
}
