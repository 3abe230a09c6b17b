//! Explores orders of events: see docs/explanation/testing.md.
//!
//!     explore replay WORLD PLAN     one run, with a line for each moment
//!     explore strikes WORLD...      each kind of strike at each moment
//!     explore switches N WORLD...   every plan with at most N switches
//!     explore kills N WORLD...      every plan with at most N switches and a kill
//!     explore seeds FROM TO [WORLD...]
//!     explore hunt [WORLD...]       all of them, until something is wrong

use std::process::ExitCode;

use kvm_sriov_tests::explore::run::{ByPlan, run};
use kvm_sriov_tests::explore::scheduler::Choice;
use kvm_sriov_tests::explore::search::Search;
use kvm_sriov_tests::explore::world::World;
use kvm_sriov_tests::explore::{LARGE, STRIKES, WORLDS};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match explore(&args) {
        Ok(is_well) => ExitCode::from(u8::from(!is_well)),
        Err(what) => {
            eprintln!("explore: {what}");
            ExitCode::from(2)
        }
    }
}

fn explore(args: &[String]) -> Result<bool, String> {
    let all: Vec<&str> = WORLDS.iter().chain(&LARGE).copied().collect();
    let parsed = |names: &[&str]| -> Result<Vec<World>, String> { names.iter().map(|name| name.parse()).collect() };
    let or = |names: &[String], without: &[&str]| match names {
        [] => parsed(without),
        names => names.iter().map(|name| name.parse()).collect(),
    };
    let worlds = |names: &[String]| or(names, &WORLDS);
    let number = |text: &String| text.parse::<u64>().map_err(|_| format!("\"{text}\" is no number"));
    let search = Search::new(20);
    match args {
        [what, world, plan] if what == "replay" => {
            let outcome = run(&world.parse()?, Box::new(ByPlan(plan.parse()?)), true);
            println!("{}", outcome.trace.join("\n"));
            println!("doubts: {:?}", outcome.doubts);
            println!("{}", outcome.wrong.as_deref().unwrap_or("all is well"));
            return Ok(outcome.wrong.is_none());
        }
        [what] if what == "hunt" => return Ok(hunt(&parsed(&WORLDS)?, &parsed(&all)?)),
        [what, rest @ ..] if what == "hunt" => return Ok(hunt(&worlds(rest)?, &worlds(rest)?)),
        [what, rest @ ..] if what == "strikes" => {
            worlds(rest)?.iter().for_each(|world| search.strikes(world, &STRIKES));
        }
        [what, most, rest @ ..] if what == "switches" || what == "kills" => {
            let most = usize::try_from(number(most)?).map_err(|error| error.to_string())?;
            let kinds = if what == "kills" { &[Choice::Kill][..] } else { &[] };
            worlds(rest)?.iter().for_each(|world| search.plans(world, most, kinds));
        }
        [what, from, to, rest @ ..] if what == "seeds" => search.seeds(&or(rest, &all)?, number(from)?..number(to)?),
        _ => return Err("what? replay, strikes, switches, kills, seeds or hunt".into()),
    }
    let found = search.found();
    println!("{found}");
    Ok(found.failures.is_empty())
}

/// Looks for one failure.
fn hunt(small: &[World], all: &[World]) -> bool {
    let search = Search::new(1);
    search.hunt(small, all, &STRIKES);
    let found = search.found();
    println!("{found}");
    found.failures.is_empty()
}
