//! The handshake against whoever does not have the key, and against what it must not be used for.

use super::{End, Handshake, SharedKey};
use crate::disagg::Cause;
use crate::wire::{Challenge, Message, Opening};

fn key(byte: u8) -> SharedKey {
    SharedKey::new(&[byte; 16]).unwrap()
}

fn handshake(key: SharedKey, end: End, nonce: u8) -> Handshake {
    Handshake::new(key, end, [nonce; 32], u64::from(nonce))
}

fn dialler(nonce: u8) -> Handshake {
    handshake(key(1), End::Dialler, nonce)
}

fn listener(nonce: u8) -> Handshake {
    handshake(key(1), End::Listener, nonce)
}

/// A message as the other side receives it.
fn opening(message: &Message) -> Opening {
    match message {
        Message::Challenge(challenge) => Opening::Challenge(*challenge),
        Message::Proof(seal) => Opening::Proof(*seal),
        other => panic!("{other:?} is not said in a handshake"),
    }
}

fn challenge(nonce: u8) -> Opening {
    Opening::Challenge(Challenge { nonce: [nonce; 32], incarnation: nonce.into() })
}

/// Both challenges, then the dialler's proof.
fn first_proof(dialler: &mut Handshake, listener: &mut Handshake) -> Opening {
    assert_eq!(listener.take(opening(&dialler.opening())), Ok(None));
    let proof = dialler.take(opening(&listener.opening()));
    opening(&proof.unwrap().expect("the dialler proves first"))
}

/// All of it; the listener's proof.
fn shake(dialler: &mut Handshake, listener: &mut Handshake) -> Opening {
    let proof = first_proof(dialler, listener);
    let answer = opening(&listener.take(proof).unwrap().expect("the listener proves then"));
    assert_eq!(dialler.take(answer), Ok(None));
    answer
}

#[test]
fn w3_two_ends_with_the_key_prove_it_to_each_other() {
    let (mut dialler, mut listener) = (dialler(3), listener(4));
    shake(&mut dialler, &mut listener);
    assert!(dialler.is_proven() && listener.is_proven());
    assert_eq!((dialler.peer_incarnation(), listener.peer_incarnation()), (Some(4), Some(3)));
}

/// Written out by other means (Python's hmac), so that it is the documented format and stays so.
#[test]
fn w3_proofs_are_those_of_the_documented_format() {
    let key = SharedKey::new(b"0123456789abcdef").unwrap();
    let nonce = |first: u8| core::array::from_fn(|i| first + i as u8);
    let (theirs, ours) = (0x1122_3344_5566_7788, 0x99aa_bbcc_ddee_ff00);
    let mut dialler = Handshake::new(key.clone(), End::Dialler, nonce(0), theirs);
    let mut listener = Handshake::new(key, End::Listener, nonce(32), ours);
    let Opening::Proof(first) = first_proof(&mut dialler, &mut listener) else { panic!() };
    let Ok(Some(Message::Proof(second))) = listener.take(Opening::Proof(first)) else { panic!() };
    let hex = |seal: [u8; 32]| seal.map(|byte| std::format!("{byte:02x}")).concat();
    assert_eq!(hex(first), "7be6f3fb72f44222371000c9ad7ce5b7caff07758692991f1d7e0feea59b516c");
    assert_eq!(hex(second), "1fda22b66539e60a00f6b490bff7feb2346657c71792f880704c3f34a6674d04");
}

#[test]
fn w3_nobody_proves_a_key_that_it_does_not_have() {
    let (mut dialler, mut listener) = (handshake(key(2), End::Dialler, 3), listener(4));
    let proof = first_proof(&mut dialler, &mut listener);
    assert_eq!(listener.take(proof), Err(Cause::Unproven));
    assert!(!listener.is_proven() && listener.peer_incarnation().is_none());

    let (mut dialler, mut listener) = (self::dialler(3), handshake(key(2), End::Listener, 4));
    first_proof(&mut dialler, &mut listener);
    let Message::Proof(other) = listener.proof(&Challenge { nonce: [3; 32], incarnation: 3 })
    else {
        panic!()
    };
    assert_eq!(dialler.take(Opening::Proof(other)), Err(Cause::Unproven));
    assert!(!dialler.is_proven());
}

