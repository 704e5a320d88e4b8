//! Runs every target on its seeds and on mutations of them, with a fixed random seed.

use edge_lmm_fuzz::mutate::mutate;
use edge_lmm_fuzz::{TARGETS, Target, panics, target};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Maximum length of an input.
const MAX_LEN: usize = 1 << 16;

fn check(name: &str, inputs: usize) {
    let target = target(name);
    let mut pool = (target.seeds)();
    let seeds = pool.len();
    assert!(seeds > 0, "{name} has no seeds");
    pool.iter().for_each(|seed| run(target, seed));
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..inputs {
        let pick = |rng: &mut ChaCha8Rng| pool.choose(rng).cloned().unwrap_or_default();
        let (input, other) = (pick(&mut rng), pick(&mut rng));
        let mut changed = mutate(&input, &other, target.form, &mut rng);
        changed.truncate(MAX_LEN);
        run(target, &changed);
        // Mutations accumulate.
        if rng.random_bool(0.1) && pool.len() < 2 * seeds {
            pool.push(changed);
        }
    }
}

fn run(target: &Target, input: &[u8]) {
    if let Err(panic) = panics::catch(|| (target.run)(input)) {
        let file = std::env::temp_dir().join(format!("edge-lmm-fuzz-{}", target.name));
        std::fs::write(&file, input).expect("a file");
        panic!("{}: {panic}; the input is {}", target.name, file.display());
    }
}

macro_rules! targets {
    ($($name:ident: $inputs:literal,)*) => {
        $(#[test] fn $name() { check(stringify!($name), $inputs); })*

        #[test]
        fn all_targets_have_a_test_and_a_program() {
            let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!([$(stringify!($name)),*], names[..]);
            let programs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz_targets");
            for name in names {
                assert!(programs.join(format!("{name}.rs")).exists(), "{name} has no program");
            }
        }
    };
}

targets! {
    image: 3000,
    animation: 1500,
    y4m: 3000,
    mp4: 1500,
    sound: 3000,
    tokenizer_json: 2000,
    chat_template: 1500,
    control_tokens: 2000,
    request: 5000,
    http_request: 5000,
    chat_line: 5000,
    manifest: 3000,
    model_config: 3000,
    generation_config: 3000,
    record: 3000,
    bundle: 3000,
    checkpoint_files: 1500,
    gguf_header: 5000,
    gguf_model: 1500,
    gguf_vocabulary: 1500,
    safetensors: 3000,
    adapter: 3000,
    cache_entry: 2000,
}
