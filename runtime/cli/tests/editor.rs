//! `edge-lmm chat` on a terminal.

#![cfg(target_os = "linux")]

mod short_context;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tempfile::TempDir;

/// Longest wait for a text.
const PATIENCE: Duration = Duration::from_secs(60);

fn demo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models/demo")
        .join(name)
}

/// A conversation on a pseudo-terminal.
struct Terminal {
    child: Child,
    keys: File,
    screen: Receiver<Vec<u8>>,
    /// The output of the editor that no expectation has matched yet.
    shown: String,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Terminal {
    fn start(home: &TempDir, arguments: &[&str]) -> Self {
        Self::with_model(home, &demo("qwen2vl-tiny.bpk"), arguments)
    }

    fn with_model(home: &TempDir, record: &Path, arguments: &[&str]) -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&controller).expect("access");
        unlockpt(&controller).expect("access");
        let name = ptsname(&controller, Vec::new()).expect("a name");
        let name = name.to_str().expect("a path");
        let user = OpenOptions::new()
            .read(true)
            .write(true)
            .open(name)
            .expect("its other end");
        let end = || user.try_clone().expect("a handle");
        // Makes the terminal the one whose Ctrl-C reaches the program.
        let child = Command::new("setsid")
            .args(["--ctty", "--wait", env!("CARGO_BIN_EXE_edge-lmm"), "chat"])
            .arg(record)
            .args(arguments)
            .env("TERM", "xterm")
            .env("HOME", home.path())
            .env_remove("XDG_STATE_HOME")
            .current_dir(home.path())
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("the program starts");
        drop(user);
        let controller = File::from(controller);
        let mut reader = controller.try_clone().expect("a handle");
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The terminal is gone after the program.
            while let Ok(read @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..read].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            keys: controller,
            screen,
            shown: String::new(),
        }
    }

    fn press(&mut self, keys: &str) {
        self.keys
            .write_all(keys.as_bytes())
            .expect("keys are taken");
    }

    /// Waits for a text and forgets what was shown up to its end.
    fn expect(&mut self, text: &str) {
        let start = Instant::now();
        loop {
            if let Some(place) = self.shown.find(text) {
                self.shown.drain(..place + text.len());
                return;
            }
            let left = PATIENCE.saturating_sub(start.elapsed());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.shown += &String::from_utf8_lossy(&bytes),
                Err(_) => panic!("no {text:?} in {:?}", self.shown),
            }
        }
    }

    /// Types a line after the prompt.
    fn say(&mut self, line: &str) {
        self.expect("> ");
        self.press(&format!("{line}\r"));
    }

    fn leaves(mut self) {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().expect("a status") {
                assert!(status.success(), "{status}: {}", self.shown);
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("it goes on: {:?}", self.shown);
    }
}

#[test]
fn questions_and_commands_are_edited() {
    let home = tempfile::tempdir().expect("a folder");
    fs::copy(demo("shapes.png"), home.path().join("my shapes.png")).expect("an image");
    let mut terminal = Terminal::start(&home, &[]);
    // Tab completes commands and paths.
    terminal.expect("> ");
    terminal.press("/im\t my\t\r");
    terminal.say("how many shapes are there?");
    terminal.expect("two");
    terminal.say("/stats");
    terminal.expect("tokens generated");
    // A backslash and Alt-Enter continue the question.
    terminal.expect("> ");
    terminal.press("list\\\rthe\x1b\rshapes.\r");
    terminal.say("/save talk.txt");
    terminal.expect("is in talk.txt");
    let talk = fs::read_to_string(home.path().join("talk.txt")).expect("a file");
    assert!(
        talk.contains("user: [image] how many shapes are there?\n\nassistant: two"),
        "{talk}"
    );
    assert!(talk.contains("user: list\nthe\nshapes.\n"), "{talk}");
    terminal.say("/undo");
    terminal.expect("removed the question");
    // Ctrl-C at the prompt tells how to leave.
    terminal.expect("> ");
    terminal.press("half a question\x03");
    terminal.expect("Ctrl-D exits");
    // The key Up repeats a question.
    terminal.expect("> ");
    terminal.press("\x1b[A\r");
    terminal.expect("removed the question \"how many");
    terminal.expect("> ");
    terminal.press("\x04");
    terminal.leaves();

    let history = home.path().join(".local/state/edge-lmm/history");
    let mode = |path: &Path| fs::metadata(path).expect("it exists").permissions().mode() & 0o777;
    assert_eq!(mode(&history), 0o600);
    assert_eq!(mode(history.parent().expect("a folder")), 0o700);
    // The next conversation knows the questions of this one.
    let mut terminal = Terminal::start(&home, &[]);
    terminal.expect("> ");
    terminal.press("\x1b[A\r");
    terminal.expect("there is no question to remove");
    terminal.say("/quit");
    terminal.leaves();
}

#[test]
fn an_interrupted_answer_keeps_the_conversation() {
    let home = tempfile::tempdir().expect("a folder");
    let mut terminal = Terminal::start(&home, &["--ignore-eos", "--max-tokens", "100000"]);
    terminal.say("hello");
    terminal.expect("hello");
    // The first text of the answer.
    let _ = terminal.screen.recv_timeout(PATIENCE).expect("an answer");
    std::thread::sleep(Duration::from_millis(200));
    terminal.press("\x03");
    terminal.expect("interrupted");
    terminal.say("/undo");
    terminal.expect("removed the question \"hello\"");
    terminal.say("/retry");
    terminal.expect("there is no question to answer again");
    terminal.say("/quit");
    terminal.leaves();
}

#[test]
fn a_full_context_offers_what_to_remove() {
    let home = tempfile::tempdir().expect("a folder");
    let record = short_context::record(home.path());
    let mut terminal = Terminal::with_model(&home, &record, &["--max-tokens", "2"]);
    let question = "7".repeat(short_context::CONTEXT / 2);
    terminal.say(&question);
    terminal.say(&question);
    terminal.expect("remove the oldest (t)urn");
    terminal.press("m\r");
    terminal.expect("there is nothing to remove");
    terminal.expect("the question was removed");
    terminal.say(&question);
    terminal.expect("remove the oldest (t)urn");
    terminal.press("t\r");
    terminal.expect("removed the turn");
    terminal.say("/undo");
    terminal.expect("removed the question");
    terminal.say("/undo");
    terminal.expect("there is no question to remove");
    terminal.say("/quit");
    terminal.leaves();
}
