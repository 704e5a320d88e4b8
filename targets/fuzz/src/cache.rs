//! Fuzz target for cache entries and snapshots.

use std::cell::RefCell;
use std::ops::ControlFlow;

use edge_lmm::output::Output;
use edge_lmm::store::check_entry;
use edge_lmm::{
    Cpu, Engine, Media, OutputRows, Record, Request, Session, Store, demo, media, user_message,
};
use xxhash_rust::xxh3::xxh3_64;

use crate::memory_file::MemoryFile;
use crate::mutate::Form;
use crate::{Target, errors};

/// An entry of the cache folder or a snapshot, also with a corrected checksum.
pub const CACHE_ENTRY: Target = Target {
    name: "cache_entry",
    form: Form::Words(&[
        b"edgelmmc",
        b"kv-rows1",
        b"\x01\0\0\0",
        b"\x02\0\0\0",
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        b"\xff\xff\xff\xff\xff\xff\xff\xff",
    ]),
    seeds,
    run: |input| {
        check(input);
        if let Some((content, _)) = input.split_last_chunk::<8>() {
            let checksum = xxh3_64(content).to_le_bytes();
            check(&[content, &checksum].concat());
        }
    },
};

thread_local! {
    static SESSION: RefCell<Session<Cpu>> = RefCell::new(engine().session());
}

fn engine() -> Engine<Cpu> {
    let record = Record::from_static(demo::RECORD, "the demo").expect("a record");
    Engine::load(&record, Default::default()).expect("it loads")
}

/// A snapshot that is accepted can be continued.
fn check(bytes: &[u8]) {
    let whole = check_entry(bytes);
    if let Err(error) = &whole {
        errors::check(error);
    }
    let file = MemoryFile::new(bytes);
    SESSION.with_borrow_mut(|session| match session.load_snapshot(&file.path()) {
        Ok(tokens) => {
            assert!(whole.is_ok() && tokens == session.len());
            if let Err(error) = session.step(&[1], OutputRows::Last) {
                errors::check(&error);
            }
        }
        Err(error) => errors::check(&error),
    });
}

/// The entries and the snapshot of a question about a small image, and a snapshot of text.
fn seeds() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().expect("a folder");
    let engine = engine();
    engine.use_store(Store::open(folder.path(), u64::MAX).expect("the folder"));
    let image = media::decode_image(demo::IMAGE).expect("an image");
    for shown in [&[][..], &[Media::image(image)]] {
        let messages = [user_message(shown, "a")];
        let mut request = Request {
            media: shown,
            max_tokens: 1,
            ..Request::new(&messages)
        };
        request.options.image_tokens = Some((1, 4));
        let mut session = engine.session();
        let answer = session.answer(&request, |_| ControlFlow::Continue(()));
        answer.expect("an answer");
        let path = folder.path().join(format!("snapshot-{}", shown.len()));
        let output = Output::private(&path, false).expect("a file");
        session
            .save_snapshot(output, usize::MAX)
            .expect("it is saved");
    }
    let files = std::fs::read_dir(folder.path()).expect("the folder");
    let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    paths.sort();
    let read = |path| std::fs::read(path).expect("a file");
    paths.into_iter().map(read).collect()
}
