//! `edge-lmm data prepare`: datasets in their published layouts become question sets.

#![cfg(feature = "data")]

mod data {
    pub mod parquet;
}
mod hub;
#[path = "../../engine/tests/media/script.rs"]
mod script;

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use data::parquet::{Column, parquet};
use data_encoding::BASE64;
use image::{ImageFormat, Rgb, RgbImage};
use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const MP4: &[u8] = include_bytes!("../../engine/tests/media/data/videos/h264_baseline.mp4");

/// A folder with a source and an output.
struct Folders(TempDir);

impl Folders {
    fn new() -> Self {
        let folders = Self(tempfile::tempdir().expect("a folder"));
        fs::create_dir(folders.source()).expect("a folder");
        folders
    }

    fn source(&self) -> PathBuf {
        self.0.path().join("source")
    }

    fn out(&self) -> PathBuf {
        self.0.path().join("out")
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.source().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, content).expect("a file");
    }

    fn zip(&self, name: &str, members: &[(&str, &[u8])]) {
        let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (member, content) in members {
            let options = zip::write::SimpleFileOptions::default();
            writer.start_file(*member, options).expect("a member");
            writer.write_all(content).expect("written");
        }
        let bytes = writer.finish().expect("an archive").into_inner();
        self.write(name, bytes);
    }

    fn command(&self, dataset: &str, options: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edge-lmm"));
        command.args(["data", "prepare", "--dataset", dataset, "--out"]);
        command.arg(self.out()).args(options);
        command
    }

    fn prepare(&self, dataset: &str, options: &[&str]) -> Output {
        let mut command = self.command(dataset, options);
        let output = command.arg("--source").arg(self.source()).output();
        output.expect("the command starts")
    }

    /// Prepares a dataset and returns the manifest and what the command said.
    fn manifest(&self, dataset: &str, options: &[&str]) -> (Vec<Vec<String>>, String) {
        let output = self.prepare(dataset, options);
        let said = said(&output);
        assert!(output.status.success(), "{said}");
        (self.rows("manifest.csv"), said)
    }

    fn rows(&self, name: &str) -> Vec<Vec<String>> {
        let reader = csv::Reader::from_path(self.out().join(name));
        let records = reader.expect("a table").into_records();
        let rows = records.map(|record| record.expect("a row"));
        rows.map(|row| row.iter().map(str::to_owned).collect())
            .collect()
    }

    /// Expects an error whose line has all these words, and no panic.
    fn error(&self, dataset: &str, options: &[&str], words: &[&str]) {
        expect_error(&self.prepare(dataset, options), words);
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn expect_error(output: &Output, words: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    let lines: Vec<&str> = said.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!(lines.len(), 1, "{said}");
    for word in words {
        assert!(lines[0].contains(word), "no {word:?} in {said}");
    }
}

fn png(gray: u8) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let image = RgbImage::from_pixel(8, 8, Rgb([gray; 3]));
    image.write_to(&mut bytes, ImageFormat::Png).expect("PNG");
    bytes.into_inner()
}

fn wav() -> Vec<u8> {
    let mut wav = b"RIFF\x44\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0".to_vec();
    wav.extend(16_000_u32.to_le_bytes());
    wav.extend(32_000_u32.to_le_bytes());
    wav.extend(b"\x02\0\x10\0data\x20\0\0\0");
    wav.extend([1; 32]);
    wav
}

/// Columns of the manifest.
const ID: usize = 0;
const MEDIUM: usize = 1;
const QUESTION: usize = 2;
const ANSWER: usize = 3;
const TASK: usize = 4;
const ANSWERS: usize = 5;
const CHOICES: usize = 6;
const METRIC: usize = 7;
const SHA256: usize = 8;

fn column(rows: &[Vec<String>], column: usize) -> Vec<&str> {
    rows.iter().map(|row| row[column].as_str()).collect()
}

fn list(cell: &str) -> Vec<String> {
    serde_json::from_str(cell).expect("a JSON list")
}

