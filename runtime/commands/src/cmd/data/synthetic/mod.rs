//! The generated dataset: colored shapes, clips and beeps, with questions that the small models of
//! this project were trained for.

mod clip;
mod image;
mod shapes;
mod sound;

use std::path::Path;

use anyhow::Context;
use edge_lmm::MediaKind;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use self::shapes::Scene;
use super::extract::bar;
use super::media::{Media, Stored};
use super::sample::{Medium, Sample};

/// Numbers as the models say them.
const NUMBERS: [&str; 5] = ["zero", "one", "two", "three", "four"];

/// Kinds of questions, in the order in which they are generated.
#[derive(Debug, Clone, Copy)]
enum Task {
    Color,
    Shape,
    Count,
    Exist,
    List,
    Video,
    AudioCount,
    AudioPitch,
}

const TASKS: [(Task, &str); 8] = [
    (Task::Color, "color"),
    (Task::Shape, "shape"),
    (Task::Count, "count"),
    (Task::Exist, "exist"),
    (Task::List, "list"),
    (Task::Video, "video"),
    (Task::AudioCount, "audio_count"),
    (Task::AudioPitch, "audio_pitch"),
];

/// A question with its medium.
struct Generated {
    question: String,
    answer: String,
    kind: MediaKind,
    extension: &'static str,
    content: Vec<u8>,
}

/// Writes the media of `count` questions and returns the questions. The same seed gives the same
/// questions.
///
/// # Errors
/// If a file cannot be written.
pub fn write(out: &Path, count: usize, seed: u64) -> anyhow::Result<Vec<(Sample, Stored)>> {
    let mut images = Media::open(out, "images", MediaKind::Image)?;
    let mut clips = Media::open(out, "clips", MediaKind::Video)?;
    let mut sounds = Media::open(out, "sounds", MediaKind::Audio)?;
    let progress = bar(count, "questions")?;
    let mut questions = Vec::with_capacity(count);
    for index in 0..count {
        let (task, name) = TASKS[index % TASKS.len()];
        // Independent of the other questions, so that a longer set begins with a shorter one.
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(index as u64);
        let generated = generate(task, &mut random)?;
        let media = match generated.kind {
            MediaKind::Image => &mut images,
            MediaKind::Video => &mut clips,
            MediaKind::Audio => &mut sounds,
        };
        let id = format!("{name}_{index:04}");
        // A file of an earlier run may have another seed.
        media.put(&id, generated.extension, &generated.content[..])?;
        let stored = media
            .get(&id)
            .and_then(|stored| stored.as_ref().ok())
            .with_context(|| format!("the medium of {id} was not written"))?;
        let sample = Sample {
            medium: Medium::table(&id),
            id,
            question: generated.question,
            answer: generated.answer,
            answers: Vec::new(),
            choices: Vec::new(),
            task: name.to_owned(),
        };
        questions.push((sample, stored.clone()));
        progress.inc(1);
    }
    progress.finish_and_clear();
    for media in [images, clips, sounds] {
        media.finish()?;
    }
    Ok(questions)
}

fn generate(task: Task, random: &mut impl Rng) -> anyhow::Result<Generated> {
    match task {
        Task::Video => clip::generate(random),
        Task::AudioCount | Task::AudioPitch => Ok(sound::generate(task, random)),
        _ => {
            let scene = Scene::random(random);
            let (question, answer) = question_about(task, &scene, random);
            Ok(Generated {
                question,
                answer,
                kind: MediaKind::Image,
                extension: "png",
                content: image::png(&scene)?,
            })
        }
    }
}

/// Returns a question about a scene and its answer.
fn question_about(task: Task, scene: &Scene, random: &mut impl Rng) -> (String, String) {
    let chosen = &scene.figures[random.random_range(0..scene.figures.len())];
    let (color, shape) = (chosen.color.name, chosen.shape.name());
    match task {
        Task::Color => (format!("what color is the {shape}?"), color.to_owned()),
        Task::Shape => (format!("what shape is {color}?"), shape.to_owned()),
        Task::Exist if random.random() => (exists(color, shape), "yes".to_owned()),
        Task::Exist => {
            let (color, shape) = scene.absent(random);
            (exists(color.name, shape.name()), "no".to_owned())
        }
        Task::List => {
            let mut figures: Vec<_> = scene.figures.iter().collect();
            figures.sort_by_key(|figure| figure.x);
            let names: Vec<String> = figures
                .iter()
                .map(|figure| format!("{} {}", figure.color.name, figure.shape.name()))
                .collect();
            ("list the shapes.".to_owned(), names.join(", "))
        }
        _ => {
            let count = NUMBERS[scene.figures.len()];
            ("how many shapes are there?".to_owned(), count.to_owned())
        }
    }
}

/// The article is always the same in the questions that the models know.
fn exists(color: &str, shape: &str) -> String {
    format!("is there a {color} {shape}?")
}
