//! Results that later processes use again: the cache folder, snapshots, kept conversations.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

const QUESTION: &str = "how many shapes are there?";

fn demo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models/demo")
        .join(name)
}

fn command(name: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edge-lmm"));
    command.arg(name).arg(demo("qwen2vl-tiny.bpk"));
    command
}

/// `edge-lmm run --json` with a question about the demo's image.
fn run(question: &str) -> Command {
    let mut command = command("run");
    command.arg("--image").arg(demo("shapes.png"));
    command.args(["--json", "--prompt", question]);
    command
}

fn cached(question: &str, folder: &Path) -> Command {
    let mut command = run(question);
    command.arg("--cache").arg(folder);
    command
}

fn finish(output: Output) -> (Value, String) {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    (
        serde_json::from_slice(&output.stdout).expect("JSON"),
        errors,
    )
}

/// The answer and what the command wrote to standard error.
fn answer(command: &mut Command) -> (Value, String) {
    finish(command.output().expect("the program starts"))
}

/// Feeds lines to a command and returns the objects that it prints.
fn talk(command: &mut Command, lines: &str) -> Vec<Value> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let mut input = child.stdin.take().expect("its input");
    input.write_all(lines.as_bytes()).expect("it reads");
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

fn has_stage(answer: &Value, name: &str) -> bool {
    let stages = answer["stages"].as_array().expect("stages");
    stages.iter().any(|stage| stage["name"] == name)
}

fn entries(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).expect("the folder");
    let paths = files.map(|file| file.expect("a file").path());
    let mut paths: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    paths.sort();
    paths
}

#[test]
fn another_process_starts_at_the_text() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().join("new/cache");
    let (first, errors) = answer(&mut cached(QUESTION, &folder));
    assert_eq!(
        (&first["text"], &first["cache"]),
        (&json!("two"), &Value::Null)
    );
    assert!(has_stage(&first, "vision") && errors.is_empty(), "{errors}");
    for question in [QUESTION, "list the shapes."] {
        let (expected, _) = answer(&mut run(question));
        let (found, errors) = answer(&mut cached(question, &folder));
        assert_eq!(found["tokens"], expected["tokens"]);
        assert_eq!(found["cache"], "disk");
        assert!(found["reused_tokens"].as_u64() >= found["visual_tokens"].as_u64());
        assert!(!has_stage(&found, "vision") && !has_stage(&found, "projector"));
        assert!(has_stage(&found, "cache") && errors.is_empty(), "{errors}");
    }
    let files = (entries(&folder, "features"), entries(&folder, "prefix"));
    assert_eq!((files.0.len(), files.1.len()), (1, 1));
}

/// Options of the media are part of what an entry is for.
#[test]
fn other_options_are_other_entries() {
    let folder = tempfile::tempdir().expect("a folder");
    answer(&mut cached(QUESTION, folder.path()));
    let fewer = ["--image-tokens", "4..8"];
    let (expected, _) = answer(run(QUESTION).args(fewer));
    let (found, _) = answer(cached(QUESTION, folder.path()).args(fewer));
    assert_eq!(
        (&found["tokens"], &found["cache"]),
        (&expected["tokens"], &Value::Null)
    );
    assert!(has_stage(&found, "vision"));
}

#[test]
fn damaged_entries_are_reported_and_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let (first, _) = answer(&mut cached(QUESTION, folder.path()));
    for extension in ["features", "prefix"] {
        let path = entries(folder.path(), extension).remove(0);
        let whole = fs::read(&path).expect("the entry");
        let flip = |at: usize| {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            bytes
        };
        let len = whole.len();
        let cut = whole[..len / 2].to_vec();
        for bytes in [
            flip(0),
            flip(8),
            flip(40),
            flip(len / 2),
            flip(len - 1),
            cut,
        ] {
            fs::write(&path, bytes).expect("it is damaged");
            let (found, errors) = answer(&mut cached(QUESTION, folder.path()));
            assert_eq!(found["tokens"], first["tokens"]);
            assert_eq!(errors.lines().count(), 1, "{errors}");
            assert!(errors.contains("is ignored"), "{errors}");
            assert!(fs::read(&path).expect("the entry") == whole);
        }
    }
}

