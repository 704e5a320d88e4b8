//! Metrics of question sets: the score of an answer, from 0 to 1.
//!
//! The score of a set is the mean of the scores of its questions, the accuracy of the metrics that
//! are either right or wrong.

mod choice;
mod rouge;
mod vqa;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A metric, as the question sets define it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Metric {
    /// 1 if the answer equals an accepted one, ignoring case and surrounding whitespace.
    #[default]
    Exact,
    /// 1 if the letter that the answer chooses is the right one; for Video-MME and MMBench. An
    /// answer may be a letter, contain one (`"(B)"`, `"B."`, `"The answer is B"`) or give the text
    /// of one option. This follows the rules of the evaluation of MMBench
    /// ([Liu et al. 2023](https://arxiv.org/abs/2307.06281), section 4.3, step 1) without a
    /// language model as a judge: an answer that chooses no option, or several, is wrong.
    Choice,
    /// Average normalized Levenshtein similarity, for DocVQA
    /// ([Biten et al. 2019](https://arxiv.org/abs/1905.13648), section 4): the largest similarity
    /// to an accepted answer, ignoring case and repeated spaces, or 0 if it is below 0.5. As in the
    /// evaluation script of the challenge, a similarity of exactly 0.5 counts.
    Anls,
    /// 1 if a number is within 5 % of an accepted one, or a text equals it ignoring case; for
    /// ChartQA ([Masry et al. 2022](https://arxiv.org/abs/2203.10244), section 5.1). Percentages
    /// are divided by 100, as in the script of
    /// [Pix2Struct](https://github.com/google-research/pix2struct).
    Relaxed,
    /// Accuracy of VQA, for TextVQA
    /// ([Antol et al. 2015](https://arxiv.org/abs/1505.00468), section 3;
    /// [Singh et al. 2019](https://arxiv.org/abs/1904.08920)): min(n / 3, 1) for n annotators with
    /// the same answer, averaged over all subsets without one annotator. Answers are normalized as
    /// by EvalAI.
    Vqa,
    /// 1 if the answer equals an accepted one, ignoring case, punctuation and repeated spaces; for
    /// ActivityNet-QA ([Yu et al. 2019](https://arxiv.org/abs/1906.02467), section 5.1), whose
    /// answers are in lower case and without punctuation.
    ActivitynetQa,
    /// ROUGE-L with beta 1.2, for the captions of AudioCaps
    /// ([Lin 2004](https://aclanthology.org/W04-1013); as in `coco-caption`, precision and recall
    /// are each the largest of all references).
    RougeL,
}

impl Metric {
    /// All metrics.
    pub const ALL: [Self; 7] = [
        Self::Exact,
        Self::Choice,
        Self::Anls,
        Self::Relaxed,
        Self::Vqa,
        Self::ActivitynetQa,
        Self::RougeL,
    ];

