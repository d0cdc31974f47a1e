//! Whole nodes over the simulated network: what a scheduler relies on, promise by promise, and then
//! everything at once under thousands of seeds of faults.

mod admission;
mod asks;
mod busy;
mod chunks;
mod endings;
mod faults;
mod group;
mod hall;
mod messages;
mod paths;
mod ranks;
mod rooms;
mod scripted;
mod settings;
mod siblings;
mod trust;
mod world;
