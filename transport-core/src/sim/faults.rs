//! What is done to nodes on purpose: crashes, stops, slowness.

use core::mem;

use super::NodeId;
use super::net::{Net, Process};
use crate::fabric::PathError;

impl Net {
    /// The host vanishes; whoever talks to it hears nothing any more.
    pub(super) fn crash(&mut self, node: NodeId) {
        self.vanish(node, PathError::Timeout);
    }

    /// The process in its life number `life` ends; its host says so.
    pub(super) fn exit(&mut self, node: NodeId, life: u32) {
        if self.node(node).life == life {
            self.vanish(node, PathError::ClosedByPeer);
        }
    }

    fn vanish(&mut self, node: NodeId, reason: PathError) {
        if !mem::replace(&mut self.node_mut(node).alive, false) {
            return;
        }
        self.drop_paths(node, reason);
        self.drop_links(node, reason);
        *self.process(node) = Process::default();
    }

    pub(super) fn restart(&mut self, node: NodeId) {
        self.crash(node);
        let host = self.node_mut(node);
        host.life += 1;
        (host.alive, host.stopped) = (true, false);
    }

    pub(super) fn stop(&mut self, node: NodeId) {
        self.node_mut(node).stopped = true;
    }

    pub(super) fn resume(&mut self, node: NodeId) {
        self.node_mut(node).stopped = false;
        for event in mem::take(&mut self.process(node).parked) {
            let delay = self.delay(node, node);
            self.later(delay, event);
        }
    }

    pub(super) fn slow(&mut self, node: NodeId, factor: u32) {
        self.node_mut(node).slowness = factor.max(1);
    }
}
