//! How client and server prove to each other that they have the shared key (W3).
//!
//! Before its first request a client sends `GET /challenge` with a fresh nonce in `KV-Nonce`. The
//! answer's body is the server's challenge, and its `KV-Proof` header the MAC of both: the server
//! has proven itself before the client has said anything. Each request then answers a challenge:
//!
//! ```text
//! Authorization: KV-HMAC challenge=<challenge>,nonce=<32 hex digits>,mac=<64 hex digits>
//! ```
//!
//! and each answer proves the server again, and brings the challenge for the next request:
//!
//! ```text
//! KV-Challenge: <challenge>
//! KV-Proof: <64 hex digits>
//! ```
//!
//! A MAC is HMAC-SHA-256 over a label and these fields, each after its length as 8 little-endian
//! bytes:
//!
//! | of | label | fields |
//! | --- | --- | --- |
//! | `/challenge` | `kv-bootstrap 1 challenge` | nonce, challenge |
//! | a request | `kv-bootstrap 1 request` | challenge, nonce, method, path with query, body |
//! | an answer | `kv-bootstrap 1 answer` | the request's MAC, status as 3 digits, `KV-Epoch`, `KV-Incarnation`, `KV-Conflict`, `KV-Challenge`, body |
//!
//! Each challenge is good for one request, so nothing that was overheard can be sent again; there
//! are no clocks in it. The server remembers no challenges that it gave: they are numbers with a
//! MAC of their own, and a window over the latest says which were used. Nobody can fill it.
//!
//! Not for secrecy: bodies can be read on the way.

use std::fmt;
use std::fmt::Write as _;

use transport_core::disagg::trust::{Seal, SharedKey};

/// Challenges that may be open at a time: an older one is stale, as if it were used.
const WINDOW: u64 = 1 << 16;

/// Hex digits of a challenge: 8 bytes of number, 16 of MAC.
const CHALLENGE_DIGITS: usize = 48;

/// The MAC of the answer to `GET /challenge`.
pub(super) fn of_challenge(key: &SharedKey, nonce: &str, challenge: &str) -> Seal {
    let seal = key.seal("kv-bootstrap 1 challenge");
    seal.with(nonce.as_bytes()).with(challenge.as_bytes())
}

/// The MAC of a request.
pub(super) fn of_request(key: &SharedKey, ask: &Ask<'_>) -> Seal {
    key.seal("kv-bootstrap 1 request")
        .with(ask.challenge.as_bytes())
        .with(ask.nonce.as_bytes())
        .with(ask.method.as_bytes())
        .with(ask.target.as_bytes())
        .with(ask.body)
}

/// The MAC of the answer to a request that has the MAC `request`. `headers` in the order of the
/// table above; empty ones are not there.
pub(super) fn of_answer(
    key: &SharedKey,
    request: &str,
    status: u16,
    headers: [&str; 4],
    body: &[u8],
) -> Seal {
    let seal = key.seal("kv-bootstrap 1 answer");
    let seal = seal.with(request.as_bytes()).with(format!("{status:03}").as_bytes());
    headers.iter().fold(seal, |seal, header| seal.with(header.as_bytes())).with(body)
}

/// A MAC as text.
pub(super) fn hex(seal: Seal) -> String {
    to_hex(&seal.finish())
}

/// Whether this text is the MAC. Compares in constant time.
pub(super) fn is(seal: Seal, hex: &str) -> bool {
    from_hex(hex).is_some_and(|mac| seal.is(&mac))
}

/// What a request's MAC is over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask<'a> {
    pub(super) challenge: &'a str,
    pub(super) nonce: &'a str,
    pub(super) method: &'a str,
    pub(super) target: &'a str,
    pub(super) body: &'a [u8],
}

/// The `Authorization` header, taken apart.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Credentials<'a> {
    pub(super) challenge: &'a str,
    pub(super) nonce: &'a str,
    pub(super) mac: &'a str,
}

impl<'a> Credentials<'a> {
    pub(super) fn parse(header: &'a str) -> Option<Self> {
        let mut fields = header.strip_prefix("KV-HMAC ")?.split(',');
        let mut field = |name: &str| fields.next()?.trim().strip_prefix(name)?.strip_prefix('=');
        let (challenge, nonce, mac) = (field("challenge")?, field("nonce")?, field("mac")?);
        (is_nonce(nonce) && fields.next().is_none()).then_some(Self { challenge, nonce, mac })
    }
}

impl fmt::Display for Credentials<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { challenge, nonce, mac } = self;
        write!(f, "KV-HMAC challenge={challenge},nonce={nonce},mac={mac}")
    }
}

/// 16 random bytes in hex.
pub(super) fn nonce() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(to_hex(&bytes))
}

/// Whether `text` can be a nonce.
pub(super) fn is_nonce(text: &str) -> bool {
    from_hex::<16>(text).is_some()
}

/// The server's challenges. Invariant: those in `next - WINDOW .. next` that are not in `used` are
/// good for one request each, and no other is.
#[derive(Debug)]
pub(super) struct Challenges {
    secret: SharedKey,
    next: u64,
    /// One bit for each number of the window, at its remainder.
    used: Box<[u64]>,
}

impl Challenges {
    /// `secret` must be random: whoever knows it can make challenges.
    pub(super) fn new(secret: [u8; 32]) -> Self {
        let secret = SharedKey::new(&secret).expect("32 bytes are enough");
        Self { secret, next: 0, used: vec![0; (WINDOW / 64) as usize].into() }
    }

