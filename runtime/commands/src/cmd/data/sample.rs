//! A question of a dataset, before its medium is extracted.

use anyhow::ensure;

use super::names;

/// The length of the clips of AudioCaps in seconds.
pub const AUDIOCAPS_SECONDS: u32 = 10;

/// A question with the name of its medium.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub id: String,
    pub question: String,
    pub answer: String,
    /// All accepted answers, if there are several.
    pub answers: Vec<String>,
    /// The texts of the options, if it is a multiple-choice question.
    pub choices: Vec<String>,
    pub task: String,
    pub medium: Medium,
}

/// Location of the medium of a question.
#[derive(Debug, Clone, PartialEq)]
pub struct Medium {
    /// Name of the medium; the same for all questions about it.
    pub name: String,
    pub place: Place,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Place {
    /// In the table, in the row of the question.
    Table,
    /// A file.
    File(File),
}

/// A file of the dataset.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct File {
    /// Names without folder and extension, of which one is expected.
    pub stems: Vec<String>,
    /// The video of YouTube from which it can be downloaded again.
    pub youtube: Option<YouTube>,
}

/// A video of YouTube or a section of its sound.
#[derive(Debug, Clone, PartialEq)]
pub struct YouTube {
    pub id: String,
    /// First second of [`AUDIOCAPS_SECONDS`] seconds of sound.
    pub sound_from: Option<u32>,
}

impl YouTube {
    /// Creates a reference to a video.
    ///
    /// # Errors
    /// If the identifier is not one of YouTube.
    pub fn new(id: &str, sound_from: Option<u32>) -> anyhow::Result<Self> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        ensure!(
            id.len() == 11 && id.chars().all(is_plain),
            "expected an identifier of YouTube (11 letters, digits, \"-\" and \"_\"), found {id:?}"
        );
        Ok(Self {
            id: id.to_owned(),
            sound_from,
        })
    }
}

impl Medium {
    /// A medium in the table.
    pub fn table(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            place: Place::Table,
        }
    }

    /// A file with one of these names.
    ///
    /// # Errors
    /// If a name contains a separator.
    pub fn file(
        name: &str,
        stems: impl IntoIterator<Item = String>,
        youtube: Option<YouTube>,
    ) -> anyhow::Result<Self> {
        let stems: Vec<String> = stems.into_iter().collect();
        for stem in &stems {
            names::check_plain(stem)?;
        }
        Ok(Self {
            name: name.to_owned(),
            place: Place::File(File { stems, youtube }),
        })
    }
}
