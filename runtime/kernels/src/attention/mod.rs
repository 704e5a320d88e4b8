//! Softmax attention without a score matrix, and the key/value cache.
//!
//! Keys and values are stored head by head in chunks of [`CHUNK`] positions, the keys transposed, so that both
//! products of a chunk are row-major matrix products. Each query computes the maximum, the sum of exponentials
//! and the weighted sum of values of a chunk, and these are merged chunk by chunk (online softmax: Milakov &
//! Gimelshein 2018, [arXiv:1805.02867](https://arxiv.org/abs/1805.02867); Dao et al. 2022,
//! [arXiv:2205.14135](https://arxiv.org/abs/2205.14135)). Chunks begin at fixed positions, so the result of a
//! query does not depend on the other queries or the number of threads.

mod cache;
mod float;
mod integer;
mod layout;
mod received;
mod row;
mod shape;
mod step;

pub use cache::{CacheError, KvCache};
pub use float::{attention, cached_attention};
pub use integer::{MAX_INTEGER_HEAD_DIM, integer_attention};
pub use layout::CHUNK;
pub use received::attention_received;
pub use row::attention_row;
pub use shape::{Heads, Mask, Rows, WeightedMask};
