//! The jobs of agents for the kernels of their hosts, and foreign changes there.

use std::sync::Arc;
use std::time::Duration;

use overlay_engine::agent::{Event, Scope};

use super::{SimEvent, World};
use crate::invariants::{Fact, InvariantResult};
use crate::kernel::{Done, Job, JobOutcome, Kernel};

/// The longest delay until an agent is notified of a change.
const NOTIFICATION_DELAY: Duration = Duration::from_millis(50);

impl World {
    /// Begins a job of the kernel.
    pub(super) fn begin_kernel_job(&mut self, agent: usize, attempt: u64, job: Job) {
        let faults = self.has_faults.then_some(&self.scenario.faults);
        let (end, outcome) = Kernel::begin(self.now, &job, faults, &mut self.chance);
        if outcome != JobOutcome::Works {
            self.counts.add("fault: kernel refuses or fails", 1);
        }
        let run = self.agents[agent].run;
        let ends = SimEvent::KernelJobDone { agent, run, attempt, job: Box::new(job), outcome };
        self.queue.plan(end, ends);
    }

    pub(super) fn kernel_job_done(
        &mut self,
        (agent, run): (usize, u64),
        attempt: u64,
        job: &Job,
        outcome: JobOutcome,
    ) -> InvariantResult {
        let node = &mut self.agents[agent];
        if node.run != run {
            return Ok(());
        }
        let is_killed = node.process.is_none();
        let event = match job {
            Job::Inspect(claims) => Event::Inspected {
                attempt,
                underlay_mtu: None,
                result: node.kernel.inspect(claims, outcome),
            },
            Job::Program(desired, _) if is_killed => {
                // The job was killed with its agent, before or after its effect.
                if self.chance.is(0.5) {
                    let done = node.kernel.program_in_part(desired, &mut self.chance);
                    return self.programmed(agent, desired, &done);
                }
                return Ok(());
            }
            Job::Program(desired, scope) => {
                let done = node.kernel.program((desired, *scope), outcome, &mut self.chance);
                self.programmed(agent, desired, &done)?;
                Event::Programmed { attempt, result: done.result }
            }
        };
        self.deliver_to_agent(agent, run, event)
    }

    fn programmed(
        &mut self,
        agent: usize,
        desired: &Arc<overlay_types::tunnel::Desired>,
        done: &Done,
    ) -> InvariantResult {
        self.counts.add("kernel operations", done.operations.len() as u64);
        let node = &self.agents[agent];
        let (ip, kernel) = (node.ip, node.kernel.state());
        let fact = Fact::Programmed { agent: ip, desired, done, kernel };
        self.monitor.observe(self.now, &fact)
    }

    /// Makes a foreign change in the kernel of a host, of which the agent may be notified.
    pub(super) fn drift(&mut self, agent: usize, is_always_notified: bool) {
        let is_notified = is_always_notified || self.chance.is(0.8);
        let node = &mut self.agents[agent];
        if !node.kernel.drift(&mut self.chance) || !is_notified {
            return;
        }
        let run = node.run;
        // One notification until the agent has observed the kernel.
        if node.process.is_some() && !std::mem::replace(&mut node.kernel.is_notified, true) {
            let scope = if self.chance.is(0.9) { Scope::Kernel } else { Scope::Everything };
            let wait = self.chance.time_up_to(NOTIFICATION_DELAY);
            self.plan_in(wait, SimEvent::Drifted { agent, run, scope });
        }
    }
}
