//! Files of a dataset by their names: loose ones and members of zip archives.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};

use anyhow::Context;
use edge_lmm::MediaKind;
use zip::ZipArchive;

use super::names;
use super::source::Source;

/// Extensions of media, preferred ones first.
fn extensions(kind: MediaKind) -> &'static [&'static str] {
    match kind {
        MediaKind::Image => &["png", "jpg", "jpeg", "webp", "bmp", "gif"],
        MediaKind::Video => &["mp4", "mkv", "webm", "avi", "mov", "m4v", "gif"],
        MediaKind::Audio => &["wav", "flac", "mp3", "m4a", "ogg", "opus", "aac"],
    }
}

/// Names by their stems.
struct Stems(HashMap<String, Vec<String>>);

impl Stems {
    fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut stems: HashMap<String, Vec<String>> = HashMap::new();
        for name in names {
            let same = stems.entry(names::stem(name).to_owned()).or_default();
            same.push(name.to_owned());
        }
        Self(stems)
    }

    /// Returns the name of a medium with one of these stems.
    fn find(&self, stems: &[String], kind: MediaKind) -> Option<&str> {
        let candidates = stems.iter().filter_map(|stem| self.0.get(stem)).flatten();
        let rank = |name: &str| {
            let mut extensions = extensions(kind).iter();
            extensions.position(|extension| *extension == names::extension(name))
        };
        let ranked = candidates.filter_map(|name| Some((rank(name)?, name.as_str())));
        ranked.min().map(|(_, name)| name)
    }
}

/// The loose files of a source.
pub struct Loose<'a> {
    source: &'a Source,
    stems: Stems,
}

impl<'a> Loose<'a> {
    pub fn new(source: &'a Source) -> Self {
        Self {
            source,
            stems: Stems::new(source.names().iter().map(String::as_str)),
        }
    }

    /// Returns `true` if there is a file with one of these stems.
    pub fn has(&self, stems: &[String], kind: MediaKind) -> bool {
        self.stems.find(stems, kind).is_some()
    }

    /// Opens a file with one of these stems; `None` if there is none.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn open(
        &self,
        stems: &[String],
        kind: MediaKind,
    ) -> anyhow::Result<Option<(String, File)>> {
        let Some(name) = self.stems.find(stems, kind) else {
            return Ok(None);
        };
        let path = self.source.fetch(name)?;
        let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Some((names::extension(name), file)))
    }
}

/// An open zip archive.
pub struct Archive {
    name: String,
    archive: ZipArchive<BufReader<File>>,
    stems: Stems,
}

impl Archive {
    /// Opens an archive of the source.
    ///
    /// # Errors
    /// If it cannot be read, or a name in it leads out of the folder.
    pub fn open(source: &Source, name: &str) -> anyhow::Result<Self> {
        let path = source.fetch(name)?;
        let context = || format!("cannot read the archive {}", path.display());
        let file = File::open(&path).with_context(context)?;
        let archive = ZipArchive::new(BufReader::new(file)).with_context(context)?;
        let members = archive
            .file_names()
            .map(|member| member.map(|member| member.into_owned()))
            .collect::<Result<Vec<String>, _>>()
            .with_context(context)?;
        for member in &members {
            names::check_below(member).with_context(context)?;
        }
        Ok(Self {
            name: name.to_owned(),
            stems: Stems::new(members.iter().map(String::as_str)),
            archive,
        })
    }

    /// Returns the extension and the content of the medium with one of these stems; `None` if it has
    /// none.
    ///
    /// # Errors
    /// If the member cannot be read.
    pub fn find(
        &mut self,
        stems: &[String],
        kind: MediaKind,
    ) -> anyhow::Result<Option<(String, impl Read + '_)>> {
        let Some(member) = self.stems.find(stems, kind) else {
            return Ok(None);
        };
        let extension = names::extension(member);
        let content = self
            .archive
            .by_name(member)
            .with_context(|| format!("cannot read {member} in {}", self.name))?;
        Ok(Some((extension, content)))
    }

    /// Returns `true` if it has a medium with one of these stems.
    pub fn has(&self, stems: &[String], kind: MediaKind) -> bool {
        self.stems.find(stems, kind).is_some()
    }
}
