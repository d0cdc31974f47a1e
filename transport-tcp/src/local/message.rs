//! What two processes of one machine say to each other over their socket, before they share rings.
//!
//! Every message begins with its kind, in eight bytes. Numbers are little-endian.
//!
//! | kind    | then                                                        | descriptors        |
//! |---------|-------------------------------------------------------------|--------------------|
//! | hello   | link key (16), nonce (16), nonce's address, regions (8 each) | the side's words   |
//! | regions | 1 to 64 times: length, address, 0 or 1 (8 each)             | one for each 1     |
//! | ready   | 0 or 1 (8): whether all of it can be used                   |                    |
//! | bell    |                                                             |                    |
#![forbid(unsafe_code)]

use std::os::fd::{BorrowedFd, OwnedFd};

use super::channel::Nonce;
use super::regions::{Notice, OwnRegions};
use super::socket::{MAX_FDS, MAX_MESSAGE};
use crate::preface::LinkKey;

const HELLO: u64 = u64::from_le_bytes(*b"\x8bKVhi\x01\r\n");
const REGIONS: u64 = 2;
const READY: u64 = 3;
const BELL: u64 = 4;

const WORD: usize = 8;
/// Words that tell of a region.
const NOTICE: usize = 3;

/// The bytes of a bell.
pub(crate) const BELL_BYTES: [u8; WORD] = BELL.to_le_bytes();

/// Who a side is, and how much it will tell.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Hello {
    /// Of the link that both have.
    pub(crate) key: LinkKey,
    /// As in the side's words, and in its address.
    pub(crate) nonce: Nonce,
    /// Where the nonce is in its process.
    pub(crate) proof_at: u64,
    /// Regions that it tells of.
    pub(crate) regions: u64,
}

/// A message.
#[derive(Debug)]
pub(crate) enum Message {
    Bell,
    Hello(Hello, OwnedFd),
    Ready(bool),
    Regions(Vec<(Notice, Option<OwnedFd>)>),
}

impl Hello {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (low, high) = self.key.0.split_at(WORD);
        let [n0, n1] = self.nonce.map(u64::to_le_bytes);
        let (at, regions) = (self.proof_at.to_le_bytes(), self.regions.to_le_bytes());
        [&HELLO.to_le_bytes(), low, high, &n0, &n1, &at, &regions].concat()
    }
}

/// The message that says whether all can be used.
pub(crate) fn ready(ok: bool) -> Vec<u8> {
    [READY.to_le_bytes(), u64::from(ok).to_le_bytes()].concat()
}

/// The message that tells of the regions from `first` on, its descriptors, and how many it tells of.
pub(crate) fn regions(own: &OwnRegions, first: usize) -> (Vec<u8>, Vec<BorrowedFd<'_>>, usize) {
    let all = (first..).map_while(|number| own.notice(number)).take(MAX_FDS);
    let (notices, files): (Vec<_>, Vec<_>) = all.unzip();
    (encode_regions(&notices), files.into_iter().flatten().collect(), notices.len())
}

/// The message that tells of regions.
pub(crate) fn encode_regions(notices: &[Notice]) -> Vec<u8> {
    let words = notices.iter().flat_map(|n| [n.len, n.base, u64::from(n.shared)]);
    [REGIONS].into_iter().chain(words).flat_map(u64::to_le_bytes).collect()
}

/// The message in `bytes`, with its descriptors; `None` when it is none.
pub(crate) fn decode(bytes: &[u8], files: Vec<OwnedFd>) -> Option<Message> {
    let words = words(bytes)?;
    let (kind, rest) = words.split_first()?;
    match (*kind, rest) {
        (HELLO, &[k0, k1, n0, n1, proof_at, regions]) => {
            let [file] = <[OwnedFd; 1]>::try_from(files).ok()?;
            let (low, high) = (k0.to_le_bytes(), k1.to_le_bytes());
            let key = std::array::from_fn(|i| if i < WORD { low[i] } else { high[i - WORD] });
            let nonce = [n0, n1];
            Some(Message::Hello(Hello { key: LinkKey(key), nonce, proof_at, regions }, file))
        }
        (REGIONS, notices) => decode_regions(notices, files).map(Message::Regions),
        (READY, &[ok @ (0 | 1)]) if files.is_empty() => Some(Message::Ready(ok == 1)),
        (BELL, []) if files.is_empty() => Some(Message::Bell),
        _ => None,
    }
}

fn decode_regions(words: &[u64], files: Vec<OwnedFd>) -> Option<Vec<(Notice, Option<OwnedFd>)>> {
    if words.is_empty() || !words.len().is_multiple_of(NOTICE) {
        return None;
    }
    let mut files = files.into_iter();
    let one = |words: &[u64]| {
        let &[len, base, shared @ (0 | 1)] = words else { return None };
        let shared = shared == 1;
        let file = if shared { Some(files.next()?) } else { None };
        Some((Notice { len, base, shared }, file))
    };
    let all: Option<Vec<_>> = words.chunks(NOTICE).map(one).collect();
    all.filter(|_| files.next().is_none())
}

fn words(bytes: &[u8]) -> Option<Vec<u64>> {
    let whole = bytes.len().is_multiple_of(WORD) && bytes.len() <= MAX_MESSAGE;
    let (chunks, _) = bytes.as_chunks::<WORD>();
    whole.then(|| chunks.iter().map(|word| u64::from_le_bytes(*word)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs::File;
    use std::os::fd::AsFd;
    use transport_core::memory::{CacheTables, MemoryRegion, PagedTable};

    use crate::HostMemory;

    fn file() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_hello_and_regions_read_back() {
        let hello =
            Hello { key: LinkKey(*b"0123456789abcdef"), nonce: [1, 2], proof_at: 3, regions: 4 };
        let Some(Message::Hello(back, _)) = decode(&hello.encode(), vec![file()]) else { panic!() };
        assert_eq!(back, hello);
        assert!(decode(&hello.encode(), vec![]).is_none());
        assert!(decode(&hello.encode(), vec![file(), file()]).is_none());

        let (kv, aux) = (HostMemory::default().map_shared(4096), MemoryRegion::allocate(64));
        let table = |region: &MemoryRegion| PagedTable::packed(region, &[64], 1).unwrap();
        let tables = CacheTables::new(table(&kv.unwrap()), table(&aux.unwrap()), vec![]).unwrap();
        let own = OwnRegions::of(&tables).unwrap();
        let (bytes, files, told) = regions(&own, 0);
        assert_eq!((files.len(), told), (1, 2));
        let files = files.iter().map(|file| file.as_fd().try_clone_to_owned().unwrap());
        let Some(Message::Regions(back)) = decode(&bytes, files.collect()) else { panic!() };
        assert_eq!(back[0].0, own.notice(0).unwrap().0);
        assert!(back[0].1.is_some() && back[1].1.is_none());
        assert!(decode(&bytes, vec![]).is_none(), "the file is missing");
    }

    proptest! {
        #[test]
        fn w1_any_bytes_are_a_message_or_none(
            mut bytes in prop::collection::vec(any::<u8>(), 0..MAX_MESSAGE + 9),
            kind in 0u64..6, hello in any::<bool>(),
        ) {
            if let Some(word) = bytes.first_chunk_mut::<8>() {
                *word = if hello { HELLO } else { kind }.to_le_bytes();
            }
            if let Some(Message::Hello(hello, _)) = decode(&bytes, vec![file()]) {
                prop_assert_eq!(hello.encode(), bytes);
            }
        }
    }
}
