//! `targets/profile-board.sh` with an ssh that runs commands on this machine.
#![cfg(target_os = "linux")]

#[path = "../../engine/tests/media/script.rs"]
mod script;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// Runs a command in the home folder of the board. The first look at the log loses the connection.
const SSH: &str = r#"#!/bin/sh
while [ "$1" = -o ]; do shift 2; done
shift
case "$*" in *"tail -n"*)
    if [ ! -f "$BOARD/lost" ]; then touch "$BOARD/lost"; exit 255; fi ;;
esac
export HOME="$BOARD/home"
cd "$HOME" && exec sh -c "$*"
"#;

const SCP: &str = r#"#!/bin/sh
while [ $# -gt 2 ]; do shift; done
exec cp "$1" "$BOARD/home/${2#*:}"
"#;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

/// A folder with the home folder of a board, and ssh and scp to reach it.
fn board() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for part in ["bin", "home"] {
        fs::create_dir(folder.path().join(part)).expect("a folder");
    }
    for (name, text) in [("ssh", SSH), ("scp", SCP)] {
        let path = folder.path().join("bin").join(name);
        script::write(&path, text);
    }
    folder
}

fn measure(board: &TempDir, program: &Path, arguments: &[&str]) -> Output {
    let path = std::env::var("PATH").expect("a search path");
    let path = format!("{}:{path}", board.path().join("bin").display());
    Command::new("bash")
        .arg(repository("targets/profile-board.sh"))
        .args(["board", "--poll", "1", "--program"])
        .arg(program)
        .arg("--out")
        .arg(board.path().join("results"))
        .args(arguments)
        .env("PATH", path)
        .env("BOARD", board.path())
        .output()
        .expect("bash starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The first run loses its connection and has a profile that fails. The second one measures only
/// this profile.
#[test]
fn failed_measurements_are_repeated() {
    let board = board();
    let program = Path::new(env!("CARGO_BIN_EXE_edge-lmm"));
    let record = repository("models/demo/qwen2vl-tiny.bpk");
    let image = board.path().join("image.png");
    let image_option = format!("--image={}", image.display());
    let options = [
        "--record",
        record.to_str().expect("UTF-8"),
        "--profile-option",
        &image_option,
        "--profile-option",
        "--prompt=what's this?",
        "--paper-option",
        "--minutes=60",
        "--",
        "--threads=2",
        "--max-tokens=1",
        "--repeat=1",
        "--warmup=0",
    ];
    let home = board.path().join("home/edge-lmm-board");

    let first = measure(&board, program, &options);
    let error = text(&first.stderr);
    assert_eq!(first.status.code(), Some(1), "{error}");
    assert!(error.contains("connection to board is lost"), "{error}");
    assert!(error.contains("the same command repeats them"), "{error}");
    assert!(home.join("results").is_dir());

    fs::copy(repository("models/demo/shapes.png"), &image).expect("a copy");
    let second = measure(&board, program, &options);
    assert!(second.status.success(), "{}", text(&second.stderr));
    assert!(!text(&second.stdout).contains("copying"), "{second:?}");
    assert!(!home.exists());

    let results = board.path().join("results");
    let read = |name: &str| fs::read_to_string(results.join(name)).expect(name);
    let json = |name: &str| -> Value { serde_json::from_str(&read(name)).expect("JSON") };
    let log = read("log.txt");
    let count = |step: &str| log.lines().filter(|line| *line == step).count();
    assert_eq!(
        (count("== profile-qwen2vl-tiny"), count("== paper")),
        (2, 1),
        "{log}"
    );
    assert_eq!(
        json("profile-qwen2vl-tiny.json")["format"],
        "edge-lmm profile"
    );
    assert_eq!(json("paper.json")["format"], "edge-lmm experiment");
    assert_eq!(json("doctor.json")["architecture"], std::env::consts::ARCH);
    for name in ["profile-qwen2vl-tiny.html", "paper.html"] {
        assert!(read(name).contains("id=\"data\""), "{name}");
    }
}

#[test]
fn wrong_usage_says_what_to_do() {
    let board = board();
    let program = board.path().join("program");
    // Headers of programs for a 32-bit SPARC, and no program.
    let mut header = [0; 64];
    header[..4].copy_from_slice(b"\x7fELF");
    header[18] = 2;
    for (bytes, arguments, expected) in [
        (&header[..], &[][..], "cargo xtask cross --target DEVICE"),
        (b"text", &[], "is not a program for Linux"),
        (&header, &["--record", "missing.bpk"], "edge-lmm-convert"),
        (&header, &["--poll", "x"], "expected seconds"),
        (&header, &["--threads=2"], "options of edge-lmm follow --"),
        (&header, &["model.bpk"], "--record FILE.bpk"),
    ] {
        fs::write(&program, bytes).expect("a program");
        let output = measure(&board, &program, arguments);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(
            error.starts_with("error: ") && error.lines().count() == 1,
            "{error}"
        );
        assert!(error.contains(expected), "{expected}: {error}");
    }
}
