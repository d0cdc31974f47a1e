//! Whole nodes over the simulated network: what a scheduler relies on, promise by promise, and then
//! everything at once under thousands of seeds of faults.

mod endings;
mod faults;
mod messages;
mod rooms;
mod trust;
mod world;
