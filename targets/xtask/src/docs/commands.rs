//! Commands of the documentation, run as a reader would run them.

use std::collections::HashSet;
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use super::markdown::{Block, Page};
use crate::cross::CONVERTER;

/// Language of the blocks that are run.
const LANGUAGE: &str = "sh";
/// Marker of a block that runs until the end of its page, such as a server.
const BACKGROUND: &str = "background";
/// Markers of blocks that are not run.
const NEEDS: [(&str, &str); 9] = [
    ("needs-build", "minutes of compilation"),
    ("needs-time", "minutes of a quiet machine"),
    ("needs-network", "a network"),
    ("needs-root", "another system or its administrator"),
    ("needs-board", "a board"),
    ("needs-gpu", "a GPU"),
    ("needs-model", "a model of real size"),
    ("needs-data", "data that are not in the repository"),
    ("needs-program", "a program that may be missing"),
];
/// Names in the texts, and the files of the repository that stand for them.
const STAND_INS: [(&str, &str); 12] = [
    ("qwen2-vl-2b.bpk", "models/demo/qwen2vl-tiny.bpk"),
    ("model.bpk", "models/demo/qwen2vl-tiny.bpk"),
    ("cat.jpg", "models/demo/shapes.png"),
    ("Qwen2-VL-2B-Instruct", "models/tests/data/qwen2vl-tiny"),
    (
        "qwen2-vl-2b-f16.gguf",
        "models/tests/data/qwen2vl-tiny-gguf/qwen2vl-tiny-f16.gguf",
    ),
    (
        "mmproj-f16.gguf",
        "models/tests/data/qwen2vl-tiny-gguf/mmproj-qwen2vl-tiny-f16.gguf",
    ),
    ("questions", "models/tests/data/questions"),
    ("readings.txt", "README.md"),
    ("article.txt", "targets/python/README.md"),
    ("screenshot.png", "models/demo/shapes.png"),
    ("inbox", "runtime/engine/tests/media/data/images"),
    (
        "clip.mp4",
        "runtime/engine/tests/media/data/videos/h264_baseline.mp4",
    ),
];
/// Address of the servers in the texts; a free port takes its place.
const ADDRESS: &str = "127.0.0.1:8080";
const PROGRAMS: [&str; 2] = ["edge-lmm", CONVERTER];
/// The converter without its default method, which takes minutes in a development build.
const FAST_CONVERTER: &str = r#"#!/bin/sh
case " $* " in
*" compare "* | *" --method "*) ;;
*) set -- "$@" --method nearest ;;
esac
exec "${0%/*}/converter" "$@"
"#;
/// Longest time of a block.
const LIMIT: Duration = Duration::from_secs(120);

/// Returns a line for each block of the page whose language or markers are missing or unknown.
pub fn check_markers(page: &Page) -> Vec<String> {
    let known = |marker: &&str| *marker == BACKGROUND || need(marker).is_some();
    let problem = |block: &Block| {
        let mut words = block.info.split(',');
        let language = words.next().unwrap_or_default();
        if language.is_empty() {
            return Some("a code block without a language (sh, text, ...)".to_owned());
        }
        let unknown = words.find(|marker| language == LANGUAGE && !known(marker))?;
        Some(format!("unknown marker {unknown}"))
    };
    let at = |block: &Block| {
        Some(format!(
            "{}:{}: {}",
            page.path.display(),
            block.line,
            problem(block)?
        ))
    };
    page.blocks.iter().filter_map(at).collect()
}

fn need(marker: &str) -> Option<&'static str> {
    let mut needs = NEEDS.iter();
    needs
        .find(|(name, _)| *name == marker)
        .map(|(_, what)| *what)
}

/// Runs the commands of the pages with the programs in a folder and prints those that are left out.
pub fn run<'a>(
    root: &Path,
    programs: &Path,
    pages: impl Iterator<Item = &'a Page>,
) -> anyhow::Result<()> {
    let (mut passed, mut skipped, mut failed) = (0, 0, 0);
    for page in pages {
        let mut folder = None;
        for block in &page.blocks {
            let mut words = block.info.split(',');
            if words.next() != Some(LANGUAGE) {
                continue;
            }
            let place = format!("{}:{}", page.path.display(), block.line);
            let markers: Vec<&str> = words.collect();
            if let Some(need) = markers.iter().find_map(|marker| need(marker)) {
                println!("{place}: not run, needs {need}");
                skipped += 1;
                continue;
            }
            if folder.is_none() {
                folder = Some(Folder::new(root, programs)?);
            }
            let folder = folder.as_mut().context("no folder")?;
            match folder.run(root, block, markers.contains(&BACKGROUND)) {
                Ok(()) => passed += 1,
                Err(error) => {
                    println!("{place}: {error:#}");
                    failed += 1;
                }
            }
        }
    }
    println!("commands of the documentation: {passed} passed, {failed} failed, {skipped} not run");
    ensure!(failed == 0, "commands of the documentation failed");
    Ok(())
}

/// Temporary folder in which the commands of a page run: it looks like the root of the repository, with
/// built programs and with files that stand for those of a user.
struct Folder {
    folder: TempDir,
    address: String,
    servers: Vec<Child>,
}

