//! Inputs to begin with: the golden vectors, and what is made by hand so that every branch of a
//! decoder is a few changes away from one of them.

mod binary;
mod decisions;
mod device;
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
    let verbs = vectors("verbs-vectors").into_iter().map(|(name, bytes)| verbs_input(name, bytes));
    let gpu =
        vectors("gpu-vectors").into_iter().map(|(name, bytes)| (gpu_target(name), name, bytes));
    let made = [binary::seeds(), decisions::seeds(), device::seeds(), text::seeds()].concat();
    let all = control.chain(tcp).chain(verbs).chain(gpu).chain(made);
    all.map(|(target, name, bytes)| Seed { target, name: name.to_owned(), bytes }).collect()
}

/// Target, name and bytes.
type Made = (&'static str, &'static str, Vec<u8>);

fn control_target(name: &str) -> &'static str {
    if name.starts_with("aux") { "aux" } else { "wire" }
}

/// Messages of the fabric begin behind the byte that says that they are such, tables behind the
/// message's head.
fn verbs_input(name: &'static str, bytes: Vec<u8>) -> Made {
    let (target, skip) = match name {
        _ if name.contains("address") => ("verbs_address", 0),
        _ if name.contains("tables") => ("verbs_tables", 10),
        _ if name.contains("rdma-short-") || name == "rdma-short" => ("verbs_news", 0),
        _ if name.contains("record") => ("verbs_news", 0),
        _ => ("verbs_control", 1),
    };
    (target, name, bytes[skip..].to_vec())
}

fn gpu_target(name: &str) -> &'static str {
    match name {
        _ if name.contains("address") => "gpu_address",
        _ if name.contains("chunk") => "gpu_chunks",
        _ => "gpu_control",
    }
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
