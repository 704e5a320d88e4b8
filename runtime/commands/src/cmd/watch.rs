//! `edge-lmm watch`: a question asked again whenever the scene changes.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use edge_lmm::watch::{Captured, Slot, Taken, WatchSource, WatchStatistics, Watched, read};
use edge_lmm::{
    Answer, AnySession, EngineError, Media, Message, ModelError, Request, Role, user_message,
};
use serde::Serialize;

use crate::models;

use super::answer::answer_until;
use super::costs;
use super::memory::RequestCheck;
use super::options::{
    DeviceOptions, FFMPEG, GenerationOptions, PromptOptions, TokenArgs, parse_difference, print_now,
};
use super::signals::Interrupts;

/// Time after which a watch without frames looks whether Ctrl-C was pressed.
const PATIENCE: Duration = Duration::from_millis(100);

/// Answers a question about a live scene again whenever the scene has changed.
///
/// The source is a camera, a folder into which images arrive (the newest counts), a video file that
/// is played in real time, or a stream on standard input. While an answer is computed, newer frames
/// replace each other, so that the next answer is about the newest one; frames that differ by less
/// than --change from the frame of the last answer get no answer. The part of the prompt before the
/// image is not computed again.
///
/// The age of an answer is the time from the arrival of its frame. At the end of a file or stream,
/// after --max-answers, or with Ctrl-C, a summary is printed to standard error.
///
/// Examples:
///   edge-lmm watch model.bpk --source inbox/ --prompt "Is the door open?"
///   ffmpeg -loglevel error -f v4l2 -i /dev/video0 -f yuv4mpegpipe -pix_fmt yuv420p - |
///     edge-lmm watch model.bpk --source - --prompt "What is on the table?" --reduce diverse:0.5
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Cmd {
    /// Record written by edge-lmm-convert, or name of a model
    #[arg(value_parser = models::argument())]
    model: PathBuf,
    /// Video file, folder, camera such as /dev/video0 (builds with the feature camera), or - for
    /// standard input
    #[arg(long, value_name = "FILE|DIR|-|CAMERA")]
    source: PathBuf,
    /// Question to answer about each new scene
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// System message [default: that of the chat template]
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Answer again when a frame differs by T or more from the frame of the last answer: the mean
    /// difference of their 8-bit values; 0 answers as often as possible
    #[arg(long, value_name = "T", default_value_t = 2.0, value_parser = parse_difference)]
    change: f32,
    /// Play a video file at X times its rate
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = parse_speed)]
    speed: f64,
    /// End after N answers
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_answers: Option<u64>,
    /// Print one JSON object per answer: time of the frame, text, ages, counts of frames, ...
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tokens: TokenArgs,
    #[command(flatten)]
    prompt_options: PromptOptions,
    #[command(flatten)]
    generation: GenerationOptions,
    #[command(flatten)]
    device: DeviceOptions,
}

fn parse_speed(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(speed) if speed > 0.0 && speed <= 1e6 => Ok(speed),
        _ => Err("expected a number above 0 and up to 1000000".to_owned()),
    }
}

