//! Questions about a scene that changes.

#![cfg(target_os = "linux")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

fn demo(name: &str) -> PathBuf {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo");
    PathBuf::from(demo).join(name)
}

fn watch(source: &Path, options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edge-lmm"));
    command.arg("watch").arg(demo("qwen2vl-tiny.bpk"));
    command.args(["--prompt", "how many shapes are there?", "--json"]);
    command.arg("--source").arg(source).args(options);
    command
}

fn answers(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A Y4M video of 10 gray frames per second.
fn y4m(frames: &[u8]) -> Vec<u8> {
    let mut video = b"YUV4MPEG2 W56 H56 F10:1 Cmono\n".to_vec();
    for &gray in frames {
        video.extend(b"FRAME\n");
        video.extend([gray; 56 * 56]);
    }
    video
}

fn file(content: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(content).expect("written");
    file
}

#[test]
fn an_unchanged_scene_is_answered_once() {
    let file = file(&y4m(&[[90; 30], [91; 30]].concat()));
    let output = watch(file.path(), &["--speed", "100000"])
        .output()
        .expect("it starts");
    assert!(output.status.success(), "{output:?}");
    let answers = answers(&output);
    let [answer] = &answers[..] else {
        panic!("{answers:?}")
    };
    assert!(!answer["text"].as_str().expect("text").is_empty());
    let (first, age) = (&answer["first_token_age_ms"], &answer["age_ms"]);
    assert!(first.as_f64() > Some(0.0) && first.as_f64() <= age.as_f64());
    assert!(
        errors(&output).starts_with("1 answers; 60 frames"),
        "{output:?}"
    );
}

/// The model is slower than 100 frames at a hundred thousand times their rate, and the last frame is
/// always answered. The text before the image is computed once.
#[test]
fn a_slow_answer_skips_frames() {
    let grays: Vec<u8> = (0..100).map(|i| 10 + 2 * i).collect();
    let file = file(&y4m(&grays));
    let options = ["--speed", "100000", "--change", "1"];
    let output = watch(file.path(), &options).output().expect("it starts");
    assert!(output.status.success(), "{output:?}");
    let answers = answers(&output);
    assert!((1..20).contains(&answers.len()), "{output:?}");
    let last = &answers[answers.len() - 1];
    assert_eq!(
        (&last["time"], &last["frames_seen"]),
        (&9.9.into(), &100.into())
    );
    assert!(last["skipped_share"].as_f64() > Some(0.5), "{last}");
    for later in &answers[1..] {
        assert!(later["reused_tokens"].as_u64() > Some(0), "{later}");
    }
}

#[test]
fn a_stream_ends_after_the_wanted_answers() {
    // The writer never ends the stream.
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    writer.write_all(&y4m(&[50])).expect("written");
    let output = watch(Path::new("-"), &["--max-answers", "1"])
        .stdin(reader)
        .output()
        .expect("it starts");
    drop(writer);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(answers(&output).len(), 1);
}

#[test]
fn the_newest_image_of_a_folder_is_answered() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::copy(demo("shapes.png"), folder.path().join("a.png")).expect("copied");
    let child = watch(folder.path(), &["--max-answers", "2", "--change", "0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    std::thread::sleep(Duration::from_millis(1500));
    fs::write(folder.path().join("b.png"), b"no image").expect("written");
    std::thread::sleep(Duration::from_millis(500));
    fs::copy(demo("shapes.png"), folder.path().join("c.png")).expect("copied");
    // If the program starts late, it sees the last image only.
    std::thread::sleep(Duration::from_millis(1500));
    fs::copy(demo("shapes.png"), folder.path().join("d.png")).expect("copied");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
    let answers = answers(&output);
    assert_eq!(answers.len(), 2);
    assert!(
        answers.iter().all(|answer| answer["text"] == "two"),
        "{output:?}"
    );
}

#[test]
fn bad_sources_give_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut cut = y4m(&[1, 200]);
    cut.truncate(cut.len() - 9);
    let (empty, cut) = (file(&y4m(&[])), file(&cut));
    for (source, message) in [
        (folder.path().join("missing"), "missing: cannot be read"),
        ("/dev/null".into(), "camera"),
        (empty.path().to_owned(), "it has no frames"),
        (cut.path().to_owned(), "is truncated"),
        (demo("README.md"), "not a video"),
    ] {
        let options = ["--speed", "100000"];
        let output = watch(&source, &options).output().expect("it starts");
        let errors = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains(message), "{errors}");
    }
}

#[test]
fn an_interrupt_ends_with_the_summary() {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    writer.write_all(&y4m(&[50])).expect("written");
    let mut child = watch(Path::new("-"), &[])
        .stdin(reader)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut first = String::new();
    let mut lines = std::io::BufReader::new(child.stdout.take().expect("its output"));
    std::io::BufRead::read_line(&mut lines, &mut first).expect("an answer");
    let interrupted = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(interrupted.expect("kill").success());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
    assert!(
        errors(&output).contains("1 answers; 1 frames"),
        "{output:?}"
    );
}
