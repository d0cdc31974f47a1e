//! The only place that names atomics and cells.