/// An answer as `--json` prints it.
#[derive(Serialize)]
struct WatchReport<'a> {
    /// Time of the frame in seconds.
    time: f64,
    text: &'a str,
    /// Milliseconds from the arrival of the frame to the first token.
    first_token_age_ms: f64,
    /// Milliseconds from the arrival of the frame to the end of the answer.
    age_ms: f64,
    tokens: &'a [u32],
    prompt_tokens: usize,
    visual_tokens: usize,
    reused_tokens: usize,
    #[serde(flatten)]
    statistics: WatchStatistics,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        // Reports invalid options before the model is loaded.
        self.generation.sampling()?;
        self.tokens.check()?;
        let source = WatchSource::open(&self.source, self.speed)?;
        let engine = self.device.load(&self.model)?;
        costs::apply(self.tokens.first_token_budget(), None, &engine)?;
        let check = self.device.request_check(&engine);
        let mut session = engine.session();
        let interrupts = Interrupts::watch("interrupted; press Ctrl-C again to exit at once");
        let slot = Arc::new(Slot::new());
        thread::scope(|scope| {
            let reader = thread::Builder::new().name("frames".to_owned());
            let reading = || {
                read(&source, FFMPEG, &slot, |error| {
                    log::warn!("frame skipped: {error}")
                });
            };
            reader
                .spawn_scoped(scope, reading)
                .context("cannot start the thread that reads frames")?;
            // The scope waits for the reader.
            let _close = CloseOnDrop(&slot);
            self.watch(&mut session, &check, &slot, &interrupts)
        })
    }

    /// Answers until the source ends, fails or Ctrl-C is pressed, and prints the summary.
    fn watch(
        &self,
        session: &mut AnySession,
        check: &RequestCheck,
        slot: &Slot,
        interrupts: &Interrupts,
    ) -> anyhow::Result<()> {
        let mut watched = Watched::new(self.change);
        let mut left = self.max_answers.unwrap_or(u64::MAX);
        let mut outcome = Ok(());
        while left > 0 && !interrupts.pressed() {
            let frame = match slot.take(PATIENCE) {
                Taken::Nothing => continue,
                Taken::End(end) => {
                    outcome = end.map_err(anyhow::Error::from);
                    break;
                }
                Taken::Frame(frame) => frame,
            };
            if !watched.has_changed(&frame.image) {
                continue;
            }
            let waited = frame.at.elapsed();
            match self.answer(session, check, &frame, interrupts)? {
                Some(answer) => {
                    let ages = [waited + answer.first_token, frame.at.elapsed()];
                    watched.answered(&frame.image);
                    self.report(&frame, &answer, ages, watched.statistics(slot))?;
                    left -= 1;
                }
                None => break,
            }
        }
        let statistics = watched.statistics(slot);
        eprintln!("{} answers; {}", statistics.answers, summary(&statistics));
        outcome?;
        if statistics.frames_seen == 0 && !interrupts.pressed() {
            bail!(
                "{}: it has no frames, expected at least one",
                self.source.display()
            );
        }
        Ok(())
    }

    /// Asks about a frame. Returns `None` if Ctrl-C was pressed meanwhile.
    fn answer(
        &self,
        session: &mut AnySession,
        check: &RequestCheck,
        frame: &Captured,
        interrupts: &Interrupts,
    ) -> anyhow::Result<Option<Answer>> {
        let media = [Media::image(frame.image.clone())];
        let system = self
            .system
            .as_deref()
            .map(|text| Message::text(Role::System, text));
        let user = user_message(&media, &self.prompt);
        let messages: Vec<Message> = system.into_iter().chain([user]).collect();
        let request = Request {
            media: &media,
            options: self.tokens.options(),
            parse_special: self.prompt_options.parse_special,
            ..self.generation.request(&messages)?
        };
        if !self.json {
            print_now(&format!("[{:8.2} s] ", frame.time))?;
        }
        let pressed = || interrupts.pressed();
        let answer = answer_until(session, &request, check, !self.json, pressed);
        if !self.json {
            print_now("\n")?;
        }
        match answer {
            Ok(_) if interrupts.pressed() => Ok(None),
            Ok(answer) => Ok(Some(answer)),
            Err(error) => match error.downcast_ref() {
                Some(EngineError::Model(ModelError::Canceled)) if interrupts.pressed() => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Prints an answer, which has streamed already unless it is JSON, and the status. `ages` are
    /// those of its frame at the first token and at the end.
    fn report(
        &self,
        frame: &Captured,
        answer: &Answer,
        ages: [Duration; 2],
        statistics: WatchStatistics,
    ) -> anyhow::Result<()> {
        let [first, age] = ages.map(|age| age.as_secs_f64() * 1e3);
        if !self.json {
            eprintln!(
                "first token after {first:.0} ms, answer after {age:.0} ms; {}",
                summary(&statistics)
            );
            return Ok(());
        }
        let report = WatchReport {
            time: frame.time,
            text: &answer.text,
            first_token_age_ms: first,
            age_ms: age,
            tokens: &answer.tokens,
            prompt_tokens: answer.prompt_tokens,
            visual_tokens: answer.visual_tokens,
            reused_tokens: answer.reused_tokens,
            statistics,
        };
        print_now(&format!("{}\n", serde_json::to_string(&report)?))
    }
}

/// One line about the frames.
fn summary(statistics: &WatchStatistics) -> String {
    format!(
        "{} frames ({:.1}/s), {:.0} % skipped, {} unchanged, {} damaged",
        statistics.frames_seen,
        statistics.frames_per_second,
        100.0 * statistics.skipped_share,
        statistics.frames_unchanged,
        statistics.frames_damaged
    )
}

/// Tells the reader to end, even if the watch ends with an error.
struct CloseOnDrop<'a>(&'a Slot);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}