/// Three questions about two videos.
fn video_mme() -> Vec<u8> {
    let texts = |name, texts: [&str; 3]| (name, Column::texts(&texts));
    let option = |i| ["A. Apples.", "B. Two: pears.", "C. Plums.", "D. None."][i];
    let options = [0, 1, 2, 3].map(option).to_vec();
    parquet(&[vec![
        texts("video_id", ["001", "001", "002"]),
        texts("duration", ["short", "short", "long"]),
        texts("domain", ["Knowledge", "Knowledge", "Sports Competition"]),
        texts("sub_category", ["Geography", "Geography", "Football"]),
        texts("url", ["https://www.youtube.com/watch?v=fFjv93ACGo8"; 3]),
        texts("videoID", ["fFjv93ACGo8", "fFjv93ACGo8", "-Hh3tBkX1_s"]),
        texts("question_id", ["001-1", "001-2", "002-1"]),
        texts(
            "task_type",
            ["Counting Problem", "OCR Problems", "OCR Problems"],
        ),
        texts("question", ["How many?", "Which text?", "Which score?"]),
        ("options", Column::lists(&[&options, &options, &options])),
        texts("answer", ["B", "A", "D"]),
    ]])
}

#[test]
fn video_mme_is_read_from_its_table_and_archives() {
    let folders = Folders::new();
    folders.write("videomme/test-00000-of-00001.parquet", video_mme());
    folders.zip("subtitle.zip", &[("subtitle/fFjv93ACGo8.srt", b"1")]);
    folders.zip("videos_chunked_01.zip", &[("data/fFjv93ACGo8.mp4", MP4)]);
    folders.zip("videos_chunked_02.zip", &[("data/other.mp4", MP4)]);
    let (rows, said) = folders.manifest("video_mme", &[]);
    assert_eq!(column(&rows, ID), ["001-1", "001-2"]);
    assert_eq!(column(&rows, ANSWER), ["B", "A"]);
    assert_eq!(column(&rows, TASK), ["Counting Problem", "OCR Problems"]);
    assert_eq!(column(&rows, METRIC), ["choice"; 2]);
    assert_eq!(list(&rows[0][CHOICES])[1], "Two: pears.");
    assert!(rows[0][QUESTION].starts_with("How many?\nA. Apples.\nB. Two: pears.\n"));
    assert_eq!(rows[0][MEDIUM], rows[1][MEDIUM]);
    let video = fs::read(folders.out().join(&rows[0][MEDIUM])).expect("a video");
    assert_eq!(video, MP4);
    let digest = data_encoding::HEXLOWER.encode(&Sha256::digest(MP4));
    assert_eq!(rows[0][SHA256], digest);
    // The other video is missing, which is no failure.
    assert!(
        said.contains("2 questions") && said.contains("1 media are missing"),
        "{said}"
    );
    let missing = folders.rows("missing.csv");
    assert_eq!(
        missing,
        [["002-1", "-Hh3tBkX1_s", "not found in the source"]]
    );
    // Once it is there, it is extracted, and the first one is not extracted again.
    folders.write("-Hh3tBkX1_s.mp4", MP4);
    let (rows, said) = folders.manifest("video_mme", &["--with-audio"]);
    assert_eq!(rows.len(), 3);
    assert!(said.contains("1 media were unchanged"), "{said}");
    // The clips have no sound.
    let missing = folders.rows("missing.csv");
    assert_eq!(missing.len(), 3);
    assert!(missing[0][2].contains("no sound track"), "{missing:?}");
    assert!(!folders.out().join("audio.csv").exists());
}

#[test]
fn only_present_clips_are_chosen() {
    let folders = Folders::new();
    folders.write("test.parquet", video_mme());
    folders.zip("videos_chunked_01.zip", &[("data/-Hh3tBkX1_s.mp4", MP4)]);
    let (rows, _) = folders.manifest("video_mme", &["--max-samples", "1", "--present-only"]);
    assert_eq!(column(&rows, ID), ["002-1"]);
    folders.error("video_mme", &["--max-samples", "1"], &["no medium"]);
}