    /// Returns the name in manifests and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Choice => "choice",
            Self::Anls => "anls",
            Self::Relaxed => "relaxed",
            Self::Vqa => "vqa",
            Self::ActivitynetQa => "activitynet_qa",
            Self::RougeL => "rouge_l",
        }
    }

    /// Returns the score of an answer, given all accepted answers and the texts of the options of a
    /// multiple-choice question.
    pub fn score(self, answer: &str, accepted: &[String], choices: &[String]) -> f64 {
        let best = |score: &dyn Fn(&str) -> f64| {
            let scores = accepted.iter().map(|accepted| score(accepted));
            scores.fold(0.0, f64::max)
        };
        let any = |matches: &dyn Fn(&str) -> bool| best(&|accepted| f64::from(matches(accepted)));
        match self {
            Self::Exact => any(&|accepted| same_text(answer, accepted)),
            Self::Choice => {
                let chosen = choice::letter(answer, choices);
                any(&|accepted| chosen.is_some() && chosen == choice::letter(accepted, choices))
            }
            Self::Anls => best(&|accepted| anls(answer, accepted)),
            Self::Relaxed => any(&|accepted| is_close(answer, accepted)),
            Self::Vqa => vqa::accuracy(answer, accepted),
            Self::ActivitynetQa => any(&|accepted| words(answer) == words(accepted)),
            Self::RougeL => rouge::rouge_l(answer, accepted),
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Error of parsing the name of a metric.
#[derive(Debug, thiserror::Error)]
#[error("unknown metric {0:?}")]
pub struct UnknownMetric(String);

impl FromStr for Metric {
    type Err = UnknownMetric;

    fn from_str(name: &str) -> Result<Self, UnknownMetric> {
        let mut all = Self::ALL.into_iter();
        all.find(|metric| metric.name() == name)
            .ok_or_else(|| UnknownMetric(name.to_owned()))
    }
}

/// Returns the words in lower case, without punctuation.
fn words(text: &str) -> Vec<String> {
    let letters = |word: &str| word.chars().filter(|c| c.is_alphanumeric()).collect();
    let words = text.split_whitespace().map(letters);
    words
        .map(|word: String| word.to_lowercase())
        .filter(|word| !word.is_empty())
        .collect()
}

/// Returns the normalized Levenshtein similarity if it is at least 0.5, otherwise 0.
fn anls(answer: &str, accepted: &str) -> f64 {
    let normal = |text: &str| -> Vec<char> {
        let words: Vec<&str> = text.split_whitespace().collect();
        words.join(" ").to_lowercase().chars().collect()
    };
    let distance = levenshtein(&normal(answer), &normal(accepted));
    // The script of the challenge divides by the length before the spaces are normalized.
    let length = answer.chars().count().max(accepted.chars().count());
    let similarity = 1.0 - distance as f64 / length.max(1) as f64;
    if similarity < 0.5 { 0.0 } else { similarity }
}

/// Returns the number of insertions, deletions and substitutions between two texts.
fn levenshtein(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Returns `true` if a number differs by at most 5 %, or a text is the same.
fn is_close(answer: &str, accepted: &str) -> bool {
    let (answer, accepted) = (answer.trim(), accepted.trim());
    match (number(answer), number(accepted)) {
        // The relative difference to 0 is undefined: the texts are compared.
        (Some(answer), Some(accepted)) if accepted != 0.0 => {
            (answer - accepted).abs() / accepted.abs() <= 0.05
        }
        _ => same_text(answer, accepted),
    }
}

fn number(text: &str) -> Option<f64> {
    match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse().ok().map(|value: f64| value / 100.0),
        None => text.parse().ok(),
    }
}

/// Returns `true` if two texts are equal, ignoring case and surrounding whitespace.
fn same_text(answer: &str, accepted: &str) -> bool {
    answer.trim().to_lowercase() == accepted.trim().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(metric: Metric, answer: &str, accepted: &[&str]) -> f64 {
        let accepted: Vec<String> = accepted.iter().map(|&text| text.to_owned()).collect();
        metric.score(answer, &accepted, &[])
    }

    #[test]
    fn names_are_those_of_the_manifest() {
        for metric in Metric::ALL {
            let name = serde_json::to_value(metric).unwrap();
            assert_eq!(name, metric.name());
            assert_eq!(metric.name().parse::<Metric>().unwrap(), metric);
        }
        assert!("bleu".parse::<Metric>().is_err());
    }

    #[test]
    fn levenshtein_counts_edits() {
        let distance = |a: &str, b: &str| {
            let (a, b): (Vec<_>, Vec<_>) = (a.chars().collect(), b.chars().collect());
            levenshtein(&a, &b)
        };
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("flaw", "lawn"), 2);
        assert_eq!(distance("Größe", "Grosse"), 3);
    }

    #[test]
    fn anls_is_a_similarity_with_a_threshold() {
        assert_eq!(score(Metric::Anls, " The  Answer", &["the answer"]), 1.0);
        // One of four letters differs.
        assert_eq!(score(Metric::Anls, "coat", &["goat"]), 0.75);
        // Half of the letters: the threshold itself counts.
        assert_eq!(score(Metric::Anls, "abxy", &["abcd"]), 0.5);
        assert_eq!(score(Metric::Anls, "axyz", &["abcd"]), 0.0);
        // The best of several answers; one character of ten is missing.
        let found = score(Metric::Anls, "$10,00.00", &["ten", "$10,000.00"]);
        assert!((found - 0.9).abs() < 1e-9);
        assert_eq!(score(Metric::Anls, "", &["abc"]), 0.0);
        assert_eq!(score(Metric::Anls, "", &[]), 0.0);
    }

    #[test]
    fn numbers_may_differ_by_five_percent() {
        for (answer, accepted, right) in [
            ("105", "100", 1.0),
            ("95", "100", 1.0),
            ("105.1", "100", 0.0),
            ("-96", "-100", 1.0),
            ("0.04", "0", 0.0),
            ("0", "0", 1.0),
            ("5%", "0.05", 1.0),
            ("5%", "5", 0.0),
            ("Yes", "yes", 1.0),
            ("12 apples", "12", 0.0),
        ] {
            let found = score(Metric::Relaxed, answer, &[accepted]);
            assert_eq!(found, right, "{answer} for {accepted}");
        }
    }

    #[test]
    fn activitynet_ignores_case_and_punctuation() {
        let score = |answer, accepted| score(Metric::ActivitynetQa, answer, &[accepted]);
        assert_eq!(score("Yes.", "yes"), 1.0);
        assert_eq!(score("in the  Living-room", "in the living room"), 0.0);
        assert_eq!(score("a man's hat", "a mans hat"), 1.0);
        assert_eq!(score("two", "2"), 0.0);
        assert_eq!(score("yes it is", "yes"), 0.0);
    }
}
