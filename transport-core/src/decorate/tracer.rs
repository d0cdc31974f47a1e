//! Shows everything that passes an endpoint.

use core::fmt;

use super::{Decorated, Decorator, Event};
use crate::link::Endpoint;

/// An endpoint that shows everything to a closure, in the order in which it happens.
///
/// ```
/// use transport_core::decorate::{Event, Tracer};
/// use transport_core::link::{Endpoint, Link};
///
/// fn count_messages<E: Endpoint>(endpoint: E) -> Tracer<E, impl FnMut(&Event<'_>)> {
///     let mut messages = 0;
///     Tracer::new(endpoint, move |event| messages += u32::from(matches!(event, Event::Send { .. })))
/// }
/// ```
pub type Tracer<E, F> = Decorated<E, Tracing<F>>;

/// The decorator of [`Tracer`].
pub struct Tracing<F> {
    show: F,
}

impl<E: Endpoint, F: FnMut(&Event<'_>)> Tracer<E, F> {
    /// Calls `show` for everything that passes `endpoint`.
    pub fn new(endpoint: E, show: F) -> Self {
        Self::with(endpoint, Tracing { show })
    }
}

impl<F: FnMut(&Event<'_>)> Decorator for Tracing<F> {
    fn see(&mut self, event: &Event<'_>) {
        (self.show)(event);
    }
}

impl<F> fmt::Debug for Tracing<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracing").finish_non_exhaustive()
    }
}
