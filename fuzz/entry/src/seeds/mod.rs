//! Inputs to begin with: the golden vectors, and what is made by hand so that every branch of a
//! decoder is a few changes away from one of them.

mod binary;
mod decisions;
mod text;

use crate::vectors::vectors;

/// An input of the corpus.
#[derive(Debug)]
pub(crate) struct Seed {
    pub(crate) target: &'static str,
    /// Of its file.
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// All that are made.
pub(crate) fn all() -> Vec<Seed> {
    let control =
        vectors("vectors").into_iter().map(|(name, bytes)| (control_target(name), name, bytes));
    let tcp =
        vectors("tcp-vectors").into_iter().map(|(name, bytes)| (tcp_target(name), name, bytes));
    let made = [binary::seeds(), decisions::seeds(), text::seeds()].concat();
    let all = control.chain(tcp).chain(made);
    all.map(|(target, name, bytes)| Seed { target, name: name.to_owned(), bytes }).collect()
}

/// Target, name and bytes.
type Made = (&'static str, &'static str, Vec<u8>);

fn control_target(name: &str) -> &'static str {
    if name.starts_with("aux") { "aux" } else { "wire" }
}

fn tcp_target(name: &str) -> &'static str {
    match name {
        _ if name.starts_with("nearby") => "nearby",
        _ if name.contains("preface") => "preface",
        _ if name.contains("address") => "address",
        _ if name.contains("link") => "link",
        _ => "lane",
    }
}
