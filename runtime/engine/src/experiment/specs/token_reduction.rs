//! `token-reduction`: accuracy and time of reduced visual tokens on a question set.

use std::collections::BTreeMap;

use edge_lmm_models::media::MediaOptions;
use edge_lmm_models::reduce::Reductions;
use serde::{Deserialize, Serialize};

use crate::experiment::answer::Ask;
use crate::experiment::report::{Axis, Cell, Chart, ChartData, Column, Line as Curve, Table};
use crate::experiment::results::CaseResults;
use crate::experiment::{
    About, Bench, Case, Experiment, ExperimentError, ExperimentReport, Findings, Line, Modality,
    Plan, Results, Sample, Values,
};
use crate::media::user_message;
use crate::statistics::Statistics;

/// Shares of the tokens that the default chains keep.
const SHARES: [&str; 5] = ["0.75", "0.5", "0.33", "0.25", "0.11"];
/// The case without reduction.
const NONE: &str = "none";
/// The task that stands for all.
const ALL: &str = "all";

/// The experiment.
pub struct TokenReduction;

impl Experiment for TokenReduction {
    fn about(&self) -> About {
        About {
            name: "token-reduction",
            question: "How many visual tokens can be left out before answers get worse, by which \
                       method, and what time does it save?",
            varies: "chain of methods of --reduce",
            measures: "tokens that are left, accuracy by task, time of encoder and prefill",
            needs: "a record of a model that takes images or videos",
            models: 1,
            uses: &[Modality::Image, Modality::Video],
            common: true,
            values: "",
            manifest: true,
        }
    }

    fn cases(&self, bench: &mut Bench) -> Result<Vec<Case>, ExperimentError> {
        let models = bench.all_taking(&self.about(), Modality::Image)?;
        let mut chains = match bench.settings.chains.is_empty() {
            true => default_chains(),
            false => bench.settings.chains.clone(),
        };
        chains.insert(0, Reductions::default());
        let mut cases = Vec::new();
        for model in models {
            for chain in &chains {
                let setting = match chain.is_empty() {
                    true => NONE.to_owned(),
                    false => chain.to_string(),
                };
                let (name, chain) = (bench.models[model].name.clone(), chain.clone());
                let measure =
                    move |bench: &mut Bench, sample: &Sample| measure(bench, sample, model, &chain);
                cases.push(Case::new(name, setting, measure));
            }
        }
        Ok(cases)
    }

    fn findings(&self, results: &Results) -> Findings {
        let tasks = tasks(results.plan);
        let mut columns = vec![
            ("model", "", 0),
            ("reduce", "", 0),
            ("tokens", "%", 1),
            ("vision", "ms", 1),
            ("prefill", "ms", 1),
        ];
        columns.extend(tasks.iter().map(|task| (*task, "%", 1)));
        columns.push((ALL, "%", 1));
        let mut table = Table::new(&columns);
        let mut charts = Vec::new();
        let mut notes = Vec::new();
        for model in results.models() {
            let whole = whole_tokens(results, model);
            for case in results.of(model) {
                let mut row = vec![
                    Cell::from(model),
                    Cell::from(&*case.key.setting),
                    (100.0 * kept(case, &whole)).into(),
                    case.median("vision").into(),
                    case.median("prefill").into(),
                ];
                let scores = scores_of(results.plan, case);
                row.extend(tasks.iter().map(|task| percent(scores.get(*task)).into()));
                row.push(case.accuracy().into());
                table.rows.push(row);
            }
            charts.push(chart(results, model, &whole));
            notes.extend(note(results, model, &whole));
        }
        Findings {
            table,
            charts,
            notes,
        }
    }
}

/// Right answers of a chain for a task; the task `all` stands for the sum, and no chain for the
/// model without reduction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Score {
    /// The chain.
    pub reduce: String,
    /// The task.
    pub task: String,
    /// Right answers.
    pub right: usize,
    /// Questions.
    pub questions: usize,
}

