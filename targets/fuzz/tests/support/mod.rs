//! Runs of a target on its seeds and on mutations of them, with a fixed random seed.

use std::time::{Duration, Instant};

use edge_lmm_fuzz::mutate::mutate;
use edge_lmm_fuzz::{Target, panics, target};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Maximum length of an input.
const MAX_LEN: usize = 1 << 16;
/// Maximum time for an input, as with libFuzzer.
const MAX_TIME: Duration = Duration::from_secs(20);

/// Runs a target on its seeds and on `inputs` mutations.
pub fn check(name: &str, inputs: usize) {
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
    let mut time = Duration::ZERO;
    let result = panics::catch(|| {
        let start = Instant::now();
        (target.run)(input);
        time = start.elapsed();
    });
    let failure = match result {
        Err(panic) => panic,
        Ok(()) if time > MAX_TIME => format!("an input takes {time:?}"),
        Ok(()) => return,
    };
    let file = std::env::temp_dir().join(format!("edge-lmm-fuzz-{}", target.name));
    std::fs::write(&file, input).expect("a file");
    panic!(
        "{}: {failure}; the input is {}",
        target.name,
        file.display()
    );
}

/// Defines the tests of some targets, each with a number of mutations.
#[macro_export]
macro_rules! targets {
    ($targets:expr, $($name:ident: $inputs:literal,)*) => {
        $(#[test] fn $name() { $crate::support::check(stringify!($name), $inputs); })*

        #[test]
        fn all_targets_have_a_test_and_a_program() {
            let names: Vec<&str> = $targets.iter().map(|target| target.name).collect();
            assert_eq!([$(stringify!($name)),*], names[..]);
            let programs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz_targets");
            for name in names {
                assert!(programs.join(format!("{name}.rs")).exists(), "{name} has no program");
            }
        }
    };
}
