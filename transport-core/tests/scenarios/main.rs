//! wip
#[path = "../node/group.rs"]
#[allow(dead_code, reason = "shared with the tests of nodes, which use all of it")]
mod group;
#[path = "../node/world.rs"]
#[allow(dead_code, reason = "shared with the tests of nodes, which use all of it")]
mod world;

mod directory;
mod engines;
mod look;
mod parts;
mod rooms;
mod strangers;
