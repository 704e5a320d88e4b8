//! `serial-vs-parallel`: decoding, preparing and encoding one after the other or overlapped.

use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use edge_lmm_models::media::MediaOptions;

use crate::experiment::answer::{Ask, encode};
use crate::experiment::report::{Axis, Bars, Cell, Chart, ChartData, Table};
use crate::experiment::sample::{Read, since};
use crate::experiment::stages::ms;
use crate::experiment::synthetic;
use crate::experiment::{
    About, Bench, Case, Experiment, ExperimentError, Findings, Modality, Results, Sample, Values,
};
use crate::media::{FrameSelection, Media, decode_image};

/// Media that are decoded, and questions that follow each other.
const COUNT: usize = 4;
/// Frames of a synthetic clip, and their side.
const CLIP: (usize, usize) = (16, 224);
/// Side of synthetic images.
const SIDE: usize = 448;

/// Pairs of conditions: one after the other, and overlapped.
const PAIRS: [(&str, [&str; 2]); 3] = [
    (
        "decoding",
        ["4 media, one by one", "4 media, a thread each"],
    ),
    (
        "encoding of a video",
        ["video, prepared before", "video, prepared meanwhile"],
    ),
    (
        "questions",
        [
            "4 questions, one by one",
            "4 questions, next medium decoded meanwhile",
        ],
    ),
];

/// The experiment.
pub struct SerialVsParallel;

impl Experiment for SerialVsParallel {
    fn about(&self) -> About {
        About {
            name: "serial-vs-parallel",
            question: "How much time does it save to decode media on several threads, to prepare a \
                       video while it is encoded, and to decode the next medium during an answer?",
            varies: "order of the work: one after the other, or overlapped",
            measures: "wall time",
            needs: "a record of a model that takes images or videos",
            models: 1,
            uses: &[Modality::Image, Modality::Video],
            common: true,
            values: "",
            manifest: false,
        }
    }

    fn cases(&self, bench: &mut Bench) -> Result<Vec<Case>, ExperimentError> {
        let mut cases = Vec::new();
        let videos = bench.taking(Modality::Video);
        for model in bench.all_taking(&self.about(), Modality::Image)? {
            let name = bench.models[model].name.clone();
            let video = videos.contains(&model);
            for (overlapped, setting) in [false, true].into_iter().zip(PAIRS[0].1) {
                cases.push(Case::new(&*name, setting, move |_, sample| {
                    decode(sample, overlapped)
                }));
            }
            for (overlapped, setting) in [false, true].into_iter().zip(PAIRS[1].1) {
                if video {
                    let measure = move |bench: &mut Bench, sample: &Sample| {
                        encode_video(bench, model, sample, overlapped)
                    };
                    cases.push(Case::new(&*name, setting, measure).of(Modality::Video));
                }
            }
            for (overlapped, setting) in [false, true].into_iter().zip(PAIRS[2].1) {
                let measure = move |bench: &mut Bench, sample: &Sample| {
                    questions(bench, model, sample, overlapped)
                };
                cases.push(Case::new(&*name, setting, measure));
            }
        }
        Ok(cases)
    }

    fn findings(&self, results: &Results) -> Findings {
        let mut table = Table::new(&[
            ("model", "", 0),
            ("work", "", 0),
            ("one by one", "ms", 2),
            ("overlapped", "ms", 2),
            ("to one by one", "", 2),
        ]);
        let mut notes = Vec::new();
        for model in results.models() {
            for (work, [serial, parallel]) in PAIRS {
                let time = |setting| results.case(model, setting)?.median("total");
                let (Some(serial), Some(parallel)) = (time(serial), time(parallel)) else {
                    continue;
                };
                table.rows.push(vec![
                    Cell::from(model),
                    Cell::from(work),
                    serial.into(),
                    parallel.into(),
                    (parallel / serial).into(),
                ]);
                notes.push(format!(
                    "{model}, {work}: overlapped takes {} instead of {} ({:+.0} %).",
                    ms(parallel),
                    ms(serial),
                    100.0 * (parallel / serial - 1.0)
                ));
            }
        }
        let values = |column: usize| {
            let cells = table.rows.iter().map(move |row| match row[column] {
                Cell::Number(value) => Some(value),
                _ => None,
            });
            cells.collect()
        };
        let chart = Chart {
            title: "Wall time one by one and overlapped".to_owned(),
            x: Axis::new("work", ""),
            y: Axis::new("time", "ms"),
            data: ChartData::Bars {
                categories: table
                    .rows
                    .iter()
                    .map(|row| match (&row[0], &row[1]) {
                        (Cell::Text(model), Cell::Text(work)) if results.models().len() > 1 => {
                            format!("{model}, {work}")
                        }
                        (_, Cell::Text(work)) => work.clone(),
                        _ => String::new(),
                    })
                    .collect(),
                series: vec![
                    Bars {
                        name: "one by one".to_owned(),
                        values: values(2),
                    },
                    Bars {
                        name: "overlapped".to_owned(),
                        values: values(3),
                    },
                ],
                stacked: false,
            },
        };
        Findings {
            table,
            charts: vec![chart],
            notes,
        }
    }
}

