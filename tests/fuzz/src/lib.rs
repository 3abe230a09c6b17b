//! Fuzzing: what the driver reads from outside, given damaged and invented inputs.
//!
//! A target is a parser, what is done with its result, and what must be true then. `corpus/<target>` has inputs that
//! reach different code; `run` finds more of them with libFuzzer. A plain `cargo test` runs every target on its corpus
//! and on a fixed number of inputs that are made of the corpus.
//!
//! * `targets` - the targets by subject
//! * `changes` - what differs between two XML documents
//! * `damage` - makes inputs of those in a corpus
//! * `splice` - the rewrites of the core on generated documents

// A test stops at the first surprise.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

pub mod changes;
pub mod damage;
#[cfg(test)]
mod splice;
mod targets;

pub use targets::{Target, targets};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::damage::{Damage, words};

    /// How many inputs are made for each target. A target that is slow has fewer.
    const MADE: usize = 1000;

    fn corpora() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
    }

    fn names(dir: &Path) -> BTreeSet<String> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn corpus(target: &Target) -> Vec<Vec<u8>> {
        let dir = corpora().join(target.name);
        names(&dir).iter().map(|name| fs::read(dir.join(name)).unwrap()).collect()
    }

    #[test]
    fn every_target_has_a_corpus_and_every_corpus_a_target() {
        let targets: BTreeSet<String> = targets().iter().map(|target| target.name.to_owned()).collect();
        assert_eq!(names(&corpora()), targets);
        for target in &targets {
            assert!(!names(&corpora().join(target)).is_empty(), "{target}");
        }
    }

    #[test]
    fn every_target_takes_its_corpus() {
        for target in targets() {
            corpus(&target).iter().for_each(|input| target.check(input));
        }
    }

    #[test]
    fn every_target_takes_what_is_made_of_its_corpus() {
        for target in targets() {
            let mut damage = Damage::new(target.name, corpus(&target), words());
            (0..MADE / target.cost).for_each(|_| target.check(&damage.input()));
        }
    }
}
