//! Two tasks in turn or at once, on all cores or on a half of them each.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use edge_lmm_kernels::pool::{self, ThreadPool};
use edge_lmm_models::media::MediaOptions;

use super::answer::encode;
use super::bench::BenchModel;
use super::error::ExperimentError;
use super::report::{Axis, Bars, Cell, Chart, ChartData};
use super::results::{CaseResults, Results};
use super::sample::since;
use super::spec::Values;
use crate::any_device::AnyEngine;
use crate::media::{Media, user_message};
use crate::request::Request;

/// A task of a model.
pub(super) struct Task {
    pub engine: AnyEngine,
    pub media: Vec<Media>,
    pub options: MediaOptions,
    pub work: Work,
}

/// Kind of a task.
pub(super) enum Work {
    /// Prepares and encodes media.
    Encode,
    /// Answers a question with so many tokens.
    Answer(String, usize),
}

/// Order and cores of two tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// One after the other, on all cores.
    InTurn,
    /// One after the other, on half of the cores.
    InTurnOnHalf,
    /// Both at once, each on its half of the cores.
    AtOnceOnHalves,
    /// Both at once on devices of their own, or on the same cores.
    AtOnce,
}

impl Order {
    /// Returns the name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::InTurn => "in turn, all cores",
            Self::InTurnOnHalf => "in turn, half of the cores",
            Self::AtOnceOnHalves => "at once, half of the cores each",
            Self::AtOnce => "at once, all cores",
        }
    }
}

/// Returns the name of the models of two tasks.
pub(super) fn name(models: &[BenchModel], first: usize, second: usize) -> String {
    match first == second {
        true => models[first].name.clone(),
        false => format!("{} + {}", models[first].name, models[second].name),
    }
}

/// Returns the time of both tasks divided by that in turn on all cores, with the same input.
pub(super) fn to_in_turn(results: &Results, case: &CaseResults) -> Option<f64> {
    let turn = results.cases().iter().find(|other| {
        other.key.x == case.key.x && other.key.setting.ends_with(Order::InTurn.name())
    })?;
    Some(case.median("total")? / turn.median("total")?)
}

/// Returns the row of a case: models, setting, time of each task and of both, ratio to in turn.
pub(super) fn row(case: &CaseResults, ratio: Option<f64>) -> Vec<Cell> {
    vec![
        Cell::from(&*case.key.model),
        Cell::from(&*case.key.setting),
        case.median("first").into(),
        case.median("second").into(),
        case.median("total").into(),
        ratio.into(),
    ]
}

/// Draws the time of each task, whose names are given, and of both.
pub(super) fn chart(results: &Results, title: &str, x: &str, tasks: [&str; 2]) -> Chart {
    let bars = |name: &str, value: &str| Bars {
        name: name.to_owned(),
        values: results
            .cases()
            .iter()
            .map(|case| case.median(value))
            .collect(),
    };
    Chart {
        title: title.to_owned(),
        x: Axis::new(x, ""),
        y: Axis::new("time", "ms"),
        data: ChartData::Bars {
            categories: results.cases().iter().map(|case| case.label(1)).collect(),
            series: vec![
                bars(tasks[0], "first"),
                bars(tasks[1], "second"),
                bars("both", "total"),
            ],
            stacked: false,
        },
    }
}

impl Task {
    /// Does the task in a new session and returns its time in milliseconds.
    fn run(&self) -> Result<f64, ExperimentError> {
        let mut session = self.engine.session();
        match &self.work {
            Work::Encode => Ok(encode(&mut session, &self.media, &self.options)?.get("total")),
            Work::Answer(question, max_tokens) => {
                session.forget();
                let messages = [user_message(&self.media, question.as_str())];
                let request = Request {
                    media: &self.media,
                    options: self.options.clone(),
                    max_tokens: *max_tokens,
                    ignore_eos: true,
                    ..Request::new(&messages)
                };
                let start = Instant::now();
                session.answer(&request, |_| ControlFlow::Continue(()))?;
                Ok(since(start))
            }
        }
    }
}

/// Returns the number of cores of a half.
///
/// # Errors
/// If there is only one.
pub(super) fn half() -> Result<NonZeroUsize, ExperimentError> {
    let cores = pool::global().threads();
    NonZeroUsize::new(cores / 2).ok_or_else(|| {
        ExperimentError::Impossible(
            "two partitions need at least two threads: use a machine with more cores, or a larger \
             --threads"
                .to_owned(),
        )
    })
}

/// Does two tasks and returns the time of each (`first`, `second`) and of both (`total`).
///
/// # Errors
/// If one fails.
pub(super) fn run(order: Order, tasks: &[Task; 2]) -> Result<Values, ExperimentError> {
    let half = half()?;
    let small = || Arc::new(ThreadPool::new(half));
    let [first, second] = tasks;
    let (first, second, total) = match order {
        Order::InTurn | Order::InTurnOnHalf => {
            let pool = (order == Order::InTurnOnHalf).then(small);
            let start = Instant::now();
            let times = [first, second].map(|task| within(pool.clone(), task));
            let total = since(start);
            let [first, second] = times;
            (first?, second?, total)
        }
        Order::AtOnce | Order::AtOnceOnHalves => {
            let pools = [(); 2].map(|()| (order == Order::AtOnceOnHalves).then(small));
            let [one, other] = pools;
            let start = Instant::now();
            let times = thread::scope(|scope| {
                let other = scope.spawn(|| within(other, second));
                let first = within(one, first);
                let second = other.join();
                (
                    first,
                    second.unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                )
            });
            let total = since(start);
            (times.0?, times.1?, total)
        }
    };
    Ok(Values::default()
        .with("first", first)
        .with("second", second)
        .with("total", total))
}

fn within(pool: Option<Arc<ThreadPool>>, task: &Task) -> Result<f64, ExperimentError> {
    match pool {
        Some(pool) => pool::scoped(pool, || task.run()),
        None => task.run(),
    }
}
