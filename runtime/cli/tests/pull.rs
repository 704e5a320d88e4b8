//! `edge-lmm pull`, `list`, `show` and `rm` with a server that answers like the Hugging Face hub.

#![cfg(all(feature = "pull", unix))]

mod hub;
#[path = "../../engine/tests/media/script.rs"]
mod script;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use hub::{End, Hub, Reply};
use serde_json::{Value, json};
use tempfile::TempDir;

const TOKEN: &str = "hf_secret";

/// Arguments of the converter, one a line.
const ARGUMENTS: &str = "EDGE_LMM_TEST_ARGUMENTS";

/// Converts when the script of [`Folders`] starts this test by its name.
#[test]
#[ignore = "run by the other tests as the program edge-lmm-convert"]
fn converter() {
    if let Ok(arguments) = std::env::var(ARGUMENTS) {
        let arguments = std::iter::once("edge-lmm-convert").chain(arguments.lines());
        let code = edge_lmm_convert::main(arguments.map(Into::into));
        std::process::exit(code.into());
    }
}

/// A home folder, the program, and optionally a converter beside it.
struct Folders(TempDir);

impl Folders {
    fn new() -> Self {
        let folders = Self::without_converter();
        let script = format!(
            "#!/bin/sh\n{ARGUMENTS}=$(printf '%s\\n' \"$@\") exec '{}' --ignored --exact converter\n",
            std::env::current_exe().expect("a path").display()
        );
        let path = folders.path("bin/edge-lmm-convert");
        script::write(&path, &script);
        folders
    }

    fn without_converter() -> Self {
        let folders = Self(tempfile::tempdir().expect("a folder"));
        fs::create_dir(folders.path("bin")).expect("a folder");
        let program = env!("CARGO_BIN_EXE_edge-lmm");
        let own = folders.path("bin/edge-lmm");
        // A link is enough, except to another disk.
        fs::hard_link(program, &own)
            .or_else(|_| fs::copy(program, &own).map(drop))
            .expect("a program");
        folders
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Path in the folder of models.
    fn model(&self, name: &str) -> PathBuf {
        self.path("home/.local/share/edge-lmm").join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path("bin/edge-lmm"));
        command.args(arguments).env_clear();
        command.env("PATH", "/usr/bin:/bin");
        command.env("HOME", self.path("home"));
        command.env("HF_HUB_DOWNLOAD_TIMEOUT", "1");
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("it starts")
    }

    fn pull_command(&self, hub: &Hub, arguments: &[&str]) -> Command {
        let mut command = self.command(&["pull"]);
        command.args(arguments).env("HF_ENDPOINT", &hub.endpoint);
        command.env("HF_TOKEN", TOKEN);
        command
    }

