//! Folder of an experiment's results: `plan.json`, and `results.jsonl` with a line for each
//! measurement.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use edge_lmm_record::output::Output;

use super::error::ExperimentError;
use super::line::Line;
use super::plan::Plan;

const PLAN: &str = "plan.json";
const RESULTS: &str = "results.jsonl";

/// Results of an experiment on disk. Every measurement is appended when it is made, so that a run
/// that ends early can be continued. The results file is locked while the program runs.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    file: File,
    /// Length of the complete lines.
    len: u64,
    count: usize,
}

impl Folder {
    /// Opens the folder of a run, or creates it. Returns the measurements that it has. An
    /// incomplete last line, left by a run that was killed, is removed.
    ///
    /// # Errors
    /// If another program writes to it, it holds results of another plan or a damaged line, or
    /// cannot be read or written.
    pub fn open(path: &Path, plan: &Plan) -> Result<(Self, Vec<Line>), ExperimentError> {
        fs::create_dir_all(path).map_err(|error| io_error(path, error))?;
        let results = path.join(RESULTS);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options
            .open(&results)
            .map_err(|error| io_error(&results, error))?;
        lock(path, &file)?;
        let stored = read_plan(path)?;
        match &stored {
            None => write_plan(path, plan)?,
            Some(stored) => {
                check(path, plan, stored)?;
                // A medium can be opened now.
                if plan.samples != stored.samples {
                    let environments = stored.environments.clone();
                    let plan = Plan {
                        environments,
                        ..plan.clone()
                    };
                    write_plan(path, &plan)?;
                }
            }
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text)
            .map_err(|error| io_error(&results, error))?;
        let (lines, len) = parse(&results, &text)?;
        if len < text.len() as u64 {
            log::warn!(
                "{}: the last line is incomplete; its measurement is repeated",
                results.display()
            );
        }
        file.set_len(len)
            .map_err(|error| io_error(&results, error))?;
        io::Seek::seek(&mut file, io::SeekFrom::Start(len))
            .map_err(|error| io_error(&results, error))?;
        let folder = Self {
            path: path.to_owned(),
            file,
            len,
            count: lines.len(),
        };
        Ok((folder, lines))
    }

    /// Adds the state of the machine after the measurements to the plan.
    ///
    /// # Errors
    /// If the plan cannot be read or written.
    pub fn finish(&self) -> Result<(), ExperimentError> {
        if let Some(mut plan) = read_plan(&self.path)? {
            plan.finish();
            write_plan(&self.path, &plan)?;
        }
        Ok(())
    }

    /// Creates a folder with complete results.
    ///
    /// # Errors
    /// If it has results already or cannot be written.
    pub fn create_complete(
        path: &Path,
        plan: &Plan,
        lines: &[Line],
    ) -> Result<(), ExperimentError> {
        if path.join(RESULTS).exists() {
            return Err(ExperimentError::NotEmpty(path.to_owned()));
        }
        let (mut folder, _) = Self::open(path, plan)?;
        lines.iter().try_for_each(|line| folder.append(line))
    }

    /// Appends a measurement. If it cannot be written, the file ends with the line before.
    ///
    /// # Errors
    /// If the disk is full or fails.
    pub fn append(&mut self, line: &Line) -> Result<(), ExperimentError> {
        let mut bytes = serde_json::to_vec(line).map_err(io::Error::from);
        let written = bytes
            .as_mut()
            .map_err(|error| io::Error::other(error.to_string()));
        let written = written.and_then(|bytes| {
            bytes.push(b'\n');
            self.file.write_all(bytes)?;
            Ok(bytes.len() as u64)
        });
        match written {
            Ok(bytes) => {
                self.len += bytes;
                self.count += 1;
                Ok(())
            }
            Err(source) => {
                // Without space, shortening the file still works. If not, the incomplete line is
                // removed when the folder is opened again.
                if let Err(error) = self.file.set_len(self.len) {
                    log::warn!("{}: {error}", self.path.display());
                }
                Err(ExperimentError::Append {
                    path: self.path.join(RESULTS),
                    count: self.count,
                    source,
                })
            }
        }
    }
}

/// Reads the plan and the measurements of a folder.
///
/// # Errors
/// If it is no folder of results, a line is damaged, or it cannot be read.
pub fn read(path: &Path) -> Result<(Plan, Vec<Line>), ExperimentError> {
    let plan = read_plan(path)?.ok_or_else(|| ExperimentError::NoResults(path.to_owned()))?;
    let results = path.join(RESULTS);
    let text = fs::read(&results).map_err(|error| io_error(&results, error))?;
    let (lines, _) = parse(&results, &text)?;
    Ok((plan, lines))
}

fn io_error(path: &Path, source: io::Error) -> ExperimentError {
    ExperimentError::Io {
        path: path.to_owned(),
        source,
    }
}

fn lock(path: &Path, file: &File) -> Result<(), ExperimentError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(ExperimentError::Busy(path.to_owned())),
        // Some network file systems do not support locks.
        Err(TryLockError::Error(error)) => {
            log::warn!(
                "{} cannot be locked ({error}): make sure that no other program writes to it",
                path.display()
            );
            Ok(())
        }
    }
}

fn read_plan(path: &Path) -> Result<Option<Plan>, ExperimentError> {
    let path = path.join(PLAN);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(&path, error)),
    };
    let plan = serde_json::from_slice(&text);
    plan.map(Some).map_err(|error| ExperimentError::Damaged {
        path,
        line: error.line(),
        reason: error.to_string(),
    })
}

fn write_plan(path: &Path, plan: &Plan) -> Result<(), ExperimentError> {
    let path = path.join(PLAN);
    let text = serde_json::to_vec_pretty(plan).map_err(|error| io_error(&path, error.into()))?;
    Output::create(&path, true)
        .and_then(|output| output.finish_with(&text))
        .map_err(ExperimentError::Output)
}

fn check(path: &Path, plan: &Plan, stored: &Plan) -> Result<(), ExperimentError> {
    let difference = plan.difference(stored).or_else(|| {
        (plan.shard != stored.shard).then(|| {
            format!(
                "the shard is {} here and {} there",
                plan.shard, stored.shard
            )
        })
    });
    match difference {
        None => Ok(()),
        Some(difference) => Err(ExperimentError::OtherRun {
            path: path.to_owned(),
            difference,
        }),
    }
}

/// Parses the complete lines. Returns them and their length; a later line replaces an earlier one
/// of the same measurement.
fn parse(path: &Path, text: &[u8]) -> Result<(Vec<Line>, u64), ExperimentError> {
    let len = text
        .iter()
        .rposition(|&byte| byte == b'\n')
        .map_or(0, |at| at + 1);
    let mut lines: Vec<Line> = Vec::new();
    let mut places = std::collections::HashMap::new();
    for (number, line) in text[..len]
        .split_inclusive(|&byte| byte == b'\n')
        .enumerate()
    {
        let line: Line =
            serde_json::from_slice(line).map_err(|error| ExperimentError::Damaged {
                path: path.to_owned(),
                line: number + 1,
                reason: error.to_string(),
            })?;
        match places.get(&line.key()) {
            Some(&place) => lines[place] = line,
            None => {
                places.insert(line.key(), lines.len());
                lines.push(line);
            }
        }
    }
    Ok((lines, len as u64))
}