/// Returns the scores of the first model, the sum of each chain last.
pub fn scores(plan: &Plan, lines: &[Line]) -> Vec<Score> {
    let results = Results::new(plan, lines);
    let Some(&model) = results.models().first() else {
        return Vec::new();
    };
    let of_case = |case: &CaseResults| {
        let tasks = scores_of(plan, case);
        let all = tasks.values().fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        let score = |task: &str, (right, questions)| Score {
            reduce: match &*case.key.setting {
                NONE => String::new(),
                chain => chain.to_owned(),
            },
            task: task.to_owned(),
            right,
            questions,
        };
        let tasks = tasks.iter().map(|(task, &count)| score(task, count));
        tasks.chain([score(ALL, all)]).collect::<Vec<_>>()
    };
    results.of(model).flat_map(of_case).collect()
}

/// Adds a column with the right answers of another program to a report.
pub fn add_reference(report: &mut ExperimentReport, reference: &[Score]) {
    report.table.columns.push(Column {
        name: "reference".to_owned(),
        unit: "%".to_owned(),
        decimals: 1,
    });
    for row in &mut report.table.rows {
        let chain = match &row[1] {
            Cell::Text(chain) if chain != NONE => chain.as_str(),
            _ => "",
        };
        let score = reference
            .iter()
            .find(|score| score.task == ALL && score.reduce == chain);
        let cell = percent(score.map(|score| (score.right, score.questions)).as_ref());
        row.push(cell.into());
    }
}

/// Returns the chains that are compared by default: every method at several shares.
///
/// # Panics
/// Never: the chains are valid.
pub fn default_chains() -> Vec<Reductions> {
    let methods = [
        "random",
        "stride",
        "attention",
        "duplicates",
        "diverse",
        "merge",
        "language:1",
    ];
    let shares = methods.iter().flat_map(|method| {
        SHARES.map(|share| match *method {
            "duplicates" => {
                let percent = share.parse::<f64>().unwrap_or(1.0) * 100.0;
                format!("duplicates:{percent}%")
            }
            method => format!("{method}:{share}"),
        })
    });
    let tolerances = ["0", "1", "3", "6"].map(|tolerance| format!("duplicates:{tolerance}"));
    let chains = [
        "merge:0.25:3",
        "merge:0.25:4",
        "merge:0.33:3",
        "merge:0.5,diverse:0.22",
        "merge:0.33,diverse:0.33",
        "merge:0.25,diverse:0.44",
        "merge:0.25,diverse:0.5",
        "diverse:0.33,language:1:0.33",
    ];
    let all = shares.chain(tolerances).chain(chains.map(str::to_owned));
    all.filter_map(|chain| chain.parse().ok()).collect()
}

/// Answers in a new conversation. Encoder outputs are kept while the questions are about the same
/// medium, so that the encoder's time is that of the first one.
fn measure(
    bench: &mut Bench,
    sample: &Sample,
    model: usize,
    chain: &Reductions,
) -> Result<Values, ExperimentError> {
    let read = sample.media()?;
    let media: Vec<_> = read.into_iter().map(|read| read.media).collect();
    let ask = Ask {
        media: &media,
        options: MediaOptions {
            reductions: chain.clone(),
            ..bench.settings.media.clone()
        },
        max_tokens: bench.settings.max_tokens,
    };
    let model = &mut bench.models[model];
    let path = sample.media_path().map(str::to_owned);
    if model.medium != path {
        model.session.forget();
        model.medium = path;
    }
    let messages = [user_message(&media, sample.question())];
    let (values, _) = ask.next(&mut model.engine.session(), sample, &messages)?;
    Ok(values)
}

/// Returns the tasks of the questions.
fn tasks(plan: &Plan) -> Vec<&str> {
    let tasks = plan
        .samples
        .iter()
        .filter_map(|sample| sample.task.as_deref());
    let mut tasks: Vec<&str> = tasks.collect();
    tasks.sort_unstable();
    tasks.dedup();
    tasks
}

/// Returns right answers and questions by task.
fn scores_of<'p>(plan: &'p Plan, case: &CaseResults) -> BTreeMap<&'p str, (usize, usize)> {
    let task_of: BTreeMap<&str, &str> = plan
        .samples
        .iter()
        .filter_map(|sample| Some((&*sample.id, sample.task.as_deref()?)))
        .collect();
    let mut scores = BTreeMap::new();
    for measured in case.measured() {
        let task = task_of.get(measured.sample).copied().unwrap_or_default();
        let score: &mut (usize, usize) = scores.entry(task).or_default();
        score.0 += usize::from(measured.values.get("right") == Some(&1.0));
        score.1 += 1;
    }
    scores
}

