//! Memory that peers may write: regions, the pins that keep them, and the tables of pages in them.
//!
//! * [`MemoryRegion`]: bytes that a fabric may register. Nobody ever gets a reference to them.
//! * [`PagedTable`]: how items (KV pages, aux slots, state slots) lie in regions, proven in bounds
//!   once, at construction.
//! * [`CacheTables`]: all tables of one engine rank.
//! * [`Spans`] and [`Segments`]: item lists turned into merged byte spans, without allocation.
//! * [`PinCount`]: one word that says whether anybody still uses something that is being closed.

mod cache;
pub mod pin;
mod plan;
#[allow(unsafe_code, reason = "raw memory that peers may write")]
mod region;
mod shape;
mod table;

pub use cache::CacheTables;
pub use pin::PinCount;
pub(crate) use plan::stream_len;
pub use plan::{Segment, Segments, Span, Spans};
pub use region::{DeviceBytes, MemoryRegion, OutOfRange, RegionClosed, RegionPin};
pub use shape::BufferShape;
pub use table::{LayerBuffer, MAX_BUFFERS, PagedTable, TableError};
