//! Mutation of inputs: bytes, words of a language, or values within JSON.

use rand::Rng;
use rand::seq::IndexedRandom;
use serde_json::{Number, Value, json};

/// Separator between the texts of an input.
pub const SEPARATOR: u8 = 0;

/// Form of an input.
#[derive(Debug, Clone, Copy)]
pub enum Form {
    /// Bytes, with words that are significant to the parser.
    Words(&'static [&'static [u8]]),
    /// Parts, the first of which is JSON; the words apply to the others.
    Json(&'static [&'static [u8]]),
}

impl Form {
    fn words(self) -> &'static [&'static [u8]] {
        match self {
            Self::Words(words) | Self::Json(words) => words,
        }
    }
}

/// Splits an input into at most `N` parts; missing ones are empty.
pub fn parts<const N: usize>(input: &[u8]) -> [&[u8]; N] {
    let mut parts = input.splitn(N, |&byte| byte == SEPARATOR);
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

/// Mutates `input` in one to four places; `other` is another input of the same target.
pub fn mutate(input: &[u8], other: &[u8], form: Form, rng: &mut impl Rng) -> Vec<u8> {
    let mut changed = input.to_vec();
    for _ in 0..rng.random_range(1..=4) {
        changed = match form {
            Form::Json(_) if rng.random_bool(0.6) => {
                json_part(&changed, other, rng).unwrap_or_else(|| bytes(changed, other, form, rng))
            }
            _ => bytes(changed, other, form, rng),
        };
    }
    changed
}

/// Integers at which formats change or arithmetic overflows.
const NUMBERS: [u64; 20] = [
    0,
    1,
    2,
    3,
    7,
    8,
    16,
    127,
    128,
    255,
    256,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 40,
    i64::MAX as u64,
    u64::MAX,
];

fn bytes(mut input: Vec<u8>, other: &[u8], form: Form, rng: &mut impl Rng) -> Vec<u8> {
    // Headers come first and have the most influence.
    let len = input.len();
    let near = if rng.random_bool(0.5) { 64 } else { len };
    let at = rng.random_range(0..=len.min(near));
    let some = rng.random_range(1..=8usize);
    let end = len.min(at + if rng.random_bool(0.2) { 8 * some } else { some });
    match rng.random_range(0..9) {
        0 if at < len => input[at] ^= 1 << rng.random_range(0..8),
        1 if at < len => input[at] = rng.random(),
        2 if at < len => input[at] = input[at].wrapping_add_signed(rng.random_range(-8..=8)),
        3 => {
            let number = NUMBERS.choose(rng).copied().unwrap_or_default();
            let width = [1, 2, 4, 8].choose(rng).copied().unwrap_or(4);
            let mut number = number.to_le_bytes()[..width].to_vec();
            if rng.random() {
                number.reverse();
            }
            input.splice(at..len.min(at + width), number);
        }
        4 => drop(input.drain(at..end)),
        5 => {
            let piece = input[at..end].to_vec();
            for _ in 0..rng.random_range(1..=3) {
                input.splice(at..at, piece.iter().copied());
            }
        }
        6 if !other.is_empty() => {
            let from = rng.random_range(0..other.len());
            let to = rng.random_range(from..other.len()) + 1;
            input.splice(at..end, other[from..to].iter().copied());
        }
        7 => input.truncate(at),
        _ => match form.words().choose(rng) {
            Some(word) => {
                let replaced = if rng.random() { end } else { at };
                input.splice(at..replaced, word.iter().copied());
            }
            None => input.insert(at, rng.random()),
        },
    }
    input
}

/// Mutates a value in the JSON at the start of the input; `None` if there is none.
fn json_part(input: &[u8], other: &[u8], rng: &mut impl Rng) -> Option<Vec<u8>> {
    let [text, _] = parts(input);
    let mut json: Value = serde_json::from_slice(text).ok()?;
    let [donor, _] = parts(other);
    let donor = serde_json::from_slice(donor).unwrap_or_default();
    change(&mut json, &donor, rng);
    let mut changed = serde_json::to_vec(&json).ok()?;
    changed.extend_from_slice(&input[text.len()..]);
    Some(changed)
}

fn change(json: &mut Value, donor: &Value, rng: &mut impl Rng) {
    let count = count(json);
    let mut left = rng.random_range(0..count);
    let Some(value) = nth(json, &mut left) else {
        return;
    };
    match (value, rng.random_range(0..8)) {
        (Value::Array(items), 0..4) if !items.is_empty() => {
            let at = rng.random_range(0..items.len());
            match rng.random_range(0..3) {
                0 => drop(items.remove(at)),
                1 => {
                    let copies = vec![items[at].clone(); rng.random_range(1..4)];
                    items.splice(at..at, copies);
                }
                _ => items.swap(0, at),
            }
        }
        (Value::Object(members), 0..4) if !members.is_empty() => {
            let at = rng.random_range(0..members.len());
            let key = members.keys().nth(at).cloned().unwrap_or_default();
            if rng.random() {
                members.remove(&key);
            } else {
                members.insert(key, any(donor, rng));
            }
        }
        (Value::Number(number), 0..4) => *number = near(number, rng),
        (Value::Bool(flag), 0..6) => *flag = !*flag,
        (value, _) => *value = any(donor, rng),
    }
}

/// Counts the values within a value, including itself.
fn count(json: &Value) -> usize {
    1 + match json {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(members) => members.values().map(count).sum(),
        _ => 0,
    }
}

/// Returns the value at an index in depth-first order.
fn nth<'a>(json: &'a mut Value, left: &mut usize) -> Option<&'a mut Value> {
    if *left == 0 {
        return Some(json);
    }
    *left -= 1;
    match json {
        Value::Array(items) => items.iter_mut().find_map(|item| nth(item, left)),
        Value::Object(members) => members.values_mut().find_map(|member| nth(member, left)),
        _ => None,
    }
}

/// Returns a number close to another one.
fn near(number: &Number, rng: &mut impl Rng) -> Number {
    match (number.as_i64(), number.as_f64()) {
        (Some(integer), _) => Number::from(match rng.random_range(0..5) {
            0 => integer.wrapping_add(1),
            1 => integer.wrapping_sub(1),
            2 => integer.wrapping_mul(2),
            3 => integer / 2,
            _ => integer.wrapping_neg(),
        }),
        (None, Some(float)) => {
            let factor = [-1.0, 0.0, 0.5, 1e-30, 1e30].choose(rng).copied();
            Number::from_f64(float * factor.unwrap_or(2.0)).unwrap_or_else(|| Number::from(0))
        }
        _ => Number::from(0),
    }
}

/// Returns a value of a random type, or one from `donor`.
fn any(donor: &Value, rng: &mut impl Rng) -> Value {
    match rng.random_range(0..12) {
        0 => Value::Null,
        1 => json!(rng.random::<bool>()),
        2 | 3 => json!(NUMBERS.choose(rng)),
        4 => json!(-1),
        5 => json!([0.5, -0.5, 1e-40, 1e300].choose(rng)),
        6 => json!(""),
        7 => json!(["a", "<s>", "\u{2581}", "\u{1f980}", " ", "default"].choose(rng)),
        8 => json!([]),
        9 => json!({}),
        _ => {
            let mut left = rng.random_range(0..count(donor));
            let mut donor = donor.clone();
            nth(&mut donor, &mut left).cloned().unwrap_or_default()
        }
    }
}