    fn pull(&self, hub: &Hub, arguments: &[&str]) -> Output {
        let mut command = self.pull_command(hub, arguments);
        command.output().expect("it starts")
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(arguments);
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}", said(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Expects one error line with these words, and no panic.
fn fails(output: &Output, words: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    let lines: Vec<&str> = said.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!(lines.len(), 1, "{said}");
    for word in words {
        assert!(lines[0].contains(word), "no {word:?} in {said}");
    }
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

fn tiny() -> Vec<(&'static str, Vec<u8>)> {
    let folder = repository("models/tests/data/qwen2vl-tiny");
    let names = [
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    let read = |name| (name, fs::read(folder.join(name)).expect("a file"));
    let mut files: Vec<_> = names.into_iter().map(read).collect();
    files.push(("README.md", b"# Tiny".to_vec()));
    files.push(("onnx/model.onnx", b"other".to_vec()));
    files
}

fn hub(files: Vec<(&'static str, Vec<u8>)>) -> Hub {
    Hub::new("tiny/Qwen2-VL-Tiny", TOKEN, files)
}

const SOURCE: &str = "hf:tiny/Qwen2-VL-Tiny";

#[test]
fn a_model_is_pulled_used_described_and_removed() {
    let folders = Folders::new();
    let server = hub(tiny());
    let pulled = folders.pull(&server, &[SOURCE, "--target", "raspberry-pi-5-4gb"]);
    assert_eq!(succeeds(&pulled), "qwen2-vl-tiny\n");

    // The store of large files never sees the token.
    let requests = server.requests();
    let (hub, store): (Vec<_>, Vec<_>) = requests.iter().partition(|r| r.path.contains("tiny/"));
    assert!(
        hub.iter()
            .all(|r| r.header("authorization") == "Bearer hf_secret")
    );
    assert_eq!(store.len(), 1, "{store:?}");
    assert!(store.iter().all(|r| r.header("authorization").is_empty()));
    assert!(
        !requests
            .iter()
            .any(|r| r.path.contains("README") || r.path.contains("onnx"))
    );
    // Nothing of the download is left.
    assert!(!folders.model(".downloads/qwen2-vl-tiny").exists());
    assert!(!folders.model("qwen2-vl-tiny.checkpoint").exists());

    let image = repository("models/demo/shapes.png");
    let image = image.to_str().expect("a path");
    let question = [
        "--image",
        image,
        "--prompt",
        "list the shapes.",
        "--max-tokens",
        "8",
        "--json",
    ];
    let answer = |more: &[&str]| {
        let arguments = [&["run", "qwen2-vl-tiny"], &question[..], more].concat();
        folders.json(&arguments)
    };
    let tokens = |answer: &Value| answer["visual_tokens"].as_u64().expect("a number");
    assert!(tokens(&answer(&[])) > 0);
    assert_eq!(tokens(&answer(&["--image-tokens", "4..4"])), 4);

    let listed = folders.json(&["list", "--json"]);
    assert_eq!(listed[0]["name"], "qwen2-vl-tiny");
    assert_eq!(listed[0]["source"], SOURCE);
    assert_eq!(listed[0]["target"], "raspberry-pi-5-4gb");
    let shown = folders.json(&["show", "qwen2-vl-tiny", "--json"]);
    assert_eq!(shown["description"]["commit"], "c1");
    assert_eq!(shown["record"]["model_type"], "qwen2_vl");
    let preset = &shown["description"]["preset"];
    assert_eq!(preset["context"], 8192);
    assert!(preset["image_tokens"][1].as_u64() > Some(4), "{preset}");
    let text = succeeds(&folders.run(&["show", "qwen2-vl-tiny"]));
    assert!(
        text.contains("preset for raspberry-pi-5-4gb") && text.contains("Qwen2-VL"),
        "{text}"
    );

    // The preset is a default for questions by name.
    let path = folders.model("qwen2-vl-tiny.json");
    let mut description: Value =
        serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON");
    description["preset"]["image_tokens"] = json!([4, 4]);
    fs::write(&path, description.to_string()).expect("written");
    assert_eq!(tokens(&answer(&[])), 4);
    assert!(tokens(&answer(&["--image-tokens", "16..64"])) > 4);

    fails(
        &folders.pull(&server, &[SOURCE]),
        &["\"qwen2-vl-tiny\" already", "--force", "--name"],
    );
    succeeds(&folders.pull(&server, &[SOURCE, "--force"]));
    assert_eq!(folders.json(&["list", "--json"])[0]["target"], Value::Null);
    fails(
        &folders.run(&["inspect", "qwen2-vl"]),
        &["similar: qwen2-vl-tiny"],
    );
    succeeds(&folders.run(&["rm", "qwen2-vl-tiny"]));
    assert_eq!(folders.json(&["list", "--json"]), json!([]));
    fails(
        &folders.run(&["run", "qwen2-vl-tiny", "--prompt", "a"]),
        &["no model"],
    );
}

#[test]
fn gguf_files_are_chosen_by_their_variant() {
    let folders = Folders::new();
    let folder = repository("models/tests/data/qwen2vl-tiny-gguf");
    let mut files = Vec::new();
    for name in ["qwen2vl-tiny-f16.gguf", "mmproj-qwen2vl-tiny-f16.gguf"] {
        files.push((name, fs::read(folder.join(name)).expect("a file")));
    }
    files.push(("qwen2vl-tiny-q4_0.gguf", b"GGUF".to_vec()));
    let server = hub(files);
    fails(
        &folders.pull(&server, &[SOURCE]),
        &[":VARIANT", "qwen2vl-tiny-f16.gguf"],
    );
    let source = format!("{SOURCE}:f16");
    let pulled = folders.pull(&server, &[&source, "--keep", "--name", "tiny"]);
    assert_eq!(succeeds(&pulled), "tiny\n");
    let kept = folders.model("tiny.checkpoint");
    assert!(kept.join("mmproj-qwen2vl-tiny-f16.gguf").exists());
    assert!(!kept.join("qwen2vl-tiny-q4_0.gguf").exists());
    let files = folders.json(&["show", "tiny", "--json"])["description"]["files"].clone();
    assert_eq!(files.as_array().map(Vec::len), Some(2));
    // A folder that is no model's name is of no use to rm, and a damaged checkpoint keeps the model.
    let damaged = format!("{SOURCE}:q4_0");
    let output = folders.pull(&server, &[&damaged, "--name", "tiny", "--force"]);
    fails(&output, &["edge-lmm-convert failed"]);
    assert_eq!(folders.json(&["list", "--json"])[0]["source"], source);
    succeeds(&folders.run(&["rm", "tiny"]));
    assert!(!kept.exists());
}

#[test]
fn without_a_converter_the_checkpoint_is_kept() {
    let folders = Folders::without_converter();
    let output = folders.pull(&hub(tiny()), &[SOURCE]);
    let kept = folders.model("qwen2-vl-tiny.checkpoint");
    let command = format!(
        "edge-lmm-convert {} --output {}",
        kept.display(),
        folders.model("qwen2-vl-tiny.bpk").display()
    );
    fails(
        &output,
        &["neither beside this program nor in PATH", &command],
    );
    let weights = &tiny()[3];
    assert_eq!(fs::read(kept.join(weights.0)).expect("a file"), weights.1);
    succeeds(&folders.run(&["rm", "qwen2-vl-tiny"]));
    assert!(!kept.exists());
}

/// Waits until a file has some bytes.
fn wait_for(path: &Path, child: &mut Child) {
    let start = Instant::now();
    while fs::metadata(path).map_or(0, |metadata| metadata.len()) == 0 {
        assert!(child.try_wait().expect("a state").is_none(), "it ended");
        assert!(start.elapsed() < Duration::from_secs(60), "no download");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_killed_pull_continues_and_excludes_others() {
    let folders = Folders::new();
    // The first reply about the weights stalls in the middle, the second one ends early.
    let replies = std::sync::atomic::AtomicUsize::new(0);
    let server = Hub::with(
        "tiny/Qwen2-VL-Tiny",
        TOKEN,
        tiny(),
        Box::new(move |request, mut reply| {
            if request.path != "/model.safetensors" {
                return reply;
            }
            let number = replies.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let length = reply.body.len();
            if number < 2 {
                reply = reply.header("Content-Length", length);
                reply.body.truncate(length / 2);
                reply.end = [End::Stall, End::Close][number];
            }
            reply
        }),
    );
    let mut command = folders.pull_command(&server, &[SOURCE]);
    command.env("HF_HUB_DOWNLOAD_TIMEOUT", "600");
    let mut child = command.stderr(Stdio::null()).spawn().expect("it starts");
    let part = folders.model(".downloads/qwen2-vl-tiny/c1/model.safetensors.part");
    wait_for(&part, &mut child);
    fails(
        &folders.pull(&server, &[SOURCE]),
        &["another edge-lmm pull"],
    );
    child.kill().expect("it runs");
    child.wait().expect("it ended");
    assert!(part.exists());
    succeeds(&folders.pull(&server, &[SOURCE]));
    let requests = server.requests();
    let weights = requests.iter().filter(|r| r.path == "/model.safetensors");
    let ranges: Vec<&str> = weights.map(|request| request.header("range")).collect();
    assert_eq!(ranges.len(), 3, "{ranges:?}");
    assert!(ranges[0].is_empty());
    assert!(
        ranges[1..].iter().all(|range| range.starts_with("bytes=")),
        "{ranges:?}"
    );
    // Small files that were complete are not requested again.
    let configs = requests
        .iter()
        .filter(|r| r.path.ends_with("c1/config.json"));
    assert_eq!(configs.count(), 1);
}

/// Changes the reply to requests whose path begins with a text.
fn faulty(start: &'static str, change: impl Fn(Reply) -> Reply + Send + Sync + 'static) -> Hub {
    Hub::with(
        "tiny/Qwen2-VL-Tiny",
        TOKEN,
        tiny(),
        Box::new(
            move |request, reply| match request.path.starts_with(start) {
                true => change(reply),
                false => reply,
            },
        ),
    )
}

/// Changes the list of files.
fn listing(change: impl Fn(&mut Value) + Send + Sync + 'static) -> Hub {
    faulty("/api/", move |mut reply| {
        let mut list = serde_json::from_slice(&reply.body).expect("JSON");
        change(&mut list);
        reply.body = list.to_string().into_bytes();
        reply
    })
}

/// Each fault gives one error line, and neither a model nor a complete file of the server.
#[test]
fn faults_of_a_server_are_one_clear_error() {
    let folders = Folders::new();
    let check = |server: &Hub, words: &[&str]| {
        fails(&folders.pull(server, &[SOURCE]), words);
        assert_eq!(folders.json(&["list", "--json"]), json!([]));
        assert!(
            !folders
                .model(".downloads/qwen2-vl-tiny/c1/model.safetensors")
                .exists()
        );
        // The next server's files do not depend on what this one sent.
        let _ = fs::remove_dir_all(folders.model(".downloads"));
    };
    let weights = "/model.safetensors";
    let status = |part, status| faulty(part, move |_| Reply::new(status, "no"));
    check(
        &status("/api/", "401 Unauthorized"),
        &["does not accept the token", "401"],
    );
    check(
        &status("/api/", "403 Forbidden"),
        &["accept the terms", "403"],
    );
    check(
        &status("/api/", "404 Not Found"),
        &["no such repository", "404"],
    );
    check(
        &status("/api/", "429 Too Many Requests"),
        &["limits requests", "429"],
    );
    check(
        &status(weights, "500 Internal Server Error"),
        &["model.safetensors", "500"],
    );
    check(
        &status(weights, "404 Not Found"),
        &["model.safetensors", "404"],
    );
    check(
        &faulty("/api/", |_| {
            Reply::new("200 OK", "<!doctype html><p>Log in")
        }),
        &["as JSON", "<!doctype html>"],
    );
    check(
        &faulty("/api/", |_| Reply {
            end: End::Endless,
            ..Reply::new("200 OK", "[")
        }),
        &["longer than"],
    );
    check(
        &faulty("/api/", |_| Reply {
            end: End::Stall,
            ..Reply::new("200 OK", "{")
        }),
        &["cannot list tiny/Qwen2-VL-Tiny", "time"],
    );
    check(
        &faulty(weights, |reply| Reply {
            end: End::Endless,
            ..reply
        }),
        &["sends more than the announced"],
    );
    check(
        &faulty(weights, |mut reply| {
            reply.body.truncate(1000);
            reply
        }),
        &["expected 1660712 bytes", "1000"],
    );
    check(
        &faulty(weights, |mut reply| {
            let length = reply.body.len();
            reply.body.truncate(length.min(1000));
            reply.header("Content-Length", length)
        }),
        &["model.safetensors", "the download stopped"],
    );
    check(
        &faulty(weights, |mut reply| {
            reply.body[1_000_000] ^= 1;
            reply
        }),
        &["SHA-256", "was changed"],
    );
    check(
        &faulty(weights, |reply| Reply {
            body: reply.body[..10].to_vec(),
            end: End::Drip,
            ..reply
        }),
        &["sends only", "run the command again"],
    );
    for address in ["file:///etc/passwd", "ftp://a/b", "gopher:"] {
        let server = faulty(
            "/tiny/Qwen2-VL-Tiny/resolve/c1/model.safetensors",
            move |_| Reply::new("302 Found", "").header("Location", address),
        );
        check(&server, &["model.safetensors"]);
    }
    check(
        &faulty("/tiny/Qwen2-VL-Tiny/resolve/c1/model.safetensors", |_| {
            Reply::new("302 Found", "")
        }),
        &["model.safetensors"],
    );
    check(
        &listing(|list| list["siblings"][0]["rfilename"] = json!("../../evil.json")),
        &["leads out of its folder"],
    );
    check(
        &listing(|list| list["siblings"][0]["rfilename"] = json!("/etc/cron.d/evil.json")),
        &["leads out of its folder"],
    );
    check(
        &listing(|list| list["siblings"][0]["rfilename"] = json!("a\0b.json")),
        &["leads out of its folder"],
    );
    check(
        &listing(|list| list["sha"] = json!("../../../c1")),
        &["invalid commit"],
    );
    check(
        &listing(|list| list["siblings"][3]["lfs"]["size"] = json!(1_u64 << 60)),
        &["free", "the download needs 1048576.0 TiB"],
    );
    check(
        &listing(|list| list["siblings"][3]["lfs"]["sha256"] = json!("../x")),
        &["invalid SHA-256"],
    );
    check(
        &listing(|list| list["siblings"][0]["size"] = json!(null)),
        &["no size", "chat_template.json"],
    );
}

#[test]
fn the_server_must_exist() {
    let folders = Folders::new();
    let mut command = folders.pull_command(&hub(tiny()), &[SOURCE]);
    let closed = command.env("HF_ENDPOINT", "http://127.0.0.1:1").output();
    fails(
        &closed.expect("it starts"),
        &["http://127.0.0.1:1", "refused"],
    );
    let mut command = folders.pull_command(&hub(tiny()), &[SOURCE]);
    let wrong = command.env_remove("HF_TOKEN").output();
    fails(&wrong.expect("it starts"), &["401", "HF_TOKEN"]);
}

#[test]
fn hostile_names_and_links_are_refused() {
    let folders = Folders::new();
    let server = hub(tiny());
    for name in ["../evil", "/tmp/evil", ".hidden", "a/b", ""] {
        let output = folders.pull(&server, &[SOURCE, "--name", name]);
        fails(&output, &["invalid name of a model"]);
        fails(&folders.run(&["rm", name]), &["invalid name of a model"]);
        fails(&folders.run(&["show", name]), &["invalid name of a model"]);
    }
    assert!(server.requests().is_empty());
    let outside = folders.path("outside");
    fs::create_dir_all(folders.model(".downloads/qwen2-vl-tiny")).expect("a folder");
    fs::create_dir(&outside).expect("a folder");
    let link = |name: &str| {
        let link = folders.model(name);
        std::os::unix::fs::symlink(&outside, &link).expect("a link");
        link
    };
    let folder = link(".downloads/qwen2-vl-tiny/c1");
    fails(&folders.pull(&server, &[SOURCE]), &["is a symbolic link"]);
    fs::remove_file(folder).expect("removed");
    fs::create_dir(folders.model(".downloads/qwen2-vl-tiny/c1")).expect("a folder");
    let part = link(".downloads/qwen2-vl-tiny/c1/config.json.part");
    fails(&folders.pull(&server, &[SOURCE]), &["not a regular file"]);
    fs::remove_file(part).expect("removed");
    link("linked.bpk");
    fails(&folders.run(&["rm", "linked"]), &["not a regular file"]);
    assert_eq!(fs::read_dir(&outside).expect("a folder").count(), 0);
}
