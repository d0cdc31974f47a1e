//! Text to tokens and back, by what the model's file says: byte-level BPE, as GPT-2 has it, digits one by one.
//!
//! Not a general tokenizer: it is that of SmolLM2, whose only special tokens here are those of its chat template.
//! The hybrid model, which has never learnt anything, has bytes for tokens.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::{Content, Value};

use crate::error::{HandoffError, Result};

/// See the module.
#[derive(Debug)]
pub(crate) enum Tokenizer {
    Bpe(Box<Bpe>),
    Bytes,
}

/// The vocabulary, and how tokens become longer ones.
#[derive(Debug)]
pub(crate) struct Bpe {
    text: Vec<String>,
    ids: HashMap<String, u32>,
    /// Two tokens that follow each other: how early they are merged, and what they become.
    merges: HashMap<(u32, u32), (usize, u32)>,
    end: u32,
}

impl Tokenizer {
    /// That of the file.
    pub(crate) fn of(file: &Content) -> Result<Self> {
        Ok(Self::Bpe(Box::new(Bpe::of(file)?)))
    }

    /// A question, as the model expects it.
    pub(crate) fn prompt(&self, question: &str) -> Vec<u32> {
        match self {
            Self::Bytes => question.bytes().map(u32::from).collect(),
            Self::Bpe(bpe) => bpe.chat(question),
        }
    }

    pub(crate) fn text(&self, tokens: &[u32]) -> String {
        match self {
            Self::Bytes => tokens.iter().filter_map(|token| char::from_u32(*token)).collect(),
            Self::Bpe(bpe) => bpe.decode(tokens),
        }
    }

    /// The token that ends an answer.
    pub(crate) fn end(&self) -> Option<u32> {
        match self {
            Self::Bytes => None,
            Self::Bpe(bpe) => Some(bpe.end),
        }
    }
}

impl Bpe {
    fn of(file: &Content) -> Result<Self> {
        let text = strings(file, "tokenizer.ggml.tokens")?;
        let ids: HashMap<_, _> = text.iter().cloned().zip(0..).collect();
        let merge = |(rank, pair): (usize, String)| {
            let (left, right) = pair.split_once(' ')?;
            let whole = [left, right].concat();
            Some(((*ids.get(left)?, *ids.get(right)?), (rank, *ids.get(&whole)?)))
        };
        let merges = strings(file, "tokenizer.ggml.merges")?.into_iter().enumerate();
        let merges = merges.filter_map(merge).collect();
        let end = *ids.get("<|im_end|>").ok_or(HandoffError::ModelFile("<|im_end|>"))?;
        Ok(Self { text, ids, merges, end })
    }

    /// The chat template, for one question.
    fn chat(&self, question: &str) -> Vec<u32> {
        const SYSTEM: &str = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
        let mut tokens = Vec::new();
        for (role, words) in [("system", SYSTEM), ("user", question)] {
            tokens.extend(self.ids.get("<|im_start|>"));
            self.encode(&format!("{role}\n{words}"), &mut tokens);
            tokens.push(self.end);
            self.encode("\n", &mut tokens);
        }
        tokens.extend(self.ids.get("<|im_start|>"));
        self.encode("assistant\n", &mut tokens);
        tokens
    }

    fn encode(&self, text: &str, tokens: &mut Vec<u32>) {
        let chars: Vec<char> = text.chars().collect();
        for piece in chars.chunk_by(|left, right| !left.is_numeric() && !right.is_numeric()) {
            let mut rest = piece;
            while !rest.is_empty() {
                let (word, after) = rest.split_at(word_len(rest));
                tokens.extend(self.word(word));
                rest = after;
            }
        }
    }

