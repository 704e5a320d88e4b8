//! Declarations of weights beyond names and sizes: the selected rows and columns, the modules that
//! take a scale, and the products.

#[path = "../common/mod.rs"]
mod common;

mod folding;
mod observing;
mod pruning;
mod scales;

use common::Golden;
use edge_lmm::{Cpu, Request, Session, Speculation};
use edge_lmm_ops::probe::{self, Captured};
use std::collections::BTreeMap;

/// Answers a sample's question with a few tokens and captures the stages.
fn stages(engine: &mut Session<Cpu>, golden: &Golden) -> (Vec<u32>, BTreeMap<String, Captured>) {
    probe::start();
    let tokens = answer(engine, golden);
    (tokens, probe::finish())
}

/// Answers a sample's question with a few tokens, and with drafts unless stages are captured.
fn answer(engine: &mut Session<Cpu>, golden: &Golden) -> Vec<u32> {
    let messages = common::ask(&golden.media, &golden.question);
    let request = Request {
        media: &golden.media,
        max_tokens: 4,
        ignore_eos: true,
        sampling: Default::default(),
        speculation: Speculation::Fixed(1),
        ..Request::new(&messages)
    };
    engine.forget();
    let answer = engine.answer(&request, |_| std::ops::ControlFlow::Continue(()));
    answer.expect(&golden.name).tokens
}
