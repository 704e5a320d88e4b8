//! `two-devices`: vision and language on two partitions of the cores, or on two devices.

use crate::experiment::pair::{self, Order, Task, Work};
use crate::experiment::report::Table;
use crate::experiment::stages::ms;
use crate::experiment::synthetic;
use crate::experiment::synthetic::MOST_PIXELS;
use crate::experiment::{
    About, Bench, Case, Experiment, ExperimentError, Findings, Modality, Results, Sample,
};

/// Words of the language task.
const WORDS: usize = 96;
/// Sides of the image of the vision task.
const SIDES: [f64; 1] = [336.0];

/// The experiment.
pub struct TwoDevices;

impl Experiment for TwoDevices {
    fn about(&self) -> About {
        About {
            name: "two-devices",
            question: "Does it pay to give the vision encoder and the language model partitions of \
                       their own, as two boards or two halves of the cores?",
            varies: "the encoding of an image and an answer to a text: in turn on all cores, in \
                     turn on half of them, at once on a half each, at once on the same cores; \
                     with --second-device, at once on two devices",
            measures: "time of each task and of both",
            needs: "a record of a model that takes images; with a second record, that one answers",
            models: 1,
            uses: &[Modality::Image],
            common: false,
            values: "sides of the image in pixels [336]",
            manifest: false,
        }
    }

    fn cases(&self, bench: &mut Bench) -> Result<Vec<Case>, ExperimentError> {
        pair::half()?;
        let taking = bench.taking(Modality::Image);
        let Some(&vision) = taking.first() else {
            bench.all_taking(&self.about(), Modality::Image)?;
            return Ok(Vec::new());
        };
        let language = (0..bench.models.len())
            .find(|&i| i != vision)
            .unwrap_or(vision);
        let second = bench.models[language].second.is_some();
        let model = pair::name(&bench.models, vision, language);
        let mut orders: Vec<(&str, Order, bool)> = [
            Order::InTurn,
            Order::InTurnOnHalf,
            Order::AtOnceOnHalves,
            Order::AtOnce,
        ]
        .map(|order| (order.name(), order, false))
        .into();
        if second {
            orders.push(("at once, two devices", Order::AtOnce, true));
        }
        let mut cases = Vec::new();
        for side in bench.counts(&SIDES, MOST_PIXELS)? {
            for &(name, order, other_device) in &orders {
                let setting = format!("{side} px, {name}");
                let measure = move |bench: &mut Bench, sample: &Sample| {
                    let image = sample.image(Some(side as usize))?;
                    let (first, second) = (&bench.models[vision], &bench.models[language]);
                    let options = || bench.settings.media.clone();
                    let encoding = Task {
                        engine: first.engine.clone(),
                        media: vec![image.media],
                        options: options(),
                        work: Work::Encode,
                    };
                    let engine = match (&second.second, other_device) {
                        (Some(engine), true) => engine,
                        _ => &second.engine,
                    };
                    let text = synthetic::text(WORDS);
                    let answer = Task {
                        engine: engine.clone(),
                        media: Vec::new(),
                        options: options(),
                        work: Work::Answer(text, bench.settings.max_tokens),
                    };
                    pair::run(order, &[encoding, answer])
                };
                cases.push(Case::new(&*model, setting, measure).at(side));
            }
        }
        Ok(cases)
    }

    fn findings(&self, results: &Results) -> Findings {
        let mut table = Table::new(&[
            ("models", "", 0),
            ("order", "", 0),
            ("vision", "ms", 2),
            ("language", "ms", 2),
            ("both", "ms", 2),
            ("to in turn", "", 2),
        ]);
        let mut notes = Vec::new();
        for case in results.cases() {
            let ratio = pair::to_in_turn(results, case);
            table.rows.push(pair::row(case, ratio));
            if let Some(ratio) = ratio.filter(|_| case.key.setting.contains("at once")) {
                let verdict = match ratio {
                    ..0.97 => "faster than",
                    ..1.03 => "as fast as",
                    _ => "slower than",
                };
                notes.push(format!(
                    "{}: both take {}, {ratio:.2} times the time in turn on all cores: {verdict} \
                     in turn.",
                    case.key.setting,
                    ms(case.median_or_zero("total"))
                ));
            }
        }
        Findings {
            table,
            charts: vec![pair::chart(
                results,
                "Vision and language in turn and at once",
                "order",
                ["vision", "language"],
            )],
            notes,
        }
    }
}
