//! The golden vectors of PROTOCOL.md, as inputs.

use crate::campaign::from_hex;

const DOCUMENT: &str = include_str!("../../../PROTOCOL.md");

/// The vectors in blocks marked so: their names and bytes.
pub(crate) fn vectors(mark: &str) -> Vec<(&'static str, Vec<u8>)> {
    let mut vectors: Vec<(&'static str, Vec<u8>)> = Vec::new();
    let blocks = DOCUMENT.split("```").skip(1).step_by(2);
    let blocks =
        blocks.filter_map(|block| block.split_once('\n').filter(|(head, _)| *head == mark));
    for line in blocks.flat_map(|(_, lines)| lines.lines()) {
        let text = line.split('#').next().unwrap_or_default();
        match vectors.last_mut().filter(|_| text.starts_with(' ')) {
            Some((name, bytes)) => bytes.extend(from_hex(text).unwrap_or_else(|| panic!("{name}"))),
            None => vectors.push((text, Vec::new())),
        }
    }
    vectors
}

#[cfg(test)]
mod tests {
    use super::vectors;

    #[test]
    fn vectors_are_those_that_the_document_shows() {
        let control = vectors("vectors");
        assert_eq!(control.iter().find(|(name, _)| *name == "ping").unwrap().1[..4], *b"KVTC");
        assert!(vectors("tcp-vectors").iter().any(|(name, _)| *name == "bad-answers-beyond"));
        assert!(control.iter().all(|(_, bytes)| !bytes.is_empty()));
    }
}