#[test]
fn activitynet_qa_joins_questions_and_answers() {
    let folders = Folders::new();
    let question = |id: &str, video: &str| json!({"question": "is the man tall", "video_name": video, "question_id": id});
    let answer = |id: &str, answer: &str, kind: u8| json!({"answer": answer, "type": kind, "question_id": id});
    let questions = json!([
        question("v1_1", "1QIUV7WYKXg"),
        question("v1_2", "1QIUV7WYKXg"),
        question("v1_3", "1QIUV7WYKXg")
    ]);
    let answers = json!([answer("v1_2", "red", 4), answer("v1_1", "yes", 3)]);
    folders.write("dataset/test_q.json", questions.to_string());
    folders.write("dataset/test_a.json", answers.to_string());
    folders.write("dataset/train_q.json", "[]");
    folders.write("videos/v_1QIUV7WYKXg.mp4", MP4);
    let (rows, _) = folders.manifest("activitynet_qa", &[]);
    assert_eq!(column(&rows, ID), ["v1_1", "v1_2"]);
    assert_eq!(column(&rows, ANSWER), ["yes", "red"]);
    assert_eq!(column(&rows, TASK), ["yes_no", "color"]);
    assert_eq!(column(&rows, METRIC), ["activitynet_qa"; 2]);
    assert!(rows[0][QUESTION].starts_with("is the man tall?\n"));
}

#[test]
fn audiocaps_has_several_captions_per_clip() {
    let folders = Folders::new();
    folders.write(
        "test.csv",
        "audiocap_id,youtube_id,start_time,caption\n\
         103549,7fmOlUlwoNg,20,\"Rain, falling\"\n\
         103548,7fmOlUlwoNg,20,Constant rattling\n\
         103541,6BJ455B1aAs,0,A rocket flies\n",
    );
    folders.write("audio/7fmOlUlwoNg.wav", wav());
    folders.write("audio/103541.wav", &wav()[..30]);
    let (rows, said) = folders.manifest("audiocaps", &[]);
    assert_eq!(column(&rows, ID), ["7fmOlUlwoNg_20"]);
    assert_eq!(
        list(&rows[0][ANSWERS]),
        ["Rain, falling", "Constant rattling"]
    );
    assert_eq!(rows[0][METRIC], "rouge_l");
    // The other sound is cut off.
    assert!(said.contains("6BJ455B1aAs_0"), "{said}");
}

#[test]
fn audiocaps_tables_may_contain_the_sounds() {
    let folders = Folders::new();
    let table = parquet(&[vec![
        ("audiocap_id", Column::integers(&[1, 2])),
        ("youtube_id", Column::texts(&["7fmOlUlwoNg", "7fmOlUlwoNg"])),
        ("start_time", Column::integers(&[20, 20])),
        ("caption", Column::texts(&["rain", "water"])),
        ("audio", Column::media(&[&wav(), &wav()])),
    ]]);
    folders.write("data/test-00000-of-00001.parquet", table);
    let (rows, _) = folders.manifest("audiocaps", &[]);
    assert_eq!(list(&rows[0][ANSWERS]), ["rain", "water"]);
    assert!(rows[0][MEDIUM].ends_with(".wav"));
}

#[test]
fn mmbench_images_may_refer_to_others() {
    let folders = Folders::new();
    let header = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\n";
    let image = BASE64.encode(&png(1));
    let rows = format!(
        "{header}0\tWhat?\tLook.\tcat\tdog\t\t\tA\tocr\t{image}\n\
         1\tWhere?\tnan\there\tthere\tnowhere\tnan\tC\tplace\t0\n\
         2\tWhen?\tnan\tnow\tthen\t\t\tB\tplace\tno base64!\n\
         3\tWho?\tnan\tme\tyou\t\t\tB\tplace\t77\n\
         4\tWhy?\tnan\tyes\tno\t\t\t\tplace\t{image}\n"
    );
    folders.write("MMBench_DEV_EN.tsv", rows);
    folders.write("MMBench_DEV_CN.tsv", header);
    let (rows, _) = folders.manifest("mmbench", &[]);
    assert_eq!(column(&rows, ID), ["0", "1"]);
    assert_eq!(list(&rows[1][CHOICES]), ["here", "there", "nowhere"]);
    assert!(rows[0][QUESTION].starts_with("Look.\nWhat?\nA. cat\nB. dog\nAnswer"));
    assert_eq!(rows[0][SHA256], rows[1][SHA256]);
    let missing = folders.rows("missing.csv");
    assert!(missing[0][2].contains("invalid base64"), "{missing:?}");
    assert!(missing[1][2].contains("row 77"), "{missing:?}");
}

