//! Topology (P1): pairs of engines that are split differently, small enough to look at every byte.

mod errors;
mod examples;
mod holdings;
mod mutants;
mod properties;
mod world;
