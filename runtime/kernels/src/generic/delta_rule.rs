//! The gated delta rule on some columns of a state.

// Columns are indexed in parallel.
#![allow(clippy::needless_range_loop)]

use crate::cpu::DeltaSteps;
use crate::delta_rule::COLUMNS;

/// One element of each column.
pub(crate) type Row = [f32; COLUMNS];

/// The token that a pass over the state adds and answers.
#[derive(Clone, Copy)]
pub(crate) struct Added<'a> {
    pub(crate) key: &'a [f32],
    pub(crate) update: Row,
    pub(crate) query: &'a [f32],
}

/// The token that a pass decays the state for; it is read with its key.
#[derive(Clone, Copy)]
pub(crate) struct Next<'a> {
    pub(crate) decay: f32,
    pub(crate) key: &'a [f32],
}

/// Takes one pass over the state per token, which adds the token and prepares the next one. `pass` returns
/// what the query of the former and the key of the latter read. The operations on an element do not
/// depend on the number of tokens.
#[inline(always)]
pub(crate) fn passes(
    steps: DeltaSteps<'_>,
    state: &mut [f32],
    out: &mut [f32],
    pass: impl Fn(&mut [Row], Option<Added<'_>>, Option<Next<'_>>) -> [Row; 2],
) {
    let (state, rest) = state.as_chunks_mut::<COLUMNS>();
    let (out, _) = out.as_chunks_mut::<COLUMNS>();
    let tokens = out.len();
    assert!(
        rest.is_empty() && steps.decays.len() == tokens && steps.rates.len() == tokens,
        "state, output and gates"
    );
    let rows = state.len();
    let next = |token: usize| {
        let decay = *steps.decays.get(token)?;
        let key = steps.key(token, rows);
        Some(Next { decay, key })
    };
    let [_, mut read] = pass(state, None, next(0));
    for token in 0..tokens {
        let mut update = [0.0; COLUMNS];
        for (c, value) in steps.value(token).iter().enumerate() {
            update[c] = steps.rates[token] * (value - read[c]);
        }
        let added = Added {
            key: steps.key(token, rows),
            update,
            query: steps.query(token, rows),
        };
        [out[token], read] = pass(state, Some(added), next(token + 1));
    }
}

/// The gated delta rule; see [`Kernels::delta_rule`](crate::cpu::Kernels::delta_rule).
pub(super) fn delta_rule(steps: DeltaSteps<'_>, state: &mut [f32], out: &mut [f32]) {
    passes(steps, state, out, |state, added, next| {
        let (mut result, mut read) = ([0.0; COLUMNS], [0.0; COLUMNS]);
        for (i, row) in state.iter_mut().enumerate() {
            if let Some(Added { key, update, query }) = added {
                for c in 0..COLUMNS {
                    row[c] += key[i] * update[c];
                    result[c] += query[i] * row[c];
                }
            }
            if let Some(Next { decay, key }) = next {
                for c in 0..COLUMNS {
                    row[c] *= decay;
                    read[c] += key[i] * row[c];
                }
            }
        }
        [result, read]
    });
}