/// Nothing can be written: one warning, and the answer comes.
#[test]
fn a_folder_that_cannot_be_used_is_a_warning() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, "text").expect("a file");
    let (found, errors) = answer(&mut cached(QUESTION, &file));
    assert_eq!(found["text"], "two");
    assert!(errors.contains("is not a folder"), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    // Folders in place of the part files stop even the superuser.
    let names = folder.path().join("names");
    answer(&mut cached(QUESTION, &names));
    for extension in ["features", "prefix"] {
        let path = entries(&names, extension).remove(0);
        fs::remove_file(&path).expect("it is removed");
        let name = path.file_name().expect("a name").to_string_lossy();
        let part = path.with_file_name(format!(".{name}.part"));
        fs::create_dir(part).expect("a folder");
    }
    let (found, errors) = answer(&mut cached(QUESTION, &names));
    assert_eq!(found["text"], "two");
    assert!(errors.contains("nothing more is cached"), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
}

#[test]
fn a_folder_that_cannot_be_created_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, "text").expect("a file");
    let output = cached(QUESTION, &file.join("folder")).output();
    let output = output.expect("the program starts");
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.starts_with("error: cannot create the cache folder"),
        "{errors}"
    );
    assert!(errors.contains("name a folder"), "{errors}");
}

#[test]
fn processes_at_the_same_time_do_not_disturb_each_other() {
    let folder = tempfile::tempdir().expect("a folder");
    for round in 0..2 {
        let children: Vec<_> = (0..4)
            .map(|_| {
                let mut command = cached(QUESTION, folder.path());
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
                command.spawn().expect("the program starts")
            })
            .collect();
        for child in children {
            let (found, errors) = finish(child.wait_with_output().expect("it ends"));
            assert_eq!(found["text"], "two");
            assert!(errors.is_empty(), "{errors}");
            assert!(round == 0 || found["cache"] == "disk");
        }
    }
}

#[test]
fn the_size_of_the_folder_is_bounded() {
    let folder = tempfile::tempdir().expect("a folder");
    answer(&mut cached(QUESTION, folder.path()));
    let size = |folder: &Path| -> u64 {
        let files = fs::read_dir(folder).expect("the folder");
        let len = |file: std::io::Result<fs::DirEntry>| file?.metadata().map(|m| m.len());
        files.map(|file| len(file).expect("a size")).sum()
    };
    let limit = size(folder.path());
    for tokens in ["4..8", "4..4", "9..16"] {
        let mut command = cached(QUESTION, folder.path());
        command.args(["--image-tokens", tokens]);
        answer(command.args(["--cache-size", &limit.to_string()]));
        assert!(size(folder.path()) <= limit);
    }
}

/// A run writes the snapshot of its prompt, later runs and chats begin with it.
#[test]
fn a_prompt_is_kept_in_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("prompt.cache");
    let with_file = |question: &str| {
        let mut command = run(question);
        command.arg("--prompt-cache").arg(&file);
        command
    };
    let (first, _) = answer(&mut with_file(QUESTION));
    assert_eq!(
        (&first["text"], &first["cache"]),
        (&json!("two"), &Value::Null)
    );
    let bytes = fs::read(&file).expect("the snapshot");
    let (again, _) = answer(&mut with_file(QUESTION));
    assert_eq!(
        (&again["tokens"], &again["cache"]),
        (&first["tokens"], &json!("disk"))
    );
    let prompt = first["prompt_tokens"].as_u64().expect("a number");
    assert_eq!(again["reused_tokens"], prompt - 1);
    assert!(!has_stage(&again, "vision"));
    let (other, _) = answer(&mut with_file("list the shapes."));
    let (expected, _) = answer(&mut run("list the shapes."));
    assert_eq!(
        (&other["tokens"], &other["cache"]),
        (&expected["tokens"], &json!("disk"))
    );
    assert_eq!(fs::read(&file).expect("the snapshot"), bytes);
    let mut damaged = bytes;
    damaged[100] ^= 1;
    fs::write(&file, damaged).expect("it is damaged");
    let output = with_file(QUESTION).output().expect("the program starts");
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.starts_with("error: cannot use the snapshot"),
        "{errors}"
    );
}