/// A table of DocVQA with two row groups of two questions each.
fn docvqa(images: [&[u8]; 4]) -> Vec<u8> {
    let group = |first: usize| {
        let ids = ["49153", "24580", "57349", "28678"];
        let pages = ["1", "1", "2", "5"];
        let rows = first..first + 2;
        vec![
            ("questionId", Column::texts(&ids[rows.clone()])),
            ("question", Column::texts(&["What is the total?", "Who?"])),
            (
                "question_types",
                Column::lists(&[&["form", "table"], &["layout"]]),
            ),
            ("image", Column::media(&images[rows.clone()])),
            ("docId", Column::integers(&[4720, 4721])),
            ("ucsf_document_id", Column::texts(&["pybv0228"; 2])),
            ("ucsf_document_page_no", Column::texts(&pages[rows])),
            ("answers", Column::lists(&[&["$ 1,000", "1000"], &["ITC"]])),
            ("data_split", Column::texts(&["val", "val"])),
        ]
    };
    parquet(&[group(0), group(2)])
}

#[test]
fn docvqa_images_come_out_of_the_table() {
    let folders = Folders::new();
    let images = [png(1), png(1), png(2), png(3)];
    let table = docvqa([&images[0], &images[1], &images[2], &images[3]]);
    folders.write("DocVQA/validation-00000-of-00001.parquet", table);
    let other = docvqa([&images[3]; 4]);
    folders.write("InfographicVQA/validation-00000-of-00001.parquet", other);
    let (rows, _) = folders.manifest("docvqa", &[]);
    assert_eq!(column(&rows, ID), ["49153", "24580", "57349", "28678"]);
    assert_eq!(column(&rows, TASK), ["form", "layout", "form", "layout"]);
    assert_eq!(list(&rows[0][ANSWERS]), ["$ 1,000", "1000"]);
    assert_eq!(rows[0][METRIC], "anls");
    // Questions about one page share its image.
    assert_eq!(rows[0][MEDIUM], rows[1][MEDIUM]);
    for (row, image) in rows.iter().zip(&images) {
        let medium = folders.out().join(&row[MEDIUM]);
        assert_eq!(fs::read(medium).expect("an image"), *image);
    }
}

#[test]
fn a_second_run_extracts_only_what_changed() {
    let folders = Folders::new();
    let images = [png(1), png(1), png(2), png(3)];
    folders.write("val.parquet", docvqa(images.each_ref().map(Vec::as_slice)));
    let (rows, said) = folders.manifest("docvqa", &[]);
    assert!(said.contains("0 media were unchanged"), "{said}");
    let first = folders.out().join(&rows[0][MEDIUM]);
    let last = folders.out().join(&rows[3][MEDIUM]);
    fs::write(&first, "damaged").expect("written");
    let written = last
        .metadata()
        .and_then(|file| file.modified())
        .expect("a time");
    let before = fs::read(folders.out().join("manifest.csv")).expect("a manifest");
    let (_, said) = folders.manifest("docvqa", &[]);
    assert!(said.contains("2 media were unchanged"), "{said}");
    assert_eq!(fs::read(&first).expect("an image"), images[0]);
    let again = last
        .metadata()
        .and_then(|file| file.modified())
        .expect("a time");
    assert_eq!(again, written);
    let after = fs::read(folders.out().join("manifest.csv")).expect("a manifest");
    assert_eq!(after, before);
    let sums = folders.out().join("docvqa_validation/checksums.sha256");
    let sums = fs::read_to_string(sums).expect("checksums");
    assert_eq!(sums.lines().count(), 3);
    // Another split may use the same names for other images.
    let others = [&images[3]; 4].map(Vec::as_slice);
    folders.write("train.parquet", docvqa(others));
    let (rows, said) = folders.manifest("docvqa", &["--split", "train"]);
    assert!(said.contains("0 media were unchanged"), "{said}");
    let medium = fs::read(folders.out().join(&rows[0][MEDIUM]));
    assert_eq!(medium.expect("an image"), images[3]);
}

