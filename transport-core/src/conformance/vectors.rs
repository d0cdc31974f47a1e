//! The bytes that a document shows, for a fabric's tests to hold its codecs to.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// The vectors of a document's blocks that begin with three backticks and `mark`: a name at the start
/// of a line, its bytes in hex on indented lines after it, and remarks after a `#`.
///
/// # Panics
///
/// When a name is shown twice, or what should be bytes are none.
pub fn vectors<'a>(document: &'a str, mark: &str) -> BTreeMap<&'a str, Vec<u8>> {
    let mut vectors = BTreeMap::new();
    let mut name = "";
    let blocks = document.split("```").skip(1).step_by(2);
    let blocks = blocks.filter_map(|block| block.strip_prefix(mark)?.strip_prefix('\n'));
    for line in blocks.flat_map(str::lines) {
        let text = line.split('#').next().unwrap_or_default();
        if text.starts_with(' ') {
            let shown: &mut Vec<u8> = vectors.get_mut(name).expect("a name comes first");
            shown.extend(bytes(text));
        } else {
            name = text;
            assert!(vectors.insert(name, Vec::new()).is_none(), "{name} is shown twice");
        }
    }
    vectors
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let digit = |byte: u8| char::from(byte).to_digit(16).expect("a digit") as u8;
    let pairs = digits.chunks_exact(2);
    assert!(pairs.remainder().is_empty(), "half a byte in {hex}");
    pairs.map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_marked_blocks_are_read_and_remarks_are_not() {
        let document = "```vectors\nping\n  4b 56 # remark\n  54\n```\ntext\n\
            ```tcp-vectors\npiece\n  00ff\n```\n```vectors\npong\n  01\n```\n";
        let control = [("ping", b"KVT".to_vec()), ("pong", [1].to_vec())];
        assert_eq!(vectors(document, "vectors"), BTreeMap::from(control));
        let tcp = [("piece", [0, 0xff].to_vec())];
        assert_eq!(vectors(document, "tcp-vectors"), BTreeMap::from(tcp));
    }
}