#[test]
fn a_conversation_is_saved_and_continued() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("chat.cache");
    let chat = || {
        let mut command = command("chat");
        command.arg("--json").arg("--image").arg(demo("shapes.png"));
        command
    };
    let save = format!("/save-cache {}\n", file.display());
    let saved = talk(
        &mut chat(),
        &format!("{save}{QUESTION}\n{save}list the shapes.\n"),
    );
    let error = saved[0]["error"].as_str().expect("nothing to save yet");
    assert!(error.contains("ask a question first"), "{error}");
    let lines = format!("{QUESTION}\nlist the shapes.\n");
    let continued = talk(chat().arg("--prompt-cache").arg(&file), &lines);
    for (turn, cache) in [(0, "disk"), (1, "memory")] {
        assert_eq!(continued[turn]["tokens"], saved[turn + 1]["tokens"]);
        assert_eq!(continued[turn]["cache"], cache);
        assert!(!has_stage(&continued[turn], "vision"));
    }
    // A file that is missing is written after the first answer.
    let file = folder.path().join("new.cache");
    talk(chat().arg("--prompt-cache").arg(&file), &lines);
    let again = talk(chat().arg("--prompt-cache").arg(&file), &lines);
    assert_eq!(
        (&again[0]["text"], &again[0]["cache"]),
        (&json!("two"), &json!("disk"))
    );
}

/// Several questions about each image: the answers are those of computing anew.
#[test]
fn questions_of_an_evaluation_share_their_image() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = demo("shapes.png");
    let mut manifest = "id,media_path,question,answer,task\n".to_owned();
    for (i, question) in [QUESTION, "list the shapes.", "is there a red circle?"]
        .iter()
        .enumerate()
    {
        manifest += &format!("{i},{},{question},two,shapes\n", image.display());
    }
    let path = folder.path().join("manifest.csv");
    fs::write(&path, manifest).expect("a manifest");
    let eval = |arguments: &[&str]| {
        let mut command = command("eval");
        command.arg("--manifest").arg(&path).arg("--json");
        answer(command.args(arguments)).0
    };
    let (reusing, anew) = (eval(&[]), eval(&["--no-reuse"]));
    let predicted = |report: &Value| -> Vec<Value> {
        let predictions = report["predictions"].as_array().expect("predictions");
        predictions.iter().map(|p| p["predicted"].clone()).collect()
    };
    assert_eq!(predicted(&reusing), predicted(&anew));
    assert_eq!(
        (&anew["reused_tokens"], &reusing["right"]),
        (&json!(0), &anew["right"])
    );
    assert_eq!(reusing["prompt_tokens"], anew["prompt_tokens"]);
    assert_eq!(reusing["predictions"][0]["reused_tokens"], 0);
    for i in [1, 2] {
        assert!(reusing["predictions"][i]["reused_tokens"].as_u64() > Some(16));
    }
}

/// Requests about two images take turns: each is answered as by a server of its own, and both
/// images stay in memory.
#[test]
fn a_server_keeps_several_conversations() {
    let folder = tempfile::tempdir().expect("a folder");
    let mirrored = folder.path().join("mirrored.png");
    let image = image::open(demo("shapes.png")).expect("the image");
    image.fliph().save(&mirrored).expect("it is written");
    let ask = |image: &Path, prompt: &str| json!({"prompt": prompt, "images": [image]});
    let (first, second) = (demo("shapes.png"), mirrored);
    let requests = [
        ask(&first, QUESTION),
        ask(&second, QUESTION),
        ask(&first, "list the shapes."),
        ask(&second, "list the shapes."),
        ask(&first, QUESTION),
    ];
    let lines = |requests: &[Value]| -> String {
        requests
            .iter()
            .map(|request| format!("{request}\n"))
            .collect()
    };
    let replies = talk(&mut command("serve"), &lines(&requests));
    for (request, reply) in requests.iter().zip(&replies) {
        let alone = talk(&mut command("serve"), &lines(std::slice::from_ref(request)));
        assert_eq!(reply["tokens"], alone[0]["tokens"], "{request}");
    }
    for reply in &replies[2..] {
        assert_eq!(reply["cache"], "memory");
        assert!(reply["reused_tokens"].as_u64() >= reply["visual_tokens"].as_u64());
    }
    // With one conversation, the other image is in its place.
    let one = talk(
        command("serve").args(["--conversations", "1"]),
        &lines(&requests),
    );
    assert!(one[2]["reused_tokens"].as_u64() < one[2]["visual_tokens"].as_u64());
    for (reply, expected) in one.iter().zip(&replies) {
        assert_eq!(reply["tokens"], expected["tokens"]);
    }
}
