//! `edge-lmm bench list`: the experiments, each explained.

use clap::Args;
use edge_lmm::experiment::{ALL, About};

use super::super::options::print_now;

/// Explains the experiments: their question, what is varied, what is measured.
#[derive(Args)]
pub struct Cmd {}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        let mut text = String::new();
        for experiment in ALL {
            let About {
                name,
                question,
                varies,
                measures,
                needs,
                values,
                manifest,
                ..
            } = experiment.about();
            text += &format!("{name}\n  {question}\n  varies:   {varies}\n");
            text += &format!("  measures: {measures}\n  needs:    {needs}");
            text += match manifest {
                true => "; questions (--manifest)\n",
                false => "\n",
            };
            if !values.is_empty() {
                text += &format!("  --values: {values}\n");
            }
            text.push('\n');
        }
        text += "kernels\n  How far are the kernels from the peak of this machine?\n  varies:   \
                 product or attention, in the shapes of real models\n  measures: time, \
                 throughput, share of the peak\n  needs:    no record\n\nspeculation\n  How much faster \
                 are answers with drafted tokens?\n  varies:   tokens of a step, accepted share \
                 of drafts, kind of text\n  measures: time, tokens per second, accepted \
                 tokens\n  needs:    one record\n";
        print_now(&text)
    }
}
