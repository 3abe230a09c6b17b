//! Makes inputs of those in a corpus. The same corpus gives the same inputs.

use std::path::Path;

use fastrand::Rng;

/// The longest input that is made, in bytes.
const LONGEST: usize = 64 * 1024;

/// Makes inputs.
pub struct Damage {
    corpus: Vec<Vec<u8>>,
    words: Vec<Vec<u8>>,
    random: Rng,
}

impl Damage {
    /// * `name` - of the target; each target has its own sequence of inputs
    /// * `corpus` - at least one input
    /// * `words` - what is put into them
    pub fn new(name: &str, corpus: Vec<Vec<u8>>, words: Vec<Vec<u8>>) -> Self {
        assert!(!corpus.is_empty(), "{name} has no corpus");
        let seed = name.bytes().fold(0_u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
        Self { corpus, words, random: Rng::with_seed(seed) }
    }

    /// The next input.
    pub fn input(&mut self) -> Vec<u8> {
        let mut input = self.random.choice(&self.corpus).unwrap().clone();
        for _ in 0..self.random.usize(1..=4) {
            self.damage(&mut input);
        }
        input.truncate(LONGEST);
        input
    }

    fn damage(&mut self, input: &mut Vec<u8>) {
        let random = &mut self.random;
        let at = random.usize(..=input.len());
        let end = (at + random.usize(..=16)).min(input.len());
        match random.u8(..7) {
            0 => drop(input.drain(at..end)),
            1 => input.truncate(at),
            2 => drop(input.splice(at..end, [random.u8(..)])),
            3 => {
                let word = random.choice(&self.words).unwrap().iter().copied();
                input.splice(at..if random.bool() { at } else { end }, word);
            }
            4 => {
                let part = input[at..end].to_vec();
                let to = random.usize(..=input.len());
                input.splice(to..to, part);
            }
            5 => {
                let other = random.choice(&self.corpus).unwrap();
                let from = random.usize(..=other.len());
                input.splice(at.., other[from..].iter().copied());
            }
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << random.u8(..8);
                }
            }
        }
    }
}

/// The words of libFuzzer's dictionary: tests/fuzz/words.
pub fn words() -> Vec<Vec<u8>> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("words")).unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix('"')?.strip_suffix('"'));
    lines.map(unescaped).collect()
}

/// A word without libFuzzer's escapes: `\\`, `\"` and `\xAB`.
fn unescaped(word: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), word.bytes());
    while let Some(byte) = rest.next() {
        let escaped = if byte == b'\\' { rest.next() } else { None };
        bytes.push(match escaped {
            Some(b'x') => {
                let digits: String = rest.by_ref().take(2).map(char::from).collect();
                u8::from_str_radix(&digits, 16).unwrap()
            }
            Some(other) => other,
            None => byte,
        });
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_corpus_gives_the_same_inputs_and_another_target_others() {
        let inputs = |name| {
            let mut damage = Damage::new(name, vec![b"<a b='c'/>".to_vec()], vec![b"<x>".to_vec()]);
            (0..50).map(|_| damage.input()).collect::<Vec<_>>()
        };
        assert_eq!(inputs("one"), inputs("one"));
        assert_ne!(inputs("one"), inputs("two"));
        assert!(inputs("one").iter().filter(|input| input.starts_with(b"<a")).count() > 10);
    }

    #[test]
    fn words_are_those_of_libfuzzer() {
        assert_eq!(unescaped(r#"a\\b\"c\x0a"#), b"a\\b\"c\n");
        assert!(words().len() > 50 && words().contains(&b"\n".to_vec()));
    }
}
