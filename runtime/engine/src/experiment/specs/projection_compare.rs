//! `projection-compare`: a Q-Former with a few tokens for each image against a projection of all
//! patches.

use crate::experiment::answer::Ask;
use crate::experiment::report::{Axis, Bars, Cell, Chart, ChartData, Table};
use crate::experiment::results::CaseResults;
use crate::experiment::sample::Read;
use crate::experiment::stages::{self, ms};
use crate::experiment::synthetic::MOST_FRAMES;
use crate::experiment::{
    About, Bench, BenchModel, Case, Experiment, ExperimentError, Findings, Modality, Results,
    Sample, Values,
};
use crate::media::{FrameSelection, Media, MediaData};

/// Numbers of frames.
const FRAMES: [f64; 2] = [4.0, 8.0];
/// Side of synthetic images and frames.
const SIDE: usize = 336;

/// The experiment.
pub struct ProjectionCompare;

impl Experiment for ProjectionCompare {
    fn about(&self) -> About {
        About {
            name: "projection-compare",
            question: "How much time does a Q-Former (BLIP-2) save against a projection of all \
                       patches (LLaVA), as the language model gets fewer tokens?",
            varies: "model and number of frames",
            measures: "visual tokens, time of encoder, projector and prefill, accuracy with a \
                       manifest. Frames are a video, several images, or a prompt each, as the \
                       model permits",
            needs: "two or more records of models that take images, such as BLIP-2 and LLaVA",
            models: 2,
            uses: &[Modality::Image, Modality::Video],
            common: false,
            values: "numbers of frames [4,8]",
            manifest: false,
        }
    }

    fn cases(&self, bench: &mut Bench) -> Result<Vec<Case>, ExperimentError> {
        let models = bench.all_taking(&self.about(), Modality::Image)?;
        let frames = bench.counts(&FRAMES, MOST_FRAMES)?;
        let mut cases = Vec::new();
        for model in models {
            let name = bench.models[model].name.clone();
            let image = move |bench: &mut Bench, sample: &Sample| {
                let side = sample.expected().is_none().then_some(SIDE);
                let Read { media, .. } = sample.image(side)?;
                ask(bench, model, sample, &[media])
            };
            cases.push(
                Case::new(&*name, "image", image)
                    .of(Modality::Image)
                    .at(1.0),
            );
            for &count in &frames {
                let clip = move |bench: &mut Bench, sample: &Sample| {
                    let count = count as usize;
                    let selection = FrameSelection::Uniform(count);
                    let Read { media, .. } = sample.video(selection, count, SIDE)?;
                    frames_of(bench, model, sample, &media)
                };
                let setting = format!("{count} frames");
                cases.push(
                    Case::new(&*name, setting, clip)
                        .of(Modality::Video)
                        .at(count),
                );
            }
        }
        Ok(cases)
    }

    fn findings(&self, results: &Results) -> Findings {
        let mut table = Table::new(&[
            ("model", "", 0),
            ("input", "", 0),
            ("prompts", "", 0),
            ("visual tokens", "", 0),
            ("encoder", "ms", 2),
            ("projector", "ms", 2),
            ("prefill", "ms", 2),
            ("after the encoder", "ms", 2),
            ("first token", "ms", 2),
            ("right", "%", 1),
        ]);
        for case in results.cases() {
            table.rows.push(vec![
                Cell::from(&*case.key.model),
                Cell::from(&*case.key.setting),
                case.median("prompts").into(),
                case.median("visual_tokens").into(),
                case.median("encoder").into(),
                case.median("projector").into(),
                case.median("prefill").into(),
                case.median("after").into(),
                case.median("first_token").into(),
                case.accuracy().into(),
            ]);
        }
        Findings {
            table,
            charts: vec![chart(results)],
            notes: notes(results),
        }
    }
}

