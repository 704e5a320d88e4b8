//! Fuzz targets for commands of workstations.

use std::io::{Cursor, Write};
use std::path::Path;

use edge_lmm_commands::fuzz;
use serde_json::json;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::data::scratch;
use crate::mutate::{Form, parts};
use crate::{Target, errors};

#[path = "../../../runtime/cli/tests/data/parquet.rs"]
mod parquet;

use parquet::{Column, parquet};

/// The hub's list of the files of a repository, and a variant.
pub const HUB_FILES: Target = Target {
    name: "hub_files",
    form: Form::Json(&[
        b"q4_0", b"mmproj", b".gguf", b"..", b"/", b"\\", b"\0", b"-of-",
    ]),
    seeds: || {
        let sha = "a".repeat(64);
        let file = |name: &str| json!({ "rfilename": name, "size": 7 });
        let large = |name: &str| json!({ "rfilename": name, "size": 130, "lfs": { "size": 900, "sha256": sha } });
        let folder = json!({ "sha": "0123abc", "siblings": [file("config.json"), file("README.md"),
            large("model.safetensors"), file("onnx/model.onnx"), file("tokenizer.json")] });
        let gguf = json!({ "sha": "0123abc", "siblings": [large("m-Q4_0.gguf"), large("m-q8_0.gguf"),
            large("mmproj-m-f16.gguf"), file("chat_template.jinja")] });
        [format!("{folder}"), format!("{gguf}\0q4_0")]
            .map(String::into_bytes)
            .into()
    },
    run: |input| {
        let [listing, variant] = parts(input).map(String::from_utf8_lossy);
        let variant = Some(&*variant).filter(|variant| !variant.is_empty());
        match fuzz::checkpoint_files(&listing, variant) {
            Err(error) => errors::check(&format!("{error:#}")),
            Ok(names) => {
                assert!(!names.is_empty());
                for name in names {
                    let is_file = !name.contains(['/', '\\', ':', '\0']) && name != "..";
                    assert!(is_file, "{name:?} is not at the top of the repository");
                }
            }
        }
    },
};

/// A file of a published dataset, after two bytes that choose the dataset and the kind of file.
pub const DATASET: Target = Target {
    name: "dataset",
    form: Form::Words(&[
        b"PAR1",
        b"PK\x03\x04",
        b"PK\x01\x02",
        b"PK\x05\x06",
        b"question",
        b"\"answers\": [\"a\"]",
        b"\"image_id\": \"../a\"",
        b"data:image/png;base64,",
        b"\t",
        b",",
        b"\"",
        b"\n",
        b"[",
        b"{",
        b"null",
        b"\xff\xff\xff\xff",
        b"\x15\x80\x80\x80\x80\x08",
    ]),
    seeds,
    run: |input| {
        let [dataset, kind, content @ ..] = input else {
            return;
        };
        let (name, split) = DATASETS[usize::from(*dataset) % DATASETS.len()];
        let folder = scratch();
        let source = folder.path().join("source");
        std::fs::create_dir(&source).expect("a folder");
        write_source(&source, split, *kind, content);
        if let Err(error) = fuzz::prepare_dataset(name, &source, &folder.path().join("out")) {
            errors::check(&format!("{error:#}"));
        }
        let mut outside = folder.path().read_dir().expect("a folder");
        let is_expected = |entry: std::io::Result<std::fs::DirEntry>| {
            let name = entry.expect("an entry").file_name();
            name == "source" || name == "out"
        };
        assert!(outside.all(is_expected), "a file is outside of its folder");
    },
};

/// Makes the guard of the Parquet reader install its hook.
pub fn install_guard() {
    let folder = scratch();
    let (source, out) = (folder.path().join("source"), folder.path().join("out"));
    std::fs::create_dir(&source).expect("a folder");
    write_source(&source, "validation", 0, b"");
    let _ = fuzz::prepare_dataset("textvqa", &source, &out);
}

/// Datasets, and words for the names of their tables.
const DATASETS: [(&str, &str); 6] = [
    ("textvqa", "validation"),
    ("docvqa", "validation"),
    ("mmbench", "dev"),
    ("audiocaps", "test"),
    ("activitynet_qa", "test"),
    ("video_mme", "test"),
];

/// Writes a table, or an archive beside a valid table that names its members.
fn write_source(source: &Path, split: &str, kind: u8, content: &[u8]) {
    let write = |name: &str, content: &[u8]| {
        std::fs::write(source.join(name), content).expect("a file");
    };
    match kind % 5 {
        0 => write(&format!("{split}.parquet"), content),
        1 => write(&format!("{split}.json"), content),
        2 => write(&format!("{split}.csv"), content),
        3 => write(&format!("{split}.tsv"), content),
        _ => {
            write(&format!("{split}.json"), question().as_bytes());
            write("media.zip", content);
        }
    }
}

/// A table that TextVQA and Video-MME can have.
fn question() -> String {
    json!({ "data": [{ "question_id": 1, "question": "what?", "image_id": "a", "answers": ["b"],
        "videoID": "abcdefghijk", "video_id": "1", "options": ["A. x", "B. y"], "answer": "A" }] })
    .to_string()
}

fn seeds() -> Vec<Vec<u8>> {
    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x02\0\0\0\x90wS\xde\0\0\0\x0cIDATx\x9cc\xf8\xcf\xc0\0\0\x03\x01\x01\0\xc9\xfe\x92\xef\0\0\0\0IEND\xaeB`\x82";
    let column = |name, texts: &[&str]| (name, Column::texts(texts));
    let textvqa = parquet(&[vec![
        ("question_id", Column::integers(&[1, 2])),
        column("question", &["what?", "where?"]),
        column("image_id", &["a", "b"]),
        ("answers", Column::lists(&[&["x", "y"], &["z"]])),
        ("image", Column::media(&[PNG, PNG])),
    ]]);
    let docvqa = json!({ "data": [{ "questionId": 3, "question": "what?", "answers": ["b"],
        "image": "documents/a.png", "question_types": ["form"], "docId": 5 }] });
    let mmbench = "index\tquestion\thint\tA\tB\tanswer\tcategory\timage\n\
                   1\twhat?\tnan\tx\ty\tA\tc\tiVBORw0KGgo=\n2\twhere?\th\tx\ty\tB\tc\t1\n";
    let audiocaps = "audiocap_id,youtube_id,start_time,caption\n1,abcdefghijk,30,a bell\n";
    let activitynet = json!([{ "video_name": "abcdefghijk", "question_id": "v_1_2", "question": "what",
        "answer": "x", "type": 3 }]);
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default();
    archive
        .start_file("images/a.png", options)
        .expect("a member");
    archive.write_all(PNG).expect("written");
    let archive = archive.finish().expect("an archive").into_inner();
    let seed = |dataset: u8, kind: u8, content: &[u8]| [&[dataset, kind][..], content].concat();
    vec![
        seed(0, 0, &textvqa),
        seed(0, 1, question().as_bytes()),
        seed(1, 1, docvqa.to_string().as_bytes()),
        seed(2, 3, mmbench.as_bytes()),
        seed(3, 2, audiocaps.as_bytes()),
        seed(4, 1, activitynet.to_string().as_bytes()),
        seed(5, 1, question().as_bytes()),
        seed(0, 4, &archive),
    ]
}
