//! Flash attention (Dao et al. 2022, [arXiv:2205.14135](https://arxiv.org/abs/2205.14135)): tiles of
//! queries iterate over tiles of keys and values with an online softmax, so that no matrix of scores is
//! stored.
//!
//! The rows of a tile are queries times the heads that share a key head, so that keys are read once for
//! all of them. A few queries with many keys, as in decoding, do not occupy a GPU; the keys are then
//! divided among cubes, and their partial results are merged.
//!
//! Many queries that may be rounded to half precision are computed by tensor cores ([`tensor_cores`]) if
//! the device has them. All others, and decoding steps, which are bound by the bytes of keys and values,
//! are computed with multiply-adds in f32 ([`plain`]).

mod operands;
pub(super) mod plain;
pub(super) mod row;
pub(super) mod step;
mod tensor_cores;
