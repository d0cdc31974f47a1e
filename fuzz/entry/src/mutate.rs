//! Inputs that are a few changes away from those of a corpus.

use transport_core::rng::Rng;

/// Longest input: long enough for every field of every format, short enough to try many.
const LONGEST: usize = 8 << 10;

/// Numbers at which decoders go wrong: around the widths' ends, and around this project's limits.
const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    16,
    17,
    0x7f,
    0xff,
    0xffff,
    (1 << 20) - 1,
    1 << 20,
    (1 << 24) + 1,
    0x7fff_ffff,
    u32::MAX as u64,
    1 << 32,
    i64::MAX as u64,
    u64::MAX,
];

/// Makes inputs. The same seed and corpus give the same ones.
#[derive(Debug)]
pub(crate) struct Mutator<'a> {
    rng: Rng,
    corpus: &'a [Vec<u8>],
}

impl<'a> Mutator<'a> {
    pub(crate) fn new(seed: u64, corpus: &'a [Vec<u8>]) -> Self {
        Self { rng: Rng::new(seed), corpus }
    }

    /// One of the corpus with one to six changes.
    pub(crate) fn input(&mut self) -> Vec<u8> {
        let mut input = self.any_of_corpus().to_vec();
        for _ in 0..=self.rng.below(6) {
            self.change(&mut input);
            input.truncate(LONGEST);
        }
        input
    }

    fn any_of_corpus(&mut self) -> &'a [u8] {
        let at = self.rng.index(self.corpus.len());
        self.corpus.get(at).map_or(&[], Vec::as_slice)
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        match self.rng.below(10) {
            0 | 1 => self.flip_bit(input),
            2 => self.set_byte(input),
            3 | 4 => self.set_field(input),
            5 => self.nudge_field(input),
            6 => self.set_digits(input),
            7 => self.truncate_or_remove(input),
            8 => self.repeat(input),
            _ => self.splice(input),
        }
    }

    /// Where something may be changed, and so much of it that is there.
    fn part(&mut self, input: &[u8], most: usize) -> std::ops::Range<usize> {
        let start = self.rng.index(input.len());
        let len = 1 + self.rng.index(most);
        start..(start + len).min(input.len())
    }

    fn flip_bit(&mut self, input: &mut [u8]) {
        let (at, bit) = (self.rng.index(input.len()), self.rng.below(8));
        if let Some(byte) = input.get_mut(at) {
            *byte ^= 1 << bit;
        }
    }

    fn set_byte(&mut self, input: &mut [u8]) {
        let (at, value) = (self.rng.index(input.len()), self.rng.next_u64() as u8);
        if let Some(byte) = input.get_mut(at) {
            *byte = value;
        }
    }

    /// A little-endian number of one, two, four or eight bytes: a length, a count, an offset.
    fn set_field(&mut self, input: &mut [u8]) {
        let width = 1 << self.rng.below(4);
        let number = NUMBERS[self.rng.index(NUMBERS.len())].to_le_bytes();
        let at = self.rng.index(input.len());
        if let Some(field) = input.get_mut(at..at + width) {
            field.copy_from_slice(&number[..width]);
        }
    }

    /// The same, a little larger or smaller than it was: off by one, or by one entry.
    fn nudge_field(&mut self, input: &mut [u8]) {
        let at = self.rng.index(input.len());
        let by = self.rng.within(0..17) as u32;
        if let Some(field) = input.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<4>()) {
            *field = u32::from_le_bytes(*field).wrapping_add(by).wrapping_sub(8).to_le_bytes();
        }
    }

    /// Another number in place of one that is written in decimal digits.
    fn set_digits(&mut self, input: &mut Vec<u8>) {
        let from = self.rng.index(input.len());
        let digits = |byte: &u8| byte.is_ascii_digit();
        let Some(start) = input[from..].iter().position(digits).map(|at| from + at) else { return };
        let len = input[start..].iter().take_while(|byte| digits(byte)).count();
        let number = NUMBERS[self.rng.index(NUMBERS.len())].to_string();
        input.splice(start..start + len, number.into_bytes());
    }

    fn truncate_or_remove(&mut self, input: &mut Vec<u8>) {
        let part = self.part(input, 16);
        if self.rng.chance(300_000) {
            input.truncate(part.start);
        } else {
            input.drain(part);
        }
    }

    /// A part of the input once more, behind itself.
    fn repeat(&mut self, input: &mut Vec<u8>) {
        let part = self.part(input, 80);
        let again = input[part.clone()].to_vec();
        input.splice(part.end..part.end, again);
    }

    /// The start of this input and the end of another.
    fn splice(&mut self, input: &mut Vec<u8>) {
        let other = self.any_of_corpus();
        let (end, start) = (self.rng.index(input.len() + 1), self.rng.index(other.len()));
        input.truncate(end);
        input.extend_from_slice(&other[start..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_many_bounded_and_the_same_for_the_same_seed() {
        let corpus = [vec![], b"{\"length\": 12}".to_vec(), vec![9; LONGEST]];
        let inputs = |seed| {
            let mut mutator = Mutator::new(seed, &corpus);
            (0..2000).map(|_| mutator.input()).collect::<Vec<_>>()
        };
        let mut tried = inputs(7);
        assert_eq!(tried, inputs(7));
        assert_ne!(tried, inputs(8));
        assert!(tried.iter().all(|input| input.len() <= LONGEST));
        tried.sort();
        tried.dedup();
        assert!(tried.len() > 1000, "{} different ones", tried.len());
    }

    #[test]
    fn without_a_corpus_there_are_inputs_too() {
        let mut mutator = Mutator::new(1, &[]);
        (0..100).for_each(|_| drop(mutator.input()));
    }
}
