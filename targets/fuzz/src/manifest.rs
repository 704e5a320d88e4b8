//! Fuzz target for question sets.

use edge_lmm::manifest::Manifest;
use edge_lmm::metric::Metric;

use crate::memory_file::MemoryFile;
use crate::mutate::Form;
use crate::{Target, errors};

/// Parsing of `manifest.csv`.
pub const MANIFEST: Target = Target {
    name: "manifest",
    form: Form::Words(&[
        b"id,media_path,question,answer,task\n",
        b",",
        b"\"",
        b"\"\"",
        b"\r\n",
        b"\n",
        b"\xef\xbb\xbf",
        b"answer",
        b"id",
        b"task",
        b"\xff",
        b"/",
        b"..",
    ]),
    seeds: || {
        vec![
            b"id,media_path,question,answer,task\n1,a.png,\"What, now?\",red,vqa\n2,,b,c,\n"
                .to_vec(),
            b"answer,id,question,media_path\r\n\"a \"\"b\"\"\",x,\"two\nlines\",m/n.wav\r\n"
                .to_vec(),
        ]
    },
    run: |input| {
        let file = MemoryFile::new(input);
        match Manifest::open(&file.path()) {
            Ok(manifest) => {
                assert!(!manifest.questions.is_empty());
                for question in &manifest.questions {
                    let path = manifest.media_path(question);
                    assert_eq!(path.is_some(), !question.media_path.is_empty());
                    let accepted = std::slice::from_ref(&question.answer);
                    let score = Metric::Exact.score(&question.answer, accepted, &[]);
                    assert_eq!(score, 1.0);
                }
            }
            Err(error) => errors::check(&format!("{error:#}")),
        }
    },
};