fn percent(score: Option<&(usize, usize)>) -> Option<f64> {
    let &(right, questions) = score?;
    Some(100.0 * right as f64 / questions.max(1) as f64)
}

/// Returns the visual tokens of each sample without reduction.
fn whole_tokens<'r>(results: &'r Results, model: &str) -> BTreeMap<&'r str, f64> {
    let whole = results.case(model, NONE).into_iter();
    whole
        .flat_map(|case| case.measured())
        .filter_map(|one| Some((one.sample, *one.values.get("visual_tokens")?)))
        .collect()
}

/// Returns the mean share of the visual tokens that are left at the end.
fn kept(case: &CaseResults, whole: &BTreeMap<&str, f64>) -> f64 {
    let shares = case.measured().iter().map(|one| {
        let left = one.values.get("reduced_tokens");
        let left = left.or(one.values.get("visual_tokens"));
        match (left, whole.get(one.sample)) {
            (Some(left), Some(&whole)) if whole > 0.0 => left / whole,
            // Without visual tokens there is nothing to leave out.
            _ => 1.0,
        }
    });
    let shares: Vec<f64> = shares.collect();
    Statistics::of(&shares).map_or(1.0, |shares| shares.mean)
}

/// Returns one curve for each method, with the model without reduction as its end. Chains of
/// several methods have a comma in their name.
fn chart(results: &Results, model: &str, whole: &BTreeMap<&str, f64>) -> Chart {
    let point = |case: &CaseResults| Some((100.0 * kept(case, whole), case.accuracy()?));
    let end = results.case(model, NONE).and_then(point);
    let mut curves: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for case in results.of(model).filter(|case| case.key.setting != NONE) {
        curves
            .entry(method(&case.key.setting))
            .or_default()
            .extend(point(case));
    }
    let curve = |(name, mut points): (String, Vec<(f64, f64)>)| {
        points.extend(end);
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Curve { name, points }
    };
    Chart {
        title: format!("Accuracy by visual tokens, {model}"),
        x: Axis::new("visual tokens left", "%"),
        y: Axis::new("right answers", "%"),
        data: ChartData::Lines(curves.into_iter().map(curve).collect()),
    }
}

/// Returns the methods of a chain without their ratios. A tolerance of duplicates is another method
/// than a share of them.
fn method(chain: &str) -> String {
    let name = |step: &str| match step.split_once(':') {
        Some(("duplicates", argument)) if !argument.ends_with('%') => {
            "duplicates (tolerance)".to_owned()
        }
        Some((name, _)) => name.to_owned(),
        None => step.to_owned(),
    };
    chain.split(',').map(name).collect::<Vec<_>>().join(",")
}

/// Names the chain with the fewest tokens that loses at most one point of accuracy.
fn note(results: &Results, model: &str, whole: &BTreeMap<&str, f64>) -> Option<String> {
    let full = results.case(model, NONE)?.accuracy()?;
    let good = results
        .of(model)
        .filter(|case| case.accuracy().is_some_and(|right| right >= full - 1.0));
    let best = good.min_by(|a, b| kept(a, whole).total_cmp(&kept(b, whole)))?;
    Some(format!(
        "{model}: {} leaves {:.1} % of the tokens with {:.1} % right answers, at most one point \
         below the {full:.1} % without reduction.",
        best.key.setting,
        100.0 * kept(best, whole),
        best.accuracy()?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_chains_are_all_valid() {
        assert_eq!(default_chains().len(), 7 * SHARES.len() + 4 + 8);
    }

    #[test]
    fn methods_have_no_ratios() {
        for (chain, name) in [
            ("merge:0.5,diverse:0.22", "merge,diverse"),
            ("duplicates:25%", "duplicates"),
            ("duplicates:3", "duplicates (tolerance)"),
            ("language:1:0.5", "language"),
        ] {
            assert_eq!(method(chain), name);
        }
    }
}
