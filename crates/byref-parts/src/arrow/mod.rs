//! Arrow data, as the C data interface has them: gathered into the parts of a payload, and shown as they lie there.

pub mod abi;
mod check;
mod gather;
mod kind;
mod plain;
mod schema;
mod show;
mod stream;

pub use gather::{Chunk, gather};
pub use plain::plain;
pub use schema::{Field, export as export_schema};
pub use show::show;
pub use stream::export as export_stream;

use serde::{Deserialize, Serialize};

/// What Arrow data are beside their type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Class {
    /// One array.
    Array,
    /// One array of structs that is a record batch.
    Batch,
    /// Any number of arrays.
    Chunked,
    /// Any number of record batches.
    Table,
}
