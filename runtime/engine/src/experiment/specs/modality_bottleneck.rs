//! `modality-bottleneck`: the longest stage for text, images, videos and sounds.

use crate::experiment::answer::Ask;
use crate::experiment::report::{Cell, Table};
use crate::experiment::sample::Read;
use crate::experiment::stages::{self, ms};
use crate::experiment::synthetic::MOST_PIXELS;
use crate::experiment::{
    About, Bench, Case, Experiment, ExperimentError, Findings, Modality, Results, Sample, Values,
};
use crate::media::FrameSelection;

/// Sides of synthetic images.
const SIDES: [f64; 3] = [224.0, 448.0, 672.0];
/// Words of a synthetic text.
const WORDS: usize = 64;
/// Frames of a synthetic clip, and their side.
const CLIP: (usize, usize) = (8, 224);
/// Seconds of a synthetic sound.
const SECONDS: f64 = 10.0;

/// The experiment.
pub struct ModalityBottleneck;

impl Experiment for ModalityBottleneck {
    fn about(&self) -> About {
        About {
            name: "modality-bottleneck",
            question: "Which stage takes most of the time for each kind of input?",
            varies: "kind of input: text, images of several sizes, a video, a sound",
            measures: "time of each stage and its share",
            needs: "any record",
            models: 1,
            uses: &Modality::ALL,
            common: false,
            values: "sides of the image in pixels [224,448,672]",
            manifest: false,
        }
    }

    fn cases(&self, bench: &mut Bench) -> Result<Vec<Case>, ExperimentError> {
        let sides = match bench.manifest {
            Some(_) if bench.settings.values.is_none() => Vec::new(),
            _ => bench.counts(&SIDES, MOST_PIXELS)?,
        };
        let mut cases = Vec::new();
        for modality in Modality::ALL {
            for model in bench.taking(modality) {
                let name = bench.models[model].name.clone();
                let case = |setting: String, side| {
                    let measure = move |bench: &mut Bench, sample: &Sample| {
                        measure(bench, sample, model, modality, side)
                    };
                    Case::new(name.clone(), setting, measure).of(modality)
                };
                match (modality, sides.is_empty()) {
                    (Modality::Image, false) => {
                        let sides = sides.iter().map(|&side| {
                            case(format!("image, {side} px"), Some(side as usize)).at(side)
                        });
                        cases.extend(sides);
                    }
                    _ => cases.push(case(modality.name().to_owned(), None)),
                }
            }
        }
        cases.sort_by_key(|case| {
            let models = bench.models.iter();
            models
                .clone()
                .position(|model| model.name == case.key.model)
        });
        Ok(cases)
    }

    fn findings(&self, results: &Results) -> Findings {
        let mut columns = vec![("model", "", 0), ("input", "", 0), ("visual tokens", "", 0)];
        columns.push(("media", "ms", 2));
        columns.extend(stages::COLUMNS);
        columns.extend([
            ("sum", "ms", 2),
            ("encoder", "%", 1),
            ("projector", "%", 1),
            ("longest", "", 0),
        ]);
        let mut table = Table::new(&columns);
        let mut notes = Vec::new();
        for case in results.cases() {
            let (longest, share) = stages::longest(case);
            let mut row = vec![
                Cell::from(&*case.key.model),
                Cell::from(&*case.key.setting),
                case.median("visual_tokens").into(),
                case.median("media").into(),
            ];
            row.extend(stages::cells(case));
            row.extend([
                stages::sum(case).into(),
                stages::share(case, "encoder").into(),
                stages::share(case, "projector").into(),
                longest.into(),
            ]);
            table.rows.push(row);
            notes.push(format!(
                "{}: {longest} takes {share:.1} % of {}.",
                case.label(results.models().len()),
                ms(stages::sum(case))
            ));
        }
        Findings {
            table,
            charts: vec![stages::stacked("Time of the stages by input", results)],
            notes,
        }
    }
}

fn measure(
    bench: &mut Bench,
    sample: &Sample,
    model: usize,
    modality: Modality,
    side: Option<usize>,
) -> Result<Values, ExperimentError> {
    let read = match modality {
        Modality::Text => None,
        Modality::Image => Some(sample.image(side)?),
        Modality::Video => Some(sample.video(FrameSelection::All, CLIP.0, CLIP.1)?),
        Modality::Audio => Some(sample.audio(sample.question.is_none().then_some(SECONDS))?),
    };
    let (media, read_ms): (Vec<_>, f64) = match read {
        Some(Read { media, ms }) => (vec![media], ms),
        None => (Vec::new(), 0.0),
    };
    let ask = Ask {
        media: &media,
        options: bench.settings.media.clone(),
        max_tokens: bench.settings.max_tokens,
    };
    let words;
    let sample = match (modality, &sample.question) {
        (Modality::Text, None) => {
            words = sample.saying(WORDS);
            &words
        }
        _ => sample,
    };
    let (values, _) = ask.fresh(&mut bench.models[model], sample)?;
    // A synthetic image is not read from a file.
    Ok(
        match sample.question.is_some() || modality == Modality::Video {
            true => values.with("media", read_ms),
            false => values,
        },
    )
}
