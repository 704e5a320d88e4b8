//! `token-prefill`: time of the prefill against the number of prompt tokens.

use crate::experiment::answer::Ask;
use crate::experiment::report::{Axis, Cell, Table};
use crate::experiment::stages::{fit, line_per_model, lines, ms, points};
use crate::experiment::synthetic;
use crate::experiment::{
    About, Bench, BenchModel, Case, Experiment, ExperimentError, Findings, Modality, Results,
    Sample,
};
use crate::statistics::Statistics;

/// Numbers of prompt tokens.
const TOKENS: [f64; 6] = [32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// The experiment.
pub struct TokenPrefill;

impl Experiment for TokenPrefill {
    fn about(&self) -> About {
        About {
            name: "token-prefill",
            question: "How does the time of the prefill grow with the prompt, and what does a \
                       token cost?",
            varies: "number of prompt tokens",
            measures: "time of the prefill and tokens per second",
            needs: "any record",
            models: 1,
            uses: &[Modality::Text],
            common: false,
            values: "prompt tokens [32,64,128,256,512,1024], as far as the context reaches",
            manifest: false,
        }
    }

    fn cases(&self, bench: &mut Bench) -> Result<Vec<Case>, ExperimentError> {
        if bench.manifest.is_some() {
            return Err(ExperimentError::Impossible(
                "token-prefill makes its own prompts of exact lengths: leave out --manifest"
                    .to_owned(),
            ));
        }
        let lengths = bench.counts(&TOKENS, 1 << 20)?;
        let mut cases = Vec::new();
        for model in 0..bench.models.len() {
            for &tokens in &lengths {
                let Some(words) = words_for(&mut bench.models[model], tokens as usize)? else {
                    log::warn!(
                        "{}: a prompt of {tokens} tokens is shorter than the template or longer \
                         than the context; it is left out",
                        bench.models[model].name
                    );
                    continue;
                };
                let name = bench.models[model].name.clone();
                let measure = move |bench: &mut Bench, sample: &Sample| {
                    let ask = Ask {
                        media: &[],
                        options: bench.settings.media.clone(),
                        max_tokens: bench.settings.max_tokens,
                    };
                    let sample = sample.saying(words);
                    let (values, _) = ask.fresh(&mut bench.models[model], &sample)?;
                    Ok(values)
                };
                cases.push(Case::new(name, format!("{tokens} tokens"), measure).at(tokens));
            }
        }
        match cases.is_empty() {
            false => Ok(cases),
            true => Err(ExperimentError::Value(
                "no prompt has such a length: the template is longer or the context is shorter"
                    .to_owned(),
            )),
        }
    }

    fn findings(&self, results: &Results) -> Findings {
        let mut table = Table::new(&[
            ("model", "", 0),
            ("prompt tokens", "", 0),
            ("prefill", "ms", 2),
            ("lowest", "ms", 2),
            ("highest", "ms", 2),
            ("tokens per second", "", 0),
        ]);
        for case in results.cases() {
            let times = Statistics::of(&case.values("prefill"));
            let tokens = case.median_or_zero("prompt_tokens");
            table.rows.push(vec![
                Cell::from(&*case.key.model),
                tokens.into(),
                times.map(|times| times.median).into(),
                times.map(|times| times.min).into(),
                times.map(|times| times.max).into(),
                times.map(|times| 1e3 * tokens / times.median).into(),
            ]);
        }
        let note = |model: &str| {
            let (fixed, slope) = fit(&points(results.of(model), "prefill"))?;
            Some(format!(
                "{model}: a straight line through the points has {} at 0 tokens and {} for 100 \
                 tokens more.",
                ms(fixed),
                ms(100.0 * slope)
            ))
        };
        Findings {
            table,
            charts: vec![lines(
                "Prefill by prompt tokens",
                Axis::new("prompt tokens", ""),
                Axis::new("prefill", "ms"),
                line_per_model(results, "prefill"),
            )],
            notes: results.models().into_iter().filter_map(note).collect(),
        }
    }
}

/// Returns the number of words whose prompt has about `tokens` tokens; `None` if the template alone
/// is longer, or the prompt does not fit the context.
fn words_for(model: &mut BenchModel, tokens: usize) -> Result<Option<usize>, ExperimentError> {
    let mut length =
        |words: usize| model.prompt_tokens(&[], &synthetic::text(words), &Default::default());
    let (Some(few), Some(more)) = (length(1)?, length(17)?) else {
        return Ok(None);
    };
    if tokens < few {
        return Ok(None);
    }
    let per_word = (more - few) as f64 / 16.0;
    let words = 1 + ((tokens - few) as f64 / per_word.max(1e-9)).round() as usize;
    Ok(length(words)?.map(|_| words))
}
