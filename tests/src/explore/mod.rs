//! Explores orders of events: the real code of actions, agents, watchers and probes on model hosts, under one baton.
//!
//! * [`scheduler`] - the baton, simulated time, processes that can be killed at every step
//! * [`arena`] - the hosts, the links between them, and what must be true at every step
//! * [`world`] - small worlds: what is there at first, and which programs begin at the same time
//! * [`run`] - one run, and what must be true when everything has settled
//! * [`search`] - all plans of a kind, random plans, and how a plan that fails is made small

pub mod arena;
pub mod run;
pub mod scheduler;
pub mod search;
pub mod world;

use scheduler::Choice;

/// The worlds that are explored: two programs on one VM, or two VMs that want one VF, on two
/// hosts or three. Those that find most come first.
pub const WORLDS: [&str; 49] = [
    "runs:migrate1",
    "runs:migrate1+late2/1",
    "runs:save1+cancel1",
    "saved:restore1+probe1",
    "runs:migrate1+other2/1",
    "runs:save1+probe1",
    "runs:detach1+probe1",
    "slow:save1+probe1",
    "runs:attach1+probe1/3",
    "nothing:deploy1+other1/1",
    "saved:restore1+restore1",
    "nothing:deploy1+deploy1",
    "nothing:deploy1+probe1",
    "nothing:deploy1+cancel1",
    "runs:save1",
    "runs:save1+save1",
    "runs:save1+other1/1",
    "paused:save1+probe1",
    "saved:restore1",
    "saved:restore1+cancel1",
    "saved:restore1+other1/1",
    "saved:restore2+probe2",
    "runs:migrate1+migrate1",
    "runs:migrate1+probe1",
    "runs:migrate1+probe2",
    "runs:migrate1+cancel1",
    "runs:migrate1+cancel2",
    "runs:migrate1+save1",
    "paused:migrate1+probe2",
    "runs:attach1+attach1/3",
    "runs:attach1+cancel1/3",
    "litter:probe1+attach1/3",
    "runs:detach1+detach1",
    "runs:detach1+save1",
    "runs:take1+probe1",
    "runs:take1+cancel1",
    "snapshot:revert1+probe1",
    "snapshot:revert1+cancel1",
    "snapshot:migrate1+probe2",
    "runs:shutdown1+probe1",
    "runs:shutdown1+save1",
    "runs:reset1+save1",
    "runs:cancel1+other1/1",
    "slow:migrate1+probe1",
    "slow:detach1+probe1",
    "slow:take1+cancel1",
    "runs:migrate1+reset1",
    "both:migrate1+meet3/1",
    "runs:migrate1+back1+probe3",
];

/// Worlds with three programs, or with actions that follow each other. They have too many plans to try each.
pub const LARGE: [&str; 7] = [
    "saved:restore1+restore1+probe1",
    "saved:restore1+cancel1+restore1",
    "runs:again1+probe1/3",
    "runs:again1+probe1+probe1/3",
    "runs:cycle1+probe1",
    "both:migrate1+meet3",
    "both:migrate1+meet3+probe2/1",
];

/// What strikes at each moment of a program.
pub const STRIKES: [Choice; 12] = [
    Choice::Kill,
    Choice::Stall(40),
    Choice::Stall(70),
    Choice::Stall(200),
    Choice::Cut(40),
    Choice::Cut(200),
    Choice::Restart(0),
    Choice::Restart(1),
    Choice::Restart(2),
    Choice::PowerOff(0),
    Choice::PowerOff(1),
    Choice::PowerOff(2),
];