/// Returns a function that decodes the sample's medium, or the given synthetic JPEG image.
fn decoder(
    sample: &Sample,
    number: u64,
) -> Result<impl Fn() -> Result<Media, ExperimentError> + Send + Sync, ExperimentError> {
    let synthetic = match sample.path() {
        Some(_) => None,
        None => Some(synthetic::jpeg(SIDE, sample.seed * COUNT as u64 + number)?),
    };
    let sample = sample.clone();
    Ok(move || match (&synthetic, sample.media()?) {
        (_, Some(Read { media, .. })) => Ok(media),
        (Some(jpeg), None) => Ok(Media::image(decode_image(jpeg)?)),
        (None, None) => Err(ExperimentError::Impossible(
            "a question about text has no medium".to_owned(),
        )),
    })
}

/// Decodes several media.
fn decode(sample: &Sample, overlapped: bool) -> Result<Values, ExperimentError> {
    let decoders = (0..COUNT as u64)
        .map(|number| decoder(sample, number))
        .collect::<Result<Vec<_>, _>>()?;
    let start = Instant::now();
    match overlapped {
        false => decoders.iter().try_for_each(|decode| decode().map(drop))?,
        true => thread::scope(|scope| {
            let threads: Vec<_> = decoders.iter().map(|decode| scope.spawn(decode)).collect();
            threads.into_iter().try_for_each(|thread| {
                let decoded = thread.join();
                decoded
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                    .map(drop)
            })
        })?,
    }
    Ok(Values::default().with("total", since(start)))
}

/// Prepares and encodes a video.
fn encode_video(
    bench: &mut Bench,
    model: usize,
    sample: &Sample,
    overlapped: bool,
) -> Result<Values, ExperimentError> {
    let Read { media, .. } = sample.video(FrameSelection::All, CLIP.0, CLIP.1)?;
    let options = MediaOptions {
        overlap: overlapped,
        ..bench.settings.media.clone()
    };
    encode(&mut bench.models[model].session, &[media], &options)
}

/// Answers questions about media that are decoded for each of them.
fn questions(
    bench: &mut Bench,
    model: usize,
    sample: &Sample,
    overlapped: bool,
) -> Result<Values, ExperimentError> {
    let decoders = (0..COUNT as u64)
        .map(|number| decoder(sample, number))
        .collect::<Result<Vec<_>, _>>()?;
    let options = bench.settings.media.clone();
    let max_tokens = bench.settings.max_tokens;
    let model = &mut bench.models[model];
    let mut answer = |media: Media| {
        let ask = Ask {
            media: &[media],
            options: options.clone(),
            max_tokens,
        };
        ask.fresh(model, sample).map(drop)
    };
    let start = Instant::now();
    match overlapped {
        false => decoders.iter().try_for_each(|decode| answer(decode()?))?,
        true => thread::scope(|scope| {
            // The next medium is decoded while a question is answered, no more than one ahead.
            let (sender, decoded) = mpsc::sync_channel(0);
            let decoders = decoders.iter();
            scope.spawn(move || {
                // The receiver is gone after an error.
                for decode in decoders {
                    if sender.send(decode()).is_err() {
                        break;
                    }
                }
            });
            decoded.into_iter().try_for_each(|media| answer(media?))
        })?,
    }
    Ok(Values::default().with("total", since(start)))
}
