//! `video-audio-encode`: encoding of a video and its sound, in turn or at once.

use crate::experiment::pair::{self, Order, Task, Work};
use crate::experiment::report::Table;
use crate::experiment::stages::ms;
use crate::experiment::{
    About, Bench, Case, Experiment, ExperimentError, Findings, Modality, Results, Sample,
};
use crate::media::FrameSelection;

/// Frames of a clip, and their side.
const CLIP: (usize, usize) = (8, 224);
/// Side of the image that stands for a clip if the vision model takes no videos.
const SIDE: usize = 336;
/// Seconds of the sound.
const SECONDS: [f64; 2] = [4.0, 8.0];
/// Orders that are compared.
const ORDERS: [Order; 3] = [Order::InTurn, Order::AtOnceOnHalves, Order::AtOnce];

/// The experiment.
pub struct VideoAudioEncode;

impl Experiment for VideoAudioEncode {
    fn about(&self) -> About {
        About {
            name: "video-audio-encode",
            question: "What do the vision and the audio part of a video with sound cost, and does \
                       it help to encode both at once?",
            varies: "length of the sound; encoders in turn, or at once on half of the cores each",
            measures: "time of each encoder and of both",
            needs: "a record of a model that takes videos or images and one of a model that takes \
                    sounds, or one record that takes both",
            models: 1,
            uses: &[Modality::Video, Modality::Image],
            common: false,
            values: "seconds of sound [4,8]",
            manifest: false,
        }
    }

    fn cases(&self, bench: &mut Bench) -> Result<Vec<Case>, ExperimentError> {
        pair::half()?;
        let names: Vec<&str> = bench.models.iter().map(|model| &*model.name).collect();
        let names = names.join(", ");
        let lacks = |modality| ExperimentError::Modality {
            experiment: self.about().name,
            needs: self.about().needs,
            models: names.clone(),
            modality,
        };
        let (videos, images) = (bench.taking(Modality::Video), bench.taking(Modality::Image));
        let vision = videos.first().or(images.first()).copied();
        let vision = vision.ok_or_else(|| lacks(Modality::Image))?;
        let takes_video = videos.contains(&vision);
        let audio = bench.taking(Modality::Audio).first().copied();
        let audio = audio.ok_or_else(|| lacks(Modality::Audio))?;
        let model = pair::name(&bench.models, vision, audio);
        let mut cases = Vec::new();
        for seconds in bench.seconds(&SECONDS)? {
            for order in ORDERS {
                let setting = format!("{seconds} s, {}", order.name());
                let measure = move |bench: &mut Bench, sample: &Sample| {
                    let read = match takes_video {
                        true => sample.video(FrameSelection::All, CLIP.0, CLIP.1)?,
                        false => sample.image(Some(SIDE))?,
                    };
                    let sound = Sample::synthetic(sample.seed).audio(Some(seconds))?;
                    let task = |model: usize, media| Task {
                        engine: bench.models[model].engine.clone(),
                        media: vec![media],
                        options: bench.settings.media.clone(),
                        work: Work::Encode,
                    };
                    pair::run(order, &[task(vision, read.media), task(audio, sound.media)])
                };
                cases.push(Case::new(&*model, setting, measure).at(seconds));
            }
        }
        Ok(cases)
    }

    fn findings(&self, results: &Results) -> Findings {
        let mut table = Table::new(&[
            ("models", "", 0),
            ("sound and order", "", 0),
            ("vision", "ms", 2),
            ("audio", "ms", 2),
            ("both", "ms", 2),
            ("to in turn", "", 2),
        ]);
        let mut notes = Vec::new();
        for case in results.cases() {
            let ratio = pair::to_in_turn(results, case);
            table.rows.push(pair::row(case, ratio));
            let (vision, audio) = (case.median_or_zero("first"), case.median_or_zero("second"));
            if case.key.setting.ends_with(Order::InTurn.name()) {
                notes.push(format!(
                    "{} s of sound: vision takes {} and audio {}, {:.0} % of both.",
                    case.key.x.unwrap_or_default(),
                    ms(vision),
                    ms(audio),
                    100.0 * audio / (vision + audio).max(f64::MIN_POSITIVE)
                ));
            } else if let Some(ratio) = ratio {
                notes.push(format!(
                    "{}: {ratio:.2} times the time in turn.",
                    case.key.setting
                ));
            }
        }
        Findings {
            table,
            charts: vec![pair::chart(
                results,
                "Time of the encoders",
                "sound and order",
                ["vision", "audio"],
            )],
            notes,
        }
    }
}
