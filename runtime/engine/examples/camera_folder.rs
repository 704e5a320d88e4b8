//! Chats about images that arrive in a folder, as a camera writes them.
//!
//! ```text
//! cargo run --release -p edge-lmm --example camera_folder MODEL.bpk FOLDER [QUESTION]
//! ```
//! Each new file is asked about in one conversation, which is begun anew when it is full. Without
//! arguments, the demo's model is asked about a folder with the demo's image.

use std::collections::BTreeSet;
use std::error::Error;
use std::io::{Write, stdout};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edge_lmm::memory::keep_large_blocks;
use edge_lmm::{
    AnySession, Device, EngineError, Event, Media, Message, Record, Request, Role, demo,
    user_message,
};

/// Time between two looks at the folder.
const INTERVAL: Duration = Duration::from_millis(500);
/// Images of a conversation.
const IMAGES: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    keep_large_blocks();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [] => demonstrate(),
        [model, folder] => watch(model, folder.as_ref(), "What is new in this image?"),
        [model, folder, question] => watch(model, folder.as_ref(), question),
        _ => Err("expected MODEL.bpk FOLDER [QUESTION], or nothing".into()),
    }
}

/// Asks about every image that is in the folder or appears in it.
fn watch(model: &str, folder: &Path, question: &str) -> Result<(), Box<dyn Error>> {
    let (engine, _) = Device::Cpu.load_checked(&Record::open(model)?, false)?;
    let mut chat = Chat::new(engine.session());
    let mut seen = BTreeSet::new();
    loop {
        for path in new_files(folder, &mut seen)? {
            chat.ask_about(&path, question)?;
        }
        std::thread::sleep(INTERVAL);
    }
}

/// One look at a folder with one image.
fn demonstrate() -> Result<(), Box<dyn Error>> {
    let folder = std::env::temp_dir().join(format!("camera-folder-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("shapes.png"), demo::IMAGE)?;
    let record = Record::from_static(demo::RECORD, "the demo's record")?;
    let mut chat = Chat::new(Device::Cpu.load(&record)?.session());
    let files = new_files(&folder, &mut BTreeSet::new())?;
    let asked = files
        .iter()
        .try_for_each(|path| chat.ask_about(path, "how many shapes are there?"));
    std::fs::remove_dir_all(&folder)?;
    asked
}

/// Files that were not there before, by name. A camera renames a file into the folder once it is
/// complete; one that it writes in place is read too early and reported.
fn new_files(folder: &Path, seen: &mut BTreeSet<PathBuf>) -> std::io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path()));
    let mut files: Vec<PathBuf> = entries.collect::<Result<_, _>>()?;
    files.retain(|path| path.is_file() && seen.insert(path.clone()));
    files.sort();
    Ok(files)
}

/// A conversation about the latest images.
struct Chat {
    session: AnySession,
    messages: Vec<Message>,
    media: Vec<Media>,
}

impl Chat {
    fn new(session: AnySession) -> Self {
        Self {
            session,
            messages: Vec::new(),
            media: Vec::new(),
        }
    }

    /// Shows an image and prints the answer. A file that is no image is reported and left out.
    fn ask_about(&mut self, path: &Path, question: &str) -> Result<(), Box<dyn Error>> {
        let medium = match Media::open(path) {
            Ok(medium) => medium,
            Err(error) => {
                eprintln!("{error}");
                return Ok(());
            }
        };
        if self.media.len() == IMAGES {
            self.begin_anew();
        }
        print!("{}: ", path.display());
        let message = user_message(std::slice::from_ref(&medium), question);
        self.messages.push(message);
        self.media.push(medium);
        match self.answer() {
            // The conversation is full; the image alone may fit.
            Err(EngineError::TooLong { .. }) if self.media.len() > 1 => {
                let last = (self.messages.pop(), self.media.pop());
                self.begin_anew();
                self.messages.extend(last.0);
                self.media.extend(last.1);
                self.answer()?;
            }
            outcome => outcome?,
        }
        println!();
        Ok(())
    }

    /// Streams an answer to the conversation so far. What the session knows of it already is not
    /// computed again.
    fn answer(&mut self) -> Result<(), EngineError> {
        let request = Request {
            media: &self.media,
            max_tokens: 64,
            ..Request::new(&self.messages)
        };
        let answer = self.session.answer(&request, |event| {
            if let Event::Text(text) = event {
                print!("{text}");
                // Nobody watches the terminal if it is gone.
                let _ = stdout().flush();
            }
            ControlFlow::Continue(())
        })?;
        self.messages
            .push(Message::text(Role::Assistant, answer.text));
        Ok(())
    }

    fn begin_anew(&mut self) {
        self.messages.clear();
        self.media.clear();
    }
}
