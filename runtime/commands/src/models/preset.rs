//! Presets of models as default options.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

use super::description::Description;
use super::{Model, folder};

/// Adds the options of the model's preset that are not given. Commands without a model of the folder
/// are unchanged.
pub fn arguments(command: &Command, mut given: Vec<OsString>) -> Vec<OsString> {
    let parsed = command.clone().ignore_errors(true);
    let Some((name, matches)) = (parsed.try_get_matches_from(&given).ok())
        .and_then(|mut matches| matches.remove_subcommand())
    else {
        // The parser reports what is wrong, or prints the help.
        return given;
    };
    let takes_image_tokens = matches.try_contains_id("image_tokens").is_ok()
        && matches.value_source("image_tokens") != Some(ValueSource::CommandLine);
    let range = model(&matches)
        .filter(|_| takes_image_tokens)
        .and_then(image_tokens);
    let place = given.iter().position(|argument| *argument == *name);
    if let (Some((min, max)), Some(place)) = (range, place) {
        given.insert(place + 1, format!("--image-tokens={min}..{max}").into());
    }
    given
}

/// Returns the model of a command, if its record is in the folder of models.
fn model(matches: &ArgMatches) -> Option<Model> {
    let record = matches.try_get_one::<PathBuf>("model").ok()??;
    let name = record.file_name()?.to_str()?.strip_suffix(".bpk")?;
    let model = Model::find(folder().ok()?, name).ok()??;
    (model.record() == *record).then_some(model)
}

fn image_tokens(model: Model) -> Option<(usize, usize)> {
    match Description::read(&model) {
        Ok(description) => description?.preset?.image_tokens,
        Err(error) => {
            log::warn!("{error:#}; the preset is not used");
            None
        }
    }
}
