//! Shards of an experiment on several machines.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::ExperimentError;
use super::folder::{Folder, read};
use super::line::Line;
use super::plan::Plan;

/// One of several equal parts of the samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Parts")]
pub struct Shard {
    /// Number of the part, from 1.
    pub index: usize,
    /// Number of parts.
    pub count: usize,
}

/// The fields of a [`Shard`] before they are checked.
#[derive(Deserialize)]
struct Parts {
    index: usize,
    count: usize,
}

impl TryFrom<Parts> for Shard {
    type Error = String;

    fn try_from(Parts { index, count }: Parts) -> Result<Self, String> {
        match 0 < index && index <= count {
            true => Ok(Self { index, count }),
            false => Err("expected I/N with 1 <= I <= N, such as 2/8".to_owned()),
        }
    }
}

impl Shard {
    /// All samples.
    pub const WHOLE: Self = Self { index: 1, count: 1 };

    /// Returns `true` if the sample of that index belongs to this part.
    pub fn has(self, sample: usize) -> bool {
        sample % self.count == self.index - 1
    }
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (index, count) = text.split_once('/').unwrap_or_default();
        // A part that is no number is as wrong as 0.
        let number = |text: &str| text.parse().unwrap_or_default();
        Self::try_from(Parts {
            index: number(index),
            count: number(count),
        })
    }
}

/// Joins the results of all shards of an experiment into a new folder.
///
/// # Errors
/// If the shards have different parameters, one is missing or incomplete, or the folder cannot be
/// written.
pub fn merge(folders: &[PathBuf], out: &Path) -> Result<(Plan, Vec<Line>), ExperimentError> {
    let shards = folders
        .iter()
        .map(|path| Ok((path.as_path(), read(path)?)))
        .collect::<Result<Vec<_>, ExperimentError>>()?;
    let Some((first, (plan, _))) = shards.first() else {
        return Err(ExperimentError::Merge("no folder was given".to_owned()));
    };
    for (path, (other, _)) in &shards {
        if let Some(difference) = plan.difference(other) {
            let places = format!("here: {}, there: {}", first.display(), path.display());
            let message = format!("the shards do not belong together: {difference} ({places})");
            return Err(ExperimentError::Merge(message));
        }
    }
    check_numbers(&shards)?;
    let mut merged = Plan {
        shard: Shard::WHOLE,
        environments: Vec::new(),
        ..plan.clone()
    };
    let mut lines = BTreeMap::new();
    for (path, (plan, found)) in &shards {
        check_complete(path, plan, found)?;
        merged.environments.extend(plan.environments.clone());
        lines.extend(found.iter().map(|line| (line.key(), line.clone())));
    }
    merged.environments.dedup();
    let keys = merged.units().into_iter().map(|unit| merged.key(unit));
    let lines: Vec<Line> = keys.filter_map(|key| lines.remove(&key)).collect();
    Folder::create_complete(out, &merged, &lines)?;
    Ok((merged, lines))
}

type Read<'a> = (&'a Path, (Plan, Vec<Line>));

/// Maximum number of missing shards that an error names.
const MAX_NAMED: usize = 8;

/// Checks that every shard occurs once.
fn check_numbers(shards: &[Read<'_>]) -> Result<(), ExperimentError> {
    let mut seen: BTreeMap<usize, &Path> = BTreeMap::new();
    let count = shards[0].1.0.shard.count;
    for (path, (plan, _)) in shards {
        if plan.shard.count != count {
            return Err(ExperimentError::Merge(format!(
                "{} is shard {}, {} is shard {}: expected the same number of shards",
                shards[0].0.display(),
                shards[0].1.0.shard,
                path.display(),
                plan.shard
            )));
        }
        if let Some(other) = seen.insert(plan.shard.index, path) {
            return Err(ExperimentError::Merge(format!(
                "{} and {} are both shard {}",
                other.display(),
                path.display(),
                plan.shard
            )));
        }
    }
    // The numbers of shards are different and at most `count`, which a file can make very large.
    let missing = count - seen.len();
    if missing == 0 {
        return Ok(());
    }
    let named: Vec<String> = (1..=count)
        .filter(|index| !seen.contains_key(index))
        .take(MAX_NAMED)
        .map(|index| format!("{index}/{count}"))
        .collect();
    let others = match missing - named.len() {
        0 => String::new(),
        others => format!(" and {others} others"),
    };
    Err(ExperimentError::Merge(format!(
        "missing shards: {}{others}; run the experiment with --shard for each of them, or add their \
         folders",
        named.join(", ")
    )))
}

/// Checks that a shard has all of its measurements, failed ones included.
fn check_complete(path: &Path, plan: &Plan, lines: &[Line]) -> Result<(), ExperimentError> {
    let found: BTreeSet<_> = lines.iter().map(Line::key).collect();
    let units = plan.units();
    let missing: Vec<_> = units
        .iter()
        .map(|&unit| plan.key(unit))
        .filter(|key| !found.contains(key))
        .collect();
    match missing.first() {
        None => Ok(()),
        Some((model, setting, sample)) => Err(ExperimentError::Merge(format!(
            "{} (shard {}) lacks {} of {} measurements, the first is {model}, {setting}, sample \
             {sample}: run its command again, which continues where it stopped",
            path.display(),
            plan.shard,
            missing.len(),
            units.len()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_have_every_sample_once() {
        for (text, expected) in [("1/3", vec![0, 3, 6]), ("3/3", vec![2, 5])] {
            let shard: Shard = text.parse().unwrap();
            let own: Vec<usize> = (0..8).filter(|&i| shard.has(i)).collect();
            assert_eq!(own, expected);
            assert_eq!(shard.to_string(), text);
        }
        for text in ["", "1", "0/2", "3/2", "1/0", "a/b"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
        for text in [r#"{"index":1,"count":0}"#, r#"{"index":0,"count":2}"#] {
            assert!(serde_json::from_str::<Shard>(text).is_err(), "{text}");
        }
    }

    /// A file that announces any number of shards costs neither time nor memory.
    #[test]
    fn a_few_missing_shards_are_named() {
        for (count, words) in [
            (3, "missing shards: 1/3, 3/3; run"),
            (usize::MAX, "8/18446744073709551615, 9/"),
            (100, "9/100 and 91 others; run"),
        ] {
            let plan = Plan {
                experiment: "resolution".to_owned(),
                parameters: BTreeMap::new(),
                cases: Vec::new(),
                samples: Vec::new(),
                shard: Shard { index: 2, count },
                environments: Vec::new(),
            };
            let found = check_numbers(&[(Path::new("a"), (plan, Vec::new()))]);
            let error = found.expect_err("missing shards").to_string();
            assert!(error.contains(words) && error.len() < 400, "{error}");
        }
    }
}