    pub(super) fn issue(&mut self) -> String {
        let number = self.next;
        self.next += 1;
        *self.word(number) &= !bit(number);
        self.text(number)
    }

    /// Whether it is one of ours, of the window, and was not used. It is from now on.
    pub(super) fn take(&mut self, challenge: &str) -> bool {
        let number = challenge.get(..16).and_then(from_hex::<8>).map(u64::from_be_bytes);
        let Some(number) = number.filter(|_| challenge.len() == CHALLENGE_DIGITS) else {
            return false;
        };
        let in_window = number < self.next && self.next - number <= WINDOW;
        let fresh = in_window && *self.word(number) & bit(number) == 0;
        if !fresh || !begins_with(self.seal(number), &challenge[16..]) {
            return false;
        }
        *self.word(number) |= bit(number);
        true
    }

    fn word(&mut self, number: u64) -> &mut u64 {
        &mut self.used[(number % WINDOW / 64) as usize]
    }

    fn text(&self, number: u64) -> String {
        let mut text = format!("{number:016x}{}", hex(self.seal(number)));
        text.truncate(CHALLENGE_DIGITS);
        text
    }

    fn seal(&self, number: u64) -> Seal {
        self.secret.seal("challenge").with(&number.to_le_bytes())
    }
}

/// Whether the MAC begins so; 16 bytes, compared in constant time.
fn begins_with(seal: Seal, hex: &str) -> bool {
    from_hex(hex).is_some_and(|start| seal.begins_with(&start))
}

fn bit(number: u64) -> u64 {
    1 << (number % 64)
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes all that is written");
        text
    })
}

/// Lower-case digits only, so that each value has one text.
fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits: &[u8] = text.as_bytes();
    let is_digit = |digit: &u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
    if digits.len() != 2 * N || !digits.iter().all(is_digit) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> SharedKey {
        SharedKey::new(b"0123456789abcdef").unwrap()
    }

    fn ask<'a>(challenge: &'a str, body: &'a [u8]) -> Ask<'a> {
        Ask { challenge, nonce: "n", method: "PUT", target: "/route", body }
    }

    /// Written out by other means (Python's hmac), so that it is the documented format and stays
    /// so.
    #[test]
    fn w3_macs_are_those_of_the_documented_format() {
        let request = hex(of_request(&key(), &ask("c", b"{}")));
        assert_eq!(request, "a9a218bdf2784fe5d6de186c925ccef8712a188bdbca3cf57851783060d81296");
        let answer = hex(of_answer(&key(), &request, 200, ["1", "", "", "x"], b"OK"));
        assert_eq!(answer, "b4ca202b9f76af2ab9ce083f0752383a543a5435dcbe1f4bb4eaea4ad7d1bb3c");
        assert_eq!(
            hex(of_challenge(&key(), "n", "c")),
            "3a1becf72babecf3a31aa220158e7b013f8a16c5b7c7e1c292e76059d5e48320"
        );
    }

    #[test]
    fn w3_each_challenge_is_good_once() {
        let mut challenges = Challenges::new([7; 32]);
        let (first, second) = (challenges.issue(), challenges.issue());
        assert!(challenges.take(&second) && challenges.take(&first));
        assert!(!challenges.take(&second) && !challenges.take(&first));
    }

    #[test]
    fn w3_a_challenge_of_somebody_else_or_of_the_future_is_none() {
        let mut challenges = Challenges::new([7; 32]);
        let mut others = Challenges::new([8; 32]);
        let ours = challenges.issue();
        assert!(!challenges.take(&others.issue()));
        let mut same_secret = Challenges::new([7; 32]);
        same_secret.issue();
        assert!(!challenges.take(&same_secret.issue()), "never issued");
        for wrong in
            ["", "0", &ours[..47], &ours.to_uppercase(), &format!("{ours}0"), &"é".repeat(24)]
        {
            assert!(wrong == ours || !challenges.take(wrong), "{wrong}");
        }
        // The first is number 0, which other words say as well.
        let signed = ours.replacen('0', "+", 1);
        assert!(!challenges.take(&signed), "{signed}");
        assert!(challenges.take(&ours));
    }

    #[test]
    fn w3_whoever_asks_for_many_challenges_uses_up_no_memory_and_only_old_ones() {
        let mut challenges = Challenges::new([7; 32]);
        let (stale, used) = (challenges.issue(), challenges.issue());
        assert!(challenges.take(&used));
        (2..WINDOW).for_each(|_| drop(challenges.issue()));
        let open = challenges.issue();
        assert!(!challenges.take(&stale) && !challenges.take(&used) && challenges.take(&open));
    }

    #[test]
    fn credentials_are_written_as_they_are_read() {
        let nonce = "0".repeat(32);
        let credentials = Credentials { challenge: "c", nonce: &nonce, mac: "m" };
        let header = credentials.to_string();
        assert_eq!(Credentials::parse(&header), Some(credentials));
        for wrong in
            ["", "KV-HMAC ", "Basic abc", &header[..header.len() - 6], &format!("{header},x=y")]
        {
            assert_eq!(Credentials::parse(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn w3_no_header_panics(text: String) {
            let _ = (Credentials::parse(&text), Challenges::new([1; 32]).take(&text), is_nonce(&text));
        }
    }
}