#[test]
fn docvqa_json_names_its_images() {
    let folders = Folders::new();
    let row = |id: u32, image: &str| {
        json!({"questionId": id, "question": "What?", "image": image, "docId": 1,
            "ucsf_document_id": "xnbl0037", "ucsf_document_page_no": "1",
            "answers": ["one", "1"], "data_split": "val"})
    };
    let data = |image| {
        json!({"dataset_name": "SP-DocVQA", "dataset_split": "val",
        "data": [row(5, "documents/xnbl0037_1.png"), row(6, image)]})
    };
    folders.write(
        "val_v1.0_withQT.json",
        data("documents/none.png").to_string(),
    );
    folders.write("spdocvqa_images/xnbl0037_1.png", png(4));
    let (rows, _) = folders.manifest("docvqa", &[]);
    assert_eq!(column(&rows, ID), ["5"]);
    assert!(folders.out().join(&rows[0][MEDIUM]).exists());
    folders.write("val_v1.0_withQT.json", data("../../secret.png").to_string());
    folders.error(
        "docvqa",
        &[],
        &["row 1", "secret.png", "leads out of its folder"],
    );
}

#[test]
fn textvqa_keeps_ten_answers() {
    let folders = Folders::new();
    let mut answers = vec!["nokia"; 6];
    answers.extend(["phone", "the nokia", "nokia 3310", "toyota"]);
    let row = json!({"question": "what brand is it?", "image_id": "003a8ae2ef43b901",
        "answers": answers, "question_id": 34602, "set_name": "val", "image_width": 1024});
    let json = json!({"dataset_type": "val", "dataset_name": "textvqa", "data": [row]});
    folders.write("TextVQA_0.5.1_val.json", json.to_string());
    folders.zip(
        "train_val_images.zip",
        &[("train_images/003a8ae2ef43b901.jpg", &png(7))],
    );
    let (rows, _) = folders.manifest("textvqa", &[]);
    assert_eq!(rows[0][ANSWER], "nokia");
    assert_eq!(list(&rows[0][ANSWERS]).len(), 10);
    assert_eq!(rows[0][METRIC], "vqa");
}

#[test]
fn textvqa_tables_contain_the_images() {
    let folders = Folders::new();
    let table = |answers: &[&str]| {
        parquet(&[vec![
            ("image_id", Column::texts(&["003a8ae2ef43b901"])),
            ("question_id", Column::integers(&[34602])),
            ("question", Column::texts(&["what brand is it?"])),
            ("image", Column::media(&[&png(9)])),
            ("answers", Column::lists(&[answers])),
        ]])
    };
    folders.write("data/validation-00000-of-00001.parquet", table(&["a"; 10]));
    // The answers of this split are not published.
    folders.write("data/test-00000-of-00001.parquet", table(&[]));
    let (rows, _) = folders.manifest("textvqa", &[]);
    assert_eq!(rows[0][ANSWER], "a");
    folders.error(
        "textvqa",
        &["--split", "test"],
        &["no question with a published answer"],
    );
    folders.error(
        "textvqa",
        &["--split", "dev"],
        &["dev", "validation-00000", "--split"],
    );
}

#[test]
fn questions_are_chosen_by_number_and_seed() {
    let folders = Folders::new();
    let row = |id: usize| {
        json!({"questionId": id, "question": "What?", "image": "a.png",
        "question_types": [if id < 90 { "form" } else { "table" }], "answers": ["x"]})
    };
    let rows: Vec<_> = (0..100).map(row).collect();
    folders.write("val.json", json!(rows).to_string());
    folders.write("a.png", png(1));
    let ids = |options: &[&str]| -> Vec<usize> {
        let (rows, _) = folders.manifest("docvqa", options);
        column(&rows, ID)
            .iter()
            .map(|id| id.parse().expect("a number"))
            .collect()
    };
    assert_eq!(ids(&["--max-samples", "4"]), [0, 1, 90, 91]);
    let seeded = ids(&["--max-samples", "4", "--seed", "5"]);
    assert_ne!(seeded, [0, 1, 90, 91]);
    assert_eq!(seeded.iter().filter(|&&id| id >= 90).count(), 2);
    assert_eq!(ids(&["--max-samples", "4", "--seed", "5"]), seeded);
}

#[test]
fn archives_with_names_outside_are_refused() {
    for member in [
        "../fFjv93ACGo8.mp4",
        "/tmp/fFjv93ACGo8.mp4",
        "a\\..\\fFjv93ACGo8.mp4",
    ] {
        let folders = Folders::new();
        folders.write("test.parquet", video_mme());
        folders.zip("videos_chunked_01.zip", &[(member, MP4)]);
        folders.error(
            "video_mme",
            &[],
            &["videos_chunked_01.zip", "leads out of its folder"],
        );
        assert!(!folders.0.path().join("fFjv93ACGo8.mp4").exists());
        assert!(!folders.out().join("fFjv93ACGo8.mp4").exists());
    }
}

