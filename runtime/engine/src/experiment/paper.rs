//! The findings of a PyTorch profiling study of multimodal models beside measurements of this
//! program: three findings and two defects.

use std::path::{Path, PathBuf};

use super::bench::{Bench, BenchModel, Settings};
use super::error::ExperimentError;
use super::folder::Folder;
use super::line::Line;
use super::plan::Plan;
use super::report::{Cell, ExperimentReport, FORMAT, Table, VERSION};
use super::results::{CaseResults, Results};
use super::run::{Progress, plan, report, run};
use super::sample::Modality;
use super::shard::Shard;
use super::spec::Experiment;
use super::specs::audio_padding::AudioPaddingCost;
use super::specs::frame_ablation::FrameAblation;
use super::specs::modality_bottleneck::ModalityBottleneck;
use super::specs::multiturn::Multiturn;
use super::specs::projection_compare::ProjectionCompare;
use super::stages::{self, ms};
use super::time_limit::TimeLimit;
use crate::manifest::Manifest;
use crate::media::MediaKind;

/// Question of the comparison.
const QUESTION: &str =
    "Do the findings of the PyTorch study hold for this program on this machine?";
/// Families whose projector is a Q-Former.
const Q_FORMERS: [&str; 1] = ["blip-2"];
/// Side of the image of the first finding.
const SIDE: f64 = 672.0;
/// Seconds of the padded sound.
const SECONDS: f64 = 3.0;
/// Turns of the conversation.
const TURNS: f64 = 3.0;

/// Options of the comparison.
#[derive(Debug, Clone)]
pub struct Options {
    /// Settings of the experiments.
    pub settings: Settings,
    /// Folder with a subfolder for the results of each experiment.
    pub out: Option<PathBuf>,
    /// The model is the embedded one.
    pub demo: bool,
}

/// An experiment of the comparison.
struct Part {
    experiment: &'static dyn Experiment,
    models: Vec<usize>,
    values: Vec<f64>,
    /// The question set is used.
    manifest: bool,
}

/// The figures of the study beside ours.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// All figures, with the charts and failures of the parts.
    pub summary: ExperimentReport,
    /// Reports of the experiments that the figures are taken from.
    pub parts: Vec<ExperimentReport>,
}

/// Measurements of a part.
struct Measured {
    plan: Plan,
    lines: Vec<Line>,
}

/// Measures what the findings rest on and compares the figures.
///
/// # Errors
/// If results cannot be written.
pub fn compare(
    models: Vec<BenchModel>,
    manifest: Option<(PathBuf, Manifest)>,
    options: &Options,
    mut limit: TimeLimit,
    mut on_progress: impl FnMut(Progress<'_>),
) -> Result<Comparison, ExperimentError> {
    let mut bench = Bench::new(models, manifest, options.settings.clone());
    let videos = bench.manifest.as_ref().is_some_and(has_videos);
    let parts = parts(&mut bench, videos);
    let mut measured = Vec::new();
    for (i, part) in parts.iter().enumerate() {
        // What earlier parts left is shared by the others.
        limit.share(parts.len() - i);
        measured.push(measure(
            &bench,
            part,
            &mut limit,
            options,
            &mut on_progress,
        )?);
    }
    let reports = measured.iter().map(|part| report(&part.plan, &part.lines));
    let parts = reports.collect::<Result<Vec<_>, _>>()?;
    Ok(Comparison {
        summary: summarize(&bench, &measured, &parts, options),
        parts,
    })
}

fn has_videos((_, manifest): &(PathBuf, Manifest)) -> bool {
    manifest.questions.iter().any(|question| {
        let path = manifest.media_path(question);
        path.is_some_and(|path| {
            crate::media::kind(&path).is_ok_and(|kind| kind == MediaKind::Video)
        })
    })
}

/// Returns the experiments that the models permit.
fn parts(bench: &mut Bench, videos_in_manifest: bool) -> Vec<Part> {
    let images = bench.taking(Modality::Image);
    let videos = bench.taking(Modality::Video);
    let sounds = bench.taking(Modality::Audio);
    let mut parts = Vec::new();
    let mut add =
        |experiment: &'static dyn Experiment, models: Vec<usize>, values: &[f64], manifest| {
            parts.push(Part {
                experiment,
                models,
                values: values.to_vec(),
                manifest,
            });
        };
    if let Some(&model) = videos.first().or(images.first()) {
        add(&ModalityBottleneck, vec![model], &[SIDE], false);
    }
    let is_q_former = |&i: &usize| Q_FORMERS.contains(&&*bench.models[i].family);
    let q_former = images.iter().copied().find(is_q_former);
    let other = images.iter().copied().find(|i| !is_q_former(i));
    // LLaVA projects all patches; other models merge some of them first.
    let llava = images
        .iter()
        .copied()
        .find(|&i| bench.models[i].family == "llava");
    if let (Some(q_former), Some(other)) = (q_former, llava.or(other)) {
        add(&ProjectionCompare, vec![q_former, other], &[8.0], false);
    }
    if let Some(&model) = videos.first() {
        add(&FrameAblation, vec![model], &[4.0, 8.0], videos_in_manifest);
    }
    if let Some(&model) = sounds.first() {
        add(&AudioPaddingCost, vec![model], &[SECONDS], false);
    }
    if let Some(&model) = images.first().or(sounds.first()) {
        add(&Multiturn, vec![model], &[TURNS], false);
    }
    parts
}

