//! A bounded run of one target: all of its corpus, then mutations of it.
//!
//! Deterministic: the same corpus, seed and number of iterations try the same inputs. Without a
//! compiler's help it does not know which code an input reaches, so it finds what is a few changes
//! away from the corpus; put there what should be near.

use std::fmt;
use std::panic::{self, AssertUnwindSafe};

use crate::Target;
use crate::mutate::Mutator;

/// How much is tried.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Campaign {
    /// Decides which mutations; those of one target do not depend on the other targets.
    pub seed: u64,
    /// How many mutations.
    pub iterations: u64,
}

impl Campaign {
    /// From `FUZZ_SEED` (1) and `FUZZ_ITERATIONS` (1000).
    ///
    /// # Panics
    ///
    /// When one of them is no number: a typing error must not become a short run.
    pub fn from_env() -> Self {
        Self { seed: setting("FUZZ_SEED", 1), iterations: setting("FUZZ_ITERATIONS", 1000) }
    }

    /// Tries the corpus, in its order, and then mutations of it. Ends with the first input that
    /// makes the target panic.
    ///
    /// # Errors
    ///
    /// That input.
    pub fn run(&self, target: Target, corpus: &[Vec<u8>]) -> Result<(), Finding> {
        corpus.iter().try_for_each(|input| attempt(target, input))?;
        let mut mutator = Mutator::new(self.seed, corpus);
        (0..self.iterations).try_for_each(|_| attempt(target, &mutator.input()))
    }
}

fn setting(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, not a number"))
}

/// Tries one input.
///
/// # Errors
///
/// The input, when the target panics.
pub fn attempt(target: Target, input: &[u8]) -> Result<(), Finding> {
    // Nothing of the target outlives a call but what it only ever reads.
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    outcome.map_err(|panic| Finding {
        target: target.name,
        input: input.to_vec(),
        what: what(&*panic),
    })
}

fn what(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
}

/// An input that breaks a promise. Make it a file of the corpus, with the fix.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// The target's name.
    pub target: &'static str,
    /// The bytes.
    pub input: Vec<u8>,
    /// What the panic said.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, input, what } = self;
        let bytes = input.len();
        write!(f, "{target}: {what}\nthe {bytes} bytes are, in hex:\n{}\n", hex(input))?;
        write!(f, "again: cargo run -p fuzz-entry -- {target} HEX")
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of such a text, blanks left out; `None` when it is none.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> =
        text.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_digit(16)).collect();
    let digits = digits?;
    let byte = |pair: &[u32]| (pair[0] << 4 | pair[1]) as u8;
    digits.len().is_multiple_of(2).then(|| digits.chunks_exact(2).map(byte).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAMPAIGN: Campaign = Campaign { seed: 1, iterations: 2000 };

    /// Reads a length and believes it.
    fn credulous(data: &[u8]) {
        let Some((length, rest)) = data.split_first() else { return };
        let _ = &rest[..usize::from(*length)];
    }

    #[test]
    fn a_decoder_that_believes_a_length_is_found_and_the_input_shows_it() {
        let target = Target { name: "credulous", run: credulous };
        let corpus = [vec![3, 1, 2, 3]];
        let finding = CAMPAIGN.run(target, &corpus).unwrap_err();
        assert_eq!(attempt(target, &finding.input), Err(finding.clone()));
        assert!(finding.to_string().contains(&hex(&finding.input)), "{finding}");
        assert_eq!(CAMPAIGN.run(target, &corpus), Err(finding), "the same run again");
    }

    #[test]
    fn an_input_of_the_corpus_is_tried_as_it_is() {
        let target = Target { name: "picky", run: |data| assert_ne!(data, b"the one of 2^64") };
        let corpus = [b"another".to_vec(), b"the one of 2^64".to_vec()];
        let none = Campaign { iterations: 0, ..CAMPAIGN };
        assert_eq!(none.run(target, &corpus).unwrap_err().input, corpus[1]);
        assert_eq!(none.run(target, &corpus[..1]), Ok(()));
    }

    #[test]
    fn hex_is_read_as_it_is_written() {
        assert_eq!(from_hex(&hex(&[0, 0x7f, 0xff])), Some(vec![0, 0x7f, 0xff]));
        assert_eq!(from_hex("0a 0\nb"), Some(vec![10, 11]));
        assert_eq!((from_hex("0"), from_hex("0x")), (None, None));
    }
}