#[test]
fn names_with_separators_are_refused() {
    let folders = Folders::new();
    let rows = json!([{"question": "what", "video_name": "../../etc/passwd", "question_id": "1",
        "answer": "a", "type": 0}]);
    folders.write("test.json", rows.to_string());
    folders.error("activitynet_qa", &[], &["test.json, row 0", "etc/passwd"]);
}

/// Every cut and many changed bytes give an error or a question set, never a panic.
#[test]
fn damaged_tables_are_reported() {
    let table = docvqa([&png(1), &png(2), &png(3), &png(4)]);
    let folders = Folders::new();
    for length in [0, 3, 11, table.len() / 2, table.len() - 9, table.len() - 1] {
        folders.write("val.parquet", &table[..length]);
        folders.error("docvqa", &[], &["cannot read", "val.parquet"]);
    }
    for at in (0..table.len()).step_by(table.len() / 24) {
        let mut damaged = table.clone();
        damaged[at] ^= 0x5a;
        folders.write("val.parquet", &damaged);
        let output = folders.prepare("docvqa", &[]);
        let said = said(&output);
        assert!(
            matches!(output.status.code(), Some(0 | 1)),
            "byte {at}: {said}"
        );
        assert!(!said.contains("panicked"), "byte {at}: {said}");
    }
    folders.write("val.parquet", b"PAR1");
    fs::remove_file(folders.source().join("val.parquet")).expect("removed");
    for (name, content, word) in [
        ("val.json", &b"[{"[..], "EOF"),
        ("val.json", b"{\"data\": 3}", "list of questions"),
        ("val.json", b"[3]", "expected an object"),
        (
            "val.json",
            b"[{\"questionId\": 1, \"answers\": [\"x\"]}]",
            "column question",
        ),
    ] {
        folders.write(name, content);
        folders.error("docvqa", &[], &[word]);
    }
    fs::remove_file(folders.source().join("val.json")).expect("removed");
    folders.write("dev.tsv", b"index\tquestion\n1\n");
    folders.error("mmbench", &[], &["dev.tsv"]);
    folders.write("dev.tsv", b"index\tanswer\n\xff\tA\n");
    folders.error("mmbench", &[], &["UTF-8"]);
}