fn measure(
    all: &Bench,
    part: &Part,
    limit: &mut TimeLimit,
    options: &Options,
    on_progress: impl FnMut(Progress<'_>),
) -> Result<Measured, ExperimentError> {
    let settings = Settings {
        values: Some(part.values.clone()),
        ..options.settings.clone()
    };
    let models = part.models.iter().map(|&model| all.models[model].again());
    let manifest = all.manifest.clone().filter(|_| part.manifest);
    let mut bench = Bench::new(models.collect(), manifest, settings);
    let (mut plan, cases, samples) = plan(part.experiment, &mut bench, Shard::WHOLE)?;
    let folder = options
        .out
        .as_deref()
        .map(|out: &Path| out.join(&plan.experiment));
    let (mut folder, known) = match folder.map(|path| Folder::open(&path, &plan)).transpose()? {
        Some((folder, known)) => (Some(folder), known),
        None => (None, Vec::new()),
    };
    let planned = (&mut plan, &*cases, &*samples);
    let limit = Some(limit);
    let lines = run(
        &mut bench,
        planned,
        folder.as_mut(),
        known,
        limit,
        on_progress,
    )?;
    Ok(Measured { plan, lines })
}

/// A figure of the study beside ours.
struct Figure {
    finding: &'static str,
    quantity: &'static str,
    unit: &'static str,
    study: Option<f64>,
    ours: Option<f64>,
}

fn summarize(
    bench: &Bench,
    measured: &[Measured],
    parts: &[ExperimentReport],
    options: &Options,
) -> ExperimentReport {
    let find = |name: &str| {
        let part = measured.iter().find(|part| part.plan.experiment == name)?;
        Some(Results::new(&part.plan, &part.lines))
    };
    let findings = [
        stages_of(
            find("modality-bottleneck").as_ref(),
            find("frame-ablation").as_ref(),
        ),
        projection(find("projection-compare").as_ref()),
        frames(find("frame-ablation").as_ref()),
        padding(find("audio-padding").as_ref()),
        turns(find("multiturn").as_ref()),
    ];
    let mut table = Table::new(&[
        ("finding", "", 0),
        ("quantity", "", 0),
        ("unit", "", 0),
        ("study", "", 1),
        ("ours", "", 1),
        ("ours / study", "", 2),
    ]);
    let mut notes = Vec::new();
    for (figures, note) in findings {
        notes.extend(note);
        table.rows.extend(figures.into_iter().map(|figure| {
            let ratio = figure
                .study
                .zip(figure.ours)
                .map(|(study, ours)| ours / study);
            vec![
                Cell::from(figure.finding),
                Cell::from(figure.quantity),
                Cell::from(figure.unit),
                figure.study.into(),
                figure.ours.into(),
                ratio.into(),
            ]
        }));
    }
    if options.demo {
        notes.push(demo_note(bench));
    }
    let parameters = parts.iter().map(|part| {
        let parameters = serde_json::json!(part.parameters);
        (part.experiment.clone(), parameters)
    });
    ExperimentReport {
        format: FORMAT.to_owned(),
        version: VERSION,
        experiment: "paper".to_owned(),
        question: QUESTION.to_owned(),
        environments: parts
            .first()
            .map(|part| part.environments.clone())
            .unwrap_or_default(),
        parameters: parameters.collect(),
        table,
        charts: parts.iter().flat_map(|part| part.charts.clone()).collect(),
        notes,
        failures: parts
            .iter()
            .flat_map(|part| part.failures.clone())
            .collect(),
    }
}

type Finding = (Vec<Figure>, Vec<String>);

fn figure(
    finding: &'static str,
    quantity: &'static str,
    unit: &'static str,
    study: impl Into<Option<f64>>,
    ours: Option<f64>,
) -> Figure {
    Figure {
        finding,
        quantity,
        unit,
        study: study.into(),
        ours,
    }
}

/// Explains why a finding has no figures: no record suits it (`results` is `None`), or measurements
/// are missing.
fn unmeasured(results: Option<&Results>, finding: &str, needs: &str) -> String {
    match results {
        None => format!("{finding} was not measured: it needs {needs}."),
        Some(_) => format!(
            "{finding} was not measured completely: some measurements failed or did not fit into \
             the time limit."
        ),
    }
}

/// Finding 1: the vision encoder takes nearly all the time.
fn stages_of(results: Option<&Results>, frames: Option<&Results>) -> Finding {
    const FINDING: &str = "1: the vision encoder dominates";
    let image = results.and_then(|results| {
        let mut cases = results.cases().iter();
        cases.find(|case| case.key.modality == Some(Modality::Image))
    });
    let video = frames.and_then(|results| {
        let mut cases = results.cases().iter();
        cases.find(|case| case.key.setting == "8 uniform")
    });
    let time = |name: &str| image.and_then(|case| case.median(name));
    let language =
        |case: &CaseResults| case.median_or_zero("prefill") + case.median_or_zero("decode");
    let share = |stage: &'static str| image.map(|case| stages::share(case, stage));
    let decoding = video.map(|case| {
        let latency = case.median_or_zero("latency").max(f64::MIN_POSITIVE);
        100.0 * case.median_or_zero("media") / latency
    });
    let figures = vec![
        figure(
            FINDING,
            "encoder, high resolution",
            "%",
            92.0,
            share("encoder"),
        ),
        figure(FINDING, "projector", "%", 0.4, share("projector")),
        figure(
            FINDING,
            "language model",
            "%",
            7.6,
            image.map(|case| 100.0 * language(case) / stages::sum(case)),
        ),
        figure(FINDING, "encoder", "ms", 1150.0, time("encoder")),
        figure(FINDING, "projector", "ms", 5.0, time("projector")),
        figure(FINDING, "language model", "ms", 95.0, image.map(language)),
        figure(FINDING, "all stages", "ms", 1250.0, image.map(stages::sum)),
        figure(FINDING, "prefill, short prompt", "%", 5.0, share("prefill")),
        figure(
            FINDING,
            "decoding of a video, of the time to the first token",
            "%",
            18.0,
            decoding,
        ),
    ];
    let note = match image {
        None => unmeasured(
            results,
            "Finding 1",
            "a record of a model that takes images, such as Qwen2-VL",
        ),
        Some(case) => stage_note(case),
    };
    let mut notes = vec![note];
    if let Some(decoding) = decoding {
        notes.push(format!(
            "Decoding takes {decoding:.0} % of the time to the first token of a video with 8 \
             frames. Without questions about videos (--manifest), the clip is an uncompressed \
             stream; the share of compressed videos depends on their format and length."
        ));
    }
    (figures, notes)
}

fn stage_note(case: &CaseResults) -> String {
    let encoder = stages::share(case, "encoder");
    let others = stages::NAMES.into_iter().filter(|&name| name != "encoder");
    let second = others.max_by(|a, b| {
        let time = |name| case.median_or_zero(name);
        time(a).total_cmp(&time(b))
    });
    let second = second.unwrap_or("prefill");
    let reason = match second {
        "preprocess" => "which is not part of the total of the study",
        "prefill" => "as the language model has to take all visual tokens in on the same processor",
        "decode" => "as tokens are read one by one at the speed of the memory",
        _ => "which is more than in the study",
    };
    format!(
        "Finding 1: the encoder of {} takes {encoder:.1} % at {} ({} visual tokens) and 92 % in the \
         study; {}. The next stage is {second} with {:.1} %, {reason}. The study measured PyTorch \
         on its own machine; here all stages share this device, with the weights of the record.",
        case.key.model,
        case.key.setting,
        case.median_or_zero("visual_tokens"),
        match encoder {
            85.0.. => "the finding holds",
            50.0.. => "it dominates, but less",
            _ => "it does not dominate here",
        },
        stages::share(case, second),
    )
}

/// Finding 2: a Q-Former saves time by compressing tokens.
fn projection(results: Option<&Results>) -> Finding {
    const FINDING: &str = "2: Q-Former against MLP";
    let pair = results.and_then(|results| {
        let models = results.models();
        let clip = |i: usize| results.case(models.get(i)?, "8 frames");
        Some((clip(0)?, clip(1)?))
    });
    let after = |case: &CaseResults| case.median_or_zero("after");
    let ratio = |name: &str| {
        let (q_former, mlp) = pair?;
        Some(mlp.median_or_zero(name) / q_former.median_or_zero(name).max(1e-9))
    };
    let figures = vec![
        figure(
            FINDING,
            "Q-Former, video",
            "ms",
            105.0,
            pair.map(|(q, _)| after(q)),
        ),
        figure(
            FINDING,
            "MLP, video",
            "ms",
            923.0,
            pair.map(|(_, mlp)| after(mlp)),
        ),
        figure(
            FINDING,
            "MLP / Q-Former, time",
            "",
            923.0 / 105.0,
            ratio("after"),
        ),
        figure(
            FINDING,
            "MLP / Q-Former, visual tokens",
            "",
            None,
            ratio("visual_tokens"),
        ),
    ];
    let note = match pair {
        None => unmeasured(
            results,
            "Finding 2",
            "a record of BLIP-2 (Q-Former) and one of LLaVA (MLP)",
        ),
        Some((q_former, mlp)) => format!(
            "Finding 2: after the encoder, {} takes {} for {} tokens of 8 frames and {} takes {} \
             for {}, {:.1} times as long (8.8 in the study) for {:.1} times the tokens: {}. Of \
             the time of {}, the projector takes {:.0} %, the rest is prefill, which grows with the \
             tokens. Each model has its own language model, so that the ratio is not that of the \
             projectors alone; {} asks {} prompts and {} {}, each with the question and its fixed \
             costs.",
            q_former.key.model,
            ms(after(q_former)),
            q_former.median_or_zero("visual_tokens"),
            mlp.key.model,
            ms(after(mlp)),
            mlp.median_or_zero("visual_tokens"),
            ratio("after").unwrap_or_default(),
            ratio("visual_tokens").unwrap_or_default(),
            match ratio("after").unwrap_or_default() {
                4.0.. => "the finding holds",
                1.3.. => "the finding holds, but weaker",
                _ => "the finding does not show here",
            },
            mlp.key.model,
            100.0 * mlp.median_or_zero("projector") / after(mlp).max(1e-9),
            q_former.key.model,
            q_former.median_or_zero("prompts"),
            mlp.key.model,
            mlp.median_or_zero("prompts"),
        ),
    };
    (figures, vec![note])
}

/// Finding 3: more frames cost time for no accuracy.
fn frames(results: Option<&Results>) -> Finding {
    const FINDING: &str = "3: 4 to 8 frames";
    let case = |setting: &str| {
        let results = results?;
        let model = *results.models().first()?;
        results.case(model, setting)
    };
    let (four, eight) = (case("4 uniform"), case("8 uniform"));
    let more = |name: &str| {
        let ratio = eight?.median_or_zero(name) / four?.median_or_zero(name).max(1e-9);
        Some(100.0 * (ratio - 1.0))
    };
    let gain = four
        .and_then(CaseResults::accuracy)
        .zip(eight.and_then(CaseResults::accuracy))
        .map(|(four, eight)| eight - four);
    let key = case("4 key frames").and_then(CaseResults::accuracy);
    let key_gain = key
        .zip(eight.and_then(CaseResults::accuracy))
        .map(|(key, eight)| key - eight);
    let figures = vec![
        figure(FINDING, "latency", "%", 77.0, more("latency")),
        figure(FINDING, "accuracy", "points", None, gain),
        figure(
            FINDING,
            "accuracy of 4 key frames to 8 evenly spaced",
            "points",
            None,
            key_gain,
        ),
    ];
    let note = match (four, eight) {
        (Some(four), Some(eight)) => {
            let accuracy = match gain {
                Some(gain) => {
                    format!("Accuracy changes by {gain:+.1} points (negligible in the study)")
                }
                None => "Accuracy was not measured, as there are no questions about videos: add \
                         --manifest"
                    .to_owned(),
            };
            format!(
                "Finding 3: 8 frames instead of 4 cost {:+.0} % latency ({} to {}; +77 % in the \
                 study): the encoder takes {:+.0} %, the prefill {:+.0} %, decoding the video \
                 {:+.0} %; what does not depend on the frames dampens the sum. {accuracy}.",
                more("latency").unwrap_or_default(),
                ms(four.median_or_zero("latency")),
                ms(eight.median_or_zero("latency")),
                more("encoder").unwrap_or_default(),
                more("prefill").unwrap_or_default(),
                more("media").unwrap_or_default(),
            )
        }
        _ => unmeasured(
            results,
            "Finding 3",
            "a record of a model that takes videos, such as Qwen2-VL",
        ),
    };
    (figures, vec![note])
}

/// Defect 1: padding of sounds.
fn padding(results: Option<&Results>) -> Finding {
    const FINDING: &str = "defect: sounds padded to 30 s";
    let case = |ending: &str| {
        let cases = results?.cases();
        cases.iter().find(|case| case.key.setting.ends_with(ending))
    };
    let pair = case(", padded to 30 s").zip(case(", not padded"));
    let wasted = |name: &str| {
        let (padded, short) = pair?;
        let left = short.median_or_zero(name) / padded.median_or_zero(name).max(1e-9);
        Some(100.0 * (1.0 - left))
    };
    let silence = 100.0 * (1.0 - SECONDS / 30.0);
    let figures = vec![
        figure(
            FINDING,
            "encoder's work on silence, 3 s of sound",
            "%",
            silence,
            wasted("encoder"),
        ),
        figure(
            FINDING,
            "saved of the first token",
            "%",
            None,
            wasted("first_token"),
        ),
    ];
    let note = match pair {
        None => unmeasured(
            results,
            "The padding of sounds",
            "a record of a model that takes sounds, such as Qwen2-Audio",
        ),
        Some((padded, short)) => format!(
            "Padding: in the study, 3 s of sound are padded to 30 s, so that {silence:.0} % of the \
             frames are silence. The padded encoder takes {} here, the default, which pads only \
             what the convolutions see, {}.",
            ms(padded.median_or_zero("encoder")),
            ms(short.median_or_zero("encoder")),
        ),
    };
    (figures, vec![note])
}

/// Defect 2: every turn encodes the medium again.
fn turns(results: Option<&Results>) -> Finding {
    const FINDING: &str = "defect: every turn encodes again";
    let case = |setting: &str| {
        let results = results?;
        let model = *results.models().first()?;
        results.case(model, setting)
    };
    let pair = case("computed again").zip(case("reused"));
    let last = |case: &CaseResults, name: &str| case.median_or_zero(&format!("{TURNS}:{name}"));
    let share = pair
        .map(|(again, _)| 100.0 * last(again, "encoder") / last(again, "first_token").max(1e-9));
    let encodings =
        pair.map(|(again, reused)| last(reused, "encoder") / last(again, "encoder").max(1e-9));
    let figures = vec![
        figure(FINDING, "encodings in turn 3", "", 1.0, encodings),
        figure(
            FINDING,
            "encoder in turn 3 without the fix",
            "%",
            None,
            share,
        ),
        figure(
            FINDING,
            "first token of turn 3, without / with the fix",
            "",
            None,
            pair.map(|(again, reused)| {
                last(again, "first_token") / last(reused, "first_token").max(1e-9)
            }),
        ),
    ];
    let note = match pair {
        None => unmeasured(
            results,
            "Redundant encoding",
            "a record of a model that takes images or sounds",
        ),
        Some((again, reused)) => format!(
            "Turns: in the study, every turn encodes the medium again. Here turn 3 begins after {} \
             if that is imitated and after {} with the kept encoder outputs and state, which are \
             the default.",
            ms(last(again, "first_token")),
            ms(last(reused, "first_token")),
        ),
    };
    (figures, vec![note])
}

fn demo_note(bench: &Bench) -> String {
    let bytes: usize = bench.models.iter().map(|model| model.bytes).sum();
    format!(
        "No record was given, so that the embedded model ({}) was measured. Its times are mostly \
         fixed costs of calls, so that shares and ratios of real models cannot be seen; it has no \
         Q-Former, takes no sounds, and its accuracy says nothing about photographs. Name records \
         of real size, with random or trained weights.",
        crate::units::bytes(bytes)
    )
}
