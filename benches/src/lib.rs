//! What `kvperf` is made of, apart from moving the bytes: real models' geometries, real requests,
//! content that can be checked to the last byte, and the report.
//!
//! | module | for |
//! | --- | --- |
//! | [`model`] | which buffers a model's cache has, from its `config.json` |
//! | [`trace`] | requests, from a trace or built in |
//! | [`workload`] | both, from arguments, known to fit |
//! | [`prefix`] | what the decode side still holds |
//! | [`pattern`] | what every byte must be |
//! | [`cpu`] | CPU time, without what the pattern costs |
//! | [`report`], [`progress`] | results, and waiting for them |
//! | [`run`] | two engines, one per process, of a node per rank, and what drives them |
//! | [`raw`] | fixed workloads of the bare fabric, to be set beside other transports |
//! | [`sweep`] | how rates change with pages, lanes, rooms and peers |
//! | [`signal`] | stopping the processes of a run, and ending them with it |
//! | [`args`] | the command line |

#![deny(unsafe_code)]

pub mod args;
pub mod cpu;
mod endpoint;
pub mod model;
pub mod pattern;
pub mod prefix;
pub mod progress;
pub mod raw;
pub mod report;
pub mod run;
#[allow(unsafe_code)]
pub mod signal;
pub mod sweep;
mod taken;
pub mod trace;
pub mod workload;