impl Folder {
    fn new(root: &Path, programs: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let link = |from: &Path, to: &str| {
            std::os::unix::fs::symlink(from, folder.path().join(to))
                .with_context(|| format!("cannot link {to}"))
        };
        for name in ["models", "targets", "runtime", "docs"] {
            link(&root.join(name), name)?;
        }
        fs::create_dir_all(folder.path().join("target/release"))?;
        for name in PROGRAMS {
            let program = programs.join(name);
            ensure!(
                program.is_file(),
                "{} is missing; build it: cargo build -p edge-lmm-cli -p edge-lmm-convert \
                 --features edge-lmm-cli/plots,edge-lmm-cli/data",
                program.display()
            );
            link(&program, &format!("target/release/{name}"))?;
        }
        let converter = folder.path().join("target/release").join(CONVERTER);
        fs::rename(&converter, converter.with_file_name("converter"))?;
        fs::write(&converter, FAST_CONVERTER)?;
        fs::set_permissions(&converter, Permissions::from_mode(0o755))?;
        // The system chooses a free port.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        Ok(Self {
            folder,
            address,
            servers: Vec::new(),
        })
    }

    /// Runs a block, or starts it and waits for its server.
    fn run(&mut self, root: &Path, block: &Block, background: bool) -> anyhow::Result<()> {
        self.place_files(root, &block.text)?;
        let text = block.text.replace(ADDRESS, &self.address);
        let output = self.folder.path().join(".output");
        let file = File::create(&output)?;
        let path = std::env::var("PATH").unwrap_or_default();
        let programs = self.folder.path().join("target/release");
        let mut child = Command::new("bash")
            .args(["-euo", "pipefail", "-c", &text])
            .env("PATH", format!("{}:{path}", programs.display()))
            .env("XDG_CACHE_HOME", self.folder.path().join(".cache"))
            .current_dir(self.folder.path())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("cannot run bash")?;
        let result = match background {
            true => wait_for_server(&mut child, &self.address),
            false => wait(&mut child),
        };
        if background {
            self.servers.push(child);
        }
        result.with_context(|| format!("failed: {}\n{}", text.trim(), tail(&output)))
    }

    /// Places the files that the commands name and do not write.
    fn place_files(&self, root: &Path, commands: &str) -> anyhow::Result<()> {
        let words: Vec<&str> = commands.split_whitespace().collect();
        let outputs: HashSet<&str> = words
            .windows(2)
            .filter(|pair| ["-o", "--output", ">"].contains(&pair[0]))
            .map(|pair| pair[1])
            .collect();
        for (name, source) in STAND_INS {
            let path = self.folder.path().join(name);
            if outputs.contains(name) {
                let _ = fs::remove_file(&path);
            } else if commands.contains(name) && !path.exists() {
                let source = root.join(source);
                // A link to a record could lead a command that writes it into the repository.
                match source.is_dir() {
                    true => std::os::unix::fs::symlink(&source, &path)?,
                    false => drop(
                        fs::copy(&source, &path)
                            .with_context(|| format!("{name}: {}", source.display()))?,
                    ),
                }
            }
        }
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for server in &mut self.servers {
            end(server);
        }
    }
}

/// Ends a block with all processes that it started.
fn end(child: &mut Child) {
    let group = format!("-{}", child.id());
    let _ = Command::new("kill").args(["--", &group]).status();
    let _ = child.wait();
}

fn wait(child: &mut Child) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "{status}");
            return Ok(());
        }
        if start.elapsed() > LIMIT {
            end(child);
            bail!("no end after {} s", LIMIT.as_secs());
        }
        sleep(Duration::from_millis(20));
    }
}

fn wait_for_server(child: &mut Child, address: &str) -> anyhow::Result<()> {
    let start = Instant::now();
    while TcpStream::connect(address).is_err() {
        if let Some(status) = child.try_wait()? {
            bail!("{status}");
        }
        ensure!(start.elapsed() < LIMIT, "nothing listens at {address}");
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Returns the last lines of a file.
fn tail(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(path) {
        let _ = file.read_to_end(&mut bytes);
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(text: &str) -> Page {
        Page::parse(Path::new("a.md"), text)
    }

    #[test]
    fn a_block_needs_a_language_and_known_markers() {
        let text = "```\nls\n```\n\n```sh,needs-board\nls\n```\n\n```sh,needs-luck\nls\n```\n\n```rust,no_run\n```\n";
        let problems = check_markers(&page(text));
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].starts_with("a.md:1: a code block without"));
        assert!(problems[1].starts_with("a.md:9: unknown marker needs-luck"));
    }

    #[test]
    fn blocks_of_a_page_run_one_after_another_in_one_folder() {
        let root = tempfile::tempdir().expect("a folder");
        let programs = root.path().join("programs");
        fs::create_dir(&programs).expect("a folder");
        for name in PROGRAMS {
            fs::write(programs.join(name), "").expect("a file");
        }
        let good = page(
            "```sh\necho x > made\n```\n\n```sh\ngrep x made\n```\n\n```sh,needs-gpu\nfalse\n```\n\n```text\nfalse\n```\n",
        );
        run(root.path(), &programs, [&good].into_iter()).expect("the commands pass");
        let bad = page("```sh\nfalse\necho later commands do not hide it\n```\n");
        assert!(run(root.path(), &programs, [&bad].into_iter()).is_err());
    }
}