#[test]
fn huge_and_damaged_images_are_listed() {
    let folders = Folders::new();
    // A header that announces 100000 x 100000 pixels.
    let mut huge = png(1);
    huge[16..24].copy_from_slice(&[0, 1, 0x86, 0xa0, 0, 1, 0x86, 0xa0]);
    let cut = png(2);
    let cut = &cut[..40];
    folders.write("val.parquet", docvqa([&png(1), &png(1), &huge, cut]));
    let (rows, said) = folders.manifest("docvqa", &[]);
    assert_eq!(rows.len(), 2);
    assert!(said.contains("2 media are missing"), "{said}");
    let left: Vec<_> = fs::read_dir(folders.out().join("docvqa_validation"))
        .expect("a folder")
        .collect();
    // One image and the checksums.
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn options_that_do_not_fit_are_explained() {
    let folders = Folders::new();
    folders.error("docvqa", &["--with-audio"], &["--with-audio", "videos"]);
    let output = folders.command("docvqa", &[]).output().expect("it starts");
    expect_error(&output, &["--source", "hf:lmms-lab/DocVQA"]);
    folders.error("synthetic", &[], &["generated", "--source"]);
    folders.error("docvqa", &[], &["no table"]);
    let mut within = folders.command("docvqa", &["--source"]);
    let output = within.arg(folders.0.path()).output().expect("it starts");
    // The output does not exist yet, but lies within the source.
    expect_error(&output, &["within --source"]);
}

#[cfg(unix)]
#[test]
fn missing_clips_are_downloaded_by_ytdlp() {
    let folders = Folders::new();
    folders.write("test.parquet", video_mme());
    let programs = folders.0.path().join("programs");
    fs::create_dir(&programs).expect("a folder");
    let prepare = || {
        let mut command = folders.command("video_mme", &["--ytdlp", "--source"]);
        command.arg(folders.source()).env("PATH", &programs);
        command.output().expect("it starts")
    };
    expect_error(&prepare(), &["yt-dlp", "not installed"]);
    // Stands for the program: it gives the first video and fails for the other.
    let video = folders.0.path().join("clip.mp4");
    fs::write(&video, MP4).expect("a file");
    let script = format!(
        "#!/bin/sh\nfor last; do :; done\n\
         [ \"$1\" = --version ] && exit 0\n\
         while [ \"$1\" != --output ]; do shift; done\n\
         case $last in\n\
         *=fFjv93ACGo8) /bin/cp {} \"${{2%clip*}}clip.mp4\" ;;\n\
         *) echo 'ERROR: Video unavailable' >&2; exit 1 ;;\n\
         esac\n",
        video.display()
    );
    let program = programs.join("yt-dlp");
    script::write(&program, &script);
    let output = prepare();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(
        column(&folders.rows("manifest.csv"), ID),
        ["001-1", "001-2"]
    );
    let missing = folders.rows("missing.csv");
    assert!(missing[0][2].contains("Video unavailable"), "{missing:?}");
    assert!(!folders.out().join(".download").exists());
}

#[test]
fn repositories_are_downloaded() {
    let folders = Folders::new();
    let table = docvqa([&png(1), &png(2), &png(3), &png(4)]);
    let files = vec![
        ("DocVQA/validation-00000-of-00001.parquet", table),
        ("README.md", b"text".to_vec()),
    ];
    let prepare = |endpoint: &str, name: &str| {
        let mut command = folders.command("docvqa", &["--source", name]);
        command
            .env("HF_ENDPOINT", endpoint)
            .env("HF_TOKEN", "hf_secret");
        command.env("XDG_CACHE_HOME", folders.0.path().join("cache"));
        command.output().expect("it starts")
    };
    let server = hub::Hub::new("datasets/lmms-lab/DocVQA", "hf_secret", files);
    let output = prepare(&server.endpoint, "hf:lmms-lab/DocVQA");
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(folders.rows("manifest.csv").len(), 4);
    expect_error(
        &prepare(&server.endpoint, "hf:lmms-lab/None"),
        &["lmms-lab/None", "no such repository", "404"],
    );
    let hostile = hub::Hub::new(
        "datasets/a/b",
        "hf_secret",
        vec![("../../x.parquet", Vec::new())],
    );
    expect_error(
        &prepare(&hostile.endpoint, "hf:a/b"),
        &["leads out of its folder"],
    );
}

fn eval(manifest: &Path, options: &[&str]) -> serde_json::Value {
    let record = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo/qwen2vl-tiny.bpk");
    let output = Command::new(env!("CARGO_BIN_EXE_edge-lmm"))
        .arg("eval")
        .arg(record)
        .args([
            "--skip-unsupported",
            "--max-tokens",
            "16",
            "--json",
            "--manifest",
        ])
        .arg(manifest)
        .args(options)
        .output()
        .expect("the command starts");
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The small model of the demo answers most generated questions, and metrics change the score.
#[test]
fn the_demo_model_knows_the_generated_questions() {
    let folders = Folders::new();
    let generate = |seed| {
        let mut command = folders.command("synthetic", &["--max-samples", "80", "--seed", seed]);
        let output = command.output().expect("it starts");
        assert!(output.status.success(), "{}", said(&output));
        fs::read(folders.out().join("manifest.csv")).expect("a manifest")
    };
    let first = generate("1");
    assert_ne!(generate("2"), first);
    assert_eq!(generate("1"), first);
    let manifest = folders.out().join("manifest.csv");
    let report = eval(&manifest, &[]);
    let questions = report["questions"].as_u64().expect("a number");
    // Two of eight tasks are about sounds, which the model does not support.
    assert_eq!((questions, report["skipped"].as_u64()), (60, Some(20)));
    assert!(report["right"].is_u64(), "{report}");
    let accuracy = report["accuracy"].as_f64().expect("a number");
    assert!(accuracy > 0.75, "{}", report["tasks"]);
    let similar = eval(&manifest, &["--metric", "anls"]);
    assert!(similar["accuracy"].as_f64().expect("a number") >= accuracy);
    let other = eval(&manifest, &["--metric", "choice"]);
    assert_eq!(other["accuracy"], 0.0, "{other}");
}
