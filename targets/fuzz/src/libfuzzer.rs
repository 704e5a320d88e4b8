//! Runs of a target with libFuzzer.

use std::path::Path;
use std::sync::OnceLock;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rustix::param::page_size;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::mutate::mutate;
use crate::{Target, panics};

/// Defines the program of a target.
#[macro_export]
macro_rules! fuzz_program {
    ($name:literal) => {
        static TARGET: std::sync::LazyLock<&$crate::Target> =
            std::sync::LazyLock::new(|| $crate::target($name));

        libfuzzer_sys::fuzz_target!(
            init: $crate::libfuzzer::prepare(&TARGET),
            |input: &[u8]| {
                (TARGET.run)(input);
            }
        );

        libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max: usize, seed: u32| {
            $crate::libfuzzer::change(&TARGET, data, size, max, seed)
        });
    };
}

/// Address space of a target beyond what the sanitizer reserves. The project treats it as the
/// memory of the machine, so the sanitizer detects allocations beyond it.
const MEMORY: u64 = 1 << 30;

/// Writes the seeds into the corpus that libFuzzer reads next, limits the memory, and makes panics
/// of the project's own code fatal.
///
/// # Panics
/// If the corpus cannot be written or the limit cannot be set.
pub fn prepare(target: &Target) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target.name);
    std::fs::create_dir_all(&corpus).expect("a folder for the corpus");
    for (number, seed) in (target.seeds)().iter().enumerate() {
        std::fs::write(corpus.join(format!("seed-{number}")), seed).expect("a seed");
    }
    limit_memory();
    panics::abort();
}

fn limit_memory() {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("the size of this process");
    let pages = statm
        .split(' ')
        .next()
        .and_then(|pages| pages.parse::<u64>().ok());
    let taken = pages.expect("a number of pages") * page_size() as u64;
    let limit = Rlimit {
        current: Some(taken + MEMORY),
        maximum: getrlimit(Resource::As).maximum,
    };
    setrlimit(Resource::As, limit).expect("a limit of memory");
}

/// Mutates an input of `size` bytes within `data`, half of the time by libFuzzer's mutator, which
/// knows the constants that the parser compares with. Returns the new size.
pub fn change(target: &Target, data: &mut [u8], size: usize, max: usize, seed: u32) -> usize {
    if seed % 2 == 0 {
        return libfuzzer_sys::fuzzer_mutate(data, size, max);
    }
    static SEEDS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    let seeds = SEEDS.get_or_init(target.seeds);
    let mut rng = ChaCha8Rng::seed_from_u64(seed.into());
    let other = &seeds[seed as usize / 2 % seeds.len()];
    let changed = mutate(&data[..size], other, target.form, &mut rng);
    let len = changed.len().min(max);
    data[..len].copy_from_slice(&changed[..len]);
    len
}