    /// A word's tokens: its bytes, of which the pair that is merged earliest is merged, again and again.
    fn word(&self, word: &[char]) -> Vec<u32> {
        let bytes = word.iter().collect::<String>().into_bytes();
        let id = |byte: u8| self.ids.get(&char_of(byte).to_string()).copied();
        let mut tokens: Vec<u32> = bytes.into_iter().filter_map(id).collect();
        loop {
            let pairs = tokens.windows(2).enumerate();
            let merge = |(at, pair): (usize, &[u32])| {
                self.merges.get(&(pair[0], pair[1])).map(|(rank, whole)| (*rank, at, *whole))
            };
            let Some((_, at, whole)) = pairs.filter_map(merge).min() else { return tokens };
            tokens.splice(at..at + 2, [whole]);
        }
    }

    fn decode(&self, tokens: &[u32]) -> String {
        let words = tokens.iter().filter(|token| **token != self.end);
        let chars =
            words.filter_map(|token| self.text.get(*token as usize)).flat_map(|t| t.chars());
        let bytes: Vec<u8> = chars.filter_map(byte_of).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Characters of the first word: GPT-2's `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`, and a
/// number is a word of one digit.
fn word_len(text: &[char]) -> usize {
    const SUFFIXES: [&str; 7] = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];
    let begins = |suffix: &&&str| suffix.chars().eq(text.iter().copied().take(suffix.len()));
    if let Some(suffix) = SUFFIXES.iter().find(begins) {
        return suffix.len();
    }
    let run = |from: usize, like: fn(char) -> bool| {
        text[from..].iter().position(|c| !like(*c)).map_or(text.len(), |end| from + end)
    };
    let blank = usize::from(text[0] == ' ');
    match text.get(blank) {
        Some(c) if c.is_alphabetic() => return run(blank, char::is_alphabetic),
        Some(c) if !c.is_whitespace() && !c.is_numeric() => {
            return run(blank, |c| !c.is_alphabetic() && !c.is_whitespace() && !c.is_numeric());
        }
        _ => {}
    }
    // Of several blanks in front of a word the last is the word's.
    let blanks = run(0, char::is_whitespace);
    if blanks < text.len() { blanks.saturating_sub(1).max(1) } else { blanks.max(1) }
}

/// GPT-2 writes every byte as a character that can be printed: most as themselves.
fn char_of(byte: u8) -> char {
    match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae.. => byte.into(),
        0..=b' ' => shifted(u32::from(byte)),
        0x7f..=0xa0 => shifted(u32::from(byte) - 0x7f + 33),
        0xad => shifted(67),
    }
}

fn shifted(place: u32) -> char {
    char::from_u32(256 + place).unwrap_or_default()
}

fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        place @ 256..=288 => Some((place - 256) as u8),
        place @ 289..=322 => Some((place - 289 + 0x7f) as u8),
        323 => Some(0xad),
        same => u8::try_from(same).ok(),
    }
}

fn strings(file: &Content, key: &'static str) -> Result<Vec<String>> {
    let array = file.metadata.get(key).and_then(|value| value.to_vec().ok());
    let array = array.ok_or(HandoffError::ModelFile(key))?;
    let string = |value: &Value| value.to_string().ok().cloned();
    array.iter().map(string).collect::<Option<_>>().ok_or(HandoffError::ModelFile(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let chars: Vec<char> = text.chars().collect();
        let mut rest = &chars[..];
        let mut words = Vec::new();
        while !rest.is_empty() {
            let (word, after) = rest.split_at(word_len(rest));
            words.push(word.iter().collect());
            rest = after;
        }
        words
    }

    #[test]
    fn words_are_those_of_gpt_2() {
        assert_eq!(
            words("It's  a\n\n  test, ok?"),
            ["It", "'s", " ", " a", "\n\n ", " test", ",", " ok", "?"]
        );
        assert_eq!(words("a \n"), ["a", " \n"]);
    }

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        for byte in 0..=255 {
            assert_eq!(byte_of(char_of(byte)), Some(byte));
        }
        assert_eq!((char_of(b' '), char_of(b'\n')), ('Ġ', 'Ċ'));
    }
}