fn chart(results: &Results) -> Chart {
    let mut settings: Vec<&str> = Vec::new();
    for case in results.cases() {
        if !settings.contains(&&*case.key.setting) {
            settings.push(&case.key.setting);
        }
    }
    let series = |model: &str| Bars {
        name: model.to_owned(),
        values: settings
            .iter()
            .map(|setting| results.case(model, setting)?.median("after"))
            .collect(),
    };
    Chart {
        title: "Projector and prefill by model".to_owned(),
        x: Axis::new("input", ""),
        y: Axis::new("time after the encoder", "ms"),
        data: ChartData::Bars {
            categories: settings.iter().map(|&setting| setting.to_owned()).collect(),
            series: results.models().into_iter().map(series).collect(),
            stacked: false,
        },
    }
}

/// Compares the first model with each of the others.
fn notes(results: &Results) -> Vec<String> {
    let models = results.models();
    let Some((&first, others)) = models.split_first() else {
        return Vec::new();
    };
    let mut notes = Vec::new();
    for &other in others {
        for a in results.of(first) {
            let Some(b) = results.case(other, &a.key.setting) else {
                continue;
            };
            let mut pair = [(first, a), (other, b)];
            pair.sort_by(|(_, a), (_, b)| {
                let after =
                    |case: &crate::experiment::results::CaseResults| case.median_or_zero("after");
                after(a).total_cmp(&after(b))
            });
            let [(fast, a), (slow, b)] = pair;
            let ratio = |name| b.median_or_zero(name) / a.median_or_zero(name).max(1e-9);
            notes.push(format!(
                "{}: after the encoder, {fast} needs {} for {} visual tokens and {slow} {} for {}: \
                 {:.1} times the time for {:.1} times the tokens.",
                a.key.setting,
                ms(a.median_or_zero("after")),
                a.median_or_zero("visual_tokens"),
                ms(b.median_or_zero("after")),
                b.median_or_zero("visual_tokens"),
                ratio("after"),
                ratio("visual_tokens"),
            ));
            let prompts = |case: &CaseResults| case.median_or_zero("prompts");
            if prompts(a) != prompts(b) {
                notes.push(format!(
                    "{}: {fast} needs {} prompts and {slow} {}: where the model takes one image, \
                     each frame has a prompt of its own, whose text counts every time.",
                    a.key.setting,
                    prompts(a),
                    prompts(b)
                ));
            }
            let share = 100.0 * a.median_or_zero("encoder") / stages::sum(a).max(1e-9);
            notes.push(format!(
                "{}: the encoder of {fast} takes {share:.0} % of all its time, which no \
                 projection changes.",
                a.key.setting
            ));
        }
    }
    notes
}

/// Asks about the frames of a clip: as a video, as several images, or one after the other.
fn frames_of(
    bench: &mut Bench,
    model: usize,
    sample: &Sample,
    clip: &Media,
) -> Result<Values, ExperimentError> {
    let options = bench.settings.media.clone();
    let target: &mut BenchModel = &mut bench.models[model];
    if target.takes(Modality::Video) {
        return ask(bench, model, sample, std::slice::from_ref(clip));
    }
    let MediaData::Video { frames, .. } = clip.data() else {
        let message = "a video was read as another kind of medium".to_owned();
        return Err(ExperimentError::Impossible(message));
    };
    let images: Vec<Media> = frames.iter().cloned().map(Media::image).collect();
    if let Ok(Some(_)) = target.prompt_tokens(&images, sample.question(), &options) {
        return ask(bench, model, sample, &images);
    }
    let mut sum = Values::default();
    for image in images {
        let one = ask(bench, model, sample, &[image])?;
        for (name, value) in one.numbers {
            *sum.numbers.entry(name).or_default() += value;
        }
    }
    // Answers about single frames do not answer the question about the video.
    sum.numbers.remove("right");
    Ok(sum)
}

fn ask(
    bench: &mut Bench,
    model: usize,
    sample: &Sample,
    media: &[Media],
) -> Result<Values, ExperimentError> {
    let ask = Ask {
        media,
        options: bench.settings.media.clone(),
        max_tokens: bench.settings.max_tokens,
    };
    let (values, _) = ask.fresh(&mut bench.models[model], sample)?;
    let after = values.get("projector") + values.get("prefill");
    Ok(values.with("after", after).with("prompts", 1.0))
}