#[test]
fn w3_every_bit_of_a_proof_counts() {
    for bit in 0..256 {
        let (mut dialler, mut listener) = (dialler(3), listener(4));
        let Opening::Proof(mut seal) = first_proof(&mut dialler, &mut listener) else { panic!() };
        seal[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(listener.take(Opening::Proof(seal)), Err(Cause::Unproven), "bit {bit}");
    }
}

#[test]
fn w3_a_proof_is_over_both_nonces_and_both_incarnations() {
    let said =
        |nonce, incarnation| Opening::Challenge(Challenge { nonce: [nonce; 32], incarnation });
    // What the listener is told of the dialler, and the dialler of the listener; true are 3 and 4.
    for (of_dialler, of_listener) in
        [((5, 3), (4, 4)), ((3, 5), (4, 4)), ((3, 3), (5, 4)), ((3, 3), (4, 5))]
    {
        let (mut dialler, mut listener) = (dialler(3), listener(4));
        assert_eq!(listener.take(said(of_dialler.0, of_dialler.1)), Ok(None));
        let proof = dialler.take(said(of_listener.0, of_listener.1)).unwrap().unwrap();
        assert_eq!(listener.take(opening(&proof)), Err(Cause::Unproven), "{of_dialler:?}");
    }
}

#[test]
fn w3_what_an_end_said_proves_nothing_to_itself() {
    // Its challenge and its proof come back.
    let mut dialler = dialler(3);
    let proof = dialler.take(challenge(3)).unwrap().unwrap();
    assert_eq!(dialler.take(opening(&proof)), Err(Cause::Unproven));

    // Two links that this node dialled, each played against the other.
    let (mut first, mut second) = (self::dialler(3), self::dialler(5));
    let to_second = first.take(opening(&second.opening())).unwrap().unwrap();
    let to_first = second.take(opening(&first.opening())).unwrap().unwrap();
    assert_eq!(first.take(opening(&to_first)), Err(Cause::Unproven));
    assert_eq!(second.take(opening(&to_second)), Err(Cause::Unproven));
}

#[test]
fn w3_a_listener_makes_no_seal_for_a_stranger() {
    for said in [challenge(3), challenge(4), Opening::Proof([0; 32]), Opening::Hello] {
        let mut listener = listener(4);
        assert!(!matches!(listener.take(said), Ok(Some(_))), "{said:?}");
        assert!(!matches!(listener.take(Opening::Proof([0; 32])), Ok(Some(_))), "{said:?}");
    }
}

#[test]
fn w3_proofs_of_an_earlier_or_another_link_are_none() {
    let (mut dialler, mut listener) = (dialler(3), listener(4));
    let Ok(Some(first)) = dialler.clone().take(opening(&listener.opening())) else { panic!() };
    let second = shake(&mut dialler, &mut listener);

    // The dialler's words again, to the listener of the next link.
    let mut next = self::listener(5);
    assert_eq!(next.take(opening(&dialler.opening())), Ok(None));
    assert_eq!(next.take(opening(&first)), Err(Cause::Unproven));
    // The listener's words again, to the dialler of the next link.
    let mut next = self::dialler(6);
    assert!(next.take(opening(&listener.opening())).is_ok());
    assert_eq!(next.take(second), Err(Cause::Unproven));
}

#[test]
fn w3_what_comes_out_of_order_ends_the_handshake() {
    for end in [End::Dialler, End::Listener] {
        let fresh = || handshake(key(1), end, 3);
        assert_eq!(fresh().take(Opening::Proof([0; 32])), Err(Cause::Unproven));
        assert_eq!(fresh().take(Opening::Other), Err(Cause::Unproven));
        assert_eq!(fresh().take(Opening::Refuse(Cause::SameRole)), Err(Cause::Unproven));
        assert_eq!(fresh().take(Opening::Hello), Err(Cause::KeyOnOneSide));
        for cause in [Cause::Unproven, Cause::KeyOnOneSide] {
            assert_eq!(fresh().take(Opening::Refuse(cause)), Err(cause));
        }
        let mut challenged = fresh();
        challenged.take(challenge(4)).unwrap();
        assert_eq!(challenged.clone().take(Opening::Hello), Err(Cause::Unproven));
        assert_eq!(challenged.clone().take(challenge(5)), Err(Cause::Unproven));
        assert_eq!(challenged.take(challenge(4)), Ok(None), "said twice, it changes nothing");
    }
}

#[test]
fn w3_a_proof_that_comes_twice_is_answered_once() {
    let (mut dialler, mut listener) = (dialler(3), listener(4));
    let proof = first_proof(&mut dialler, &mut listener);
    assert!(listener.take(proof).unwrap().is_some());
    assert_eq!(listener.take(proof), Ok(None));
}

#[test]
fn w3_no_handshake_shows_its_key() {
    let key = SharedKey::new(b"0123456789abcdef").unwrap();
    let shown = std::format!("{:?}", handshake(key, End::Dialler, 3));
    assert!(!shown.contains("0123") && !shown.contains("48, 49"), "{shown}");
}
