//! ROUGE-L of captions.

use super::words;

/// Weight of recall relative to precision in `coco-caption`.
const BETA: f64 = 1.2;

/// Returns the F measure of the longest common subsequence of words, with the largest precision and
/// the largest recall of all references.
pub(super) fn rouge_l(caption: &str, references: &[String]) -> f64 {
    let caption = words(caption);
    let (mut precision, mut recall) = (0.0_f64, 0.0_f64);
    for reference in references {
        let reference = words(reference);
        let common = common_subsequence(&caption, &reference) as f64;
        precision = precision.max(common / caption.len().max(1) as f64);
        recall = recall.max(common / reference.len().max(1) as f64);
    }
    if precision == 0.0 || recall == 0.0 {
        return 0.0;
    }
    (1.0 + BETA * BETA) * precision * recall / (recall + BETA * BETA * precision)
}

/// Returns the length of the longest common subsequence.
fn common_subsequence(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for from in a {
        let mut diagonal = 0;
        for (j, to) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if from == to {
                diagonal + 1
            } else {
                above.max(row[j])
            };
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(caption: &str, references: &[&str]) -> f64 {
        let references: Vec<String> = references.iter().map(|&text| text.to_owned()).collect();
        rouge_l(caption, &references)
    }

    #[test]
    fn subsequences_are_scored() {
        assert_eq!(score("A dog barks.", &["a dog barks"]), 1.0);
        assert_eq!(score("rain", &["a dog barks"]), 0.0);
        assert_eq!(score("", &["a dog barks"]), 0.0);
        assert_eq!(score("rain", &[]), 0.0);
        // "police the gunman": 2 of 3 words, 2 of 4 words in order.
        let (p, r) = (2.0 / 3.0, 2.0 / 4.0);
        let expected = 2.44 * p * r / (r + 1.44 * p);
        let found = score("police the gunman", &["police killed the suspect"]);
        assert!((found - expected).abs() < 1e-9, "{found}");
        // Precision and recall of different references.
        let found = score("a dog", &["a dog barks at night", "dog"]);
        assert!((found - 1.0).abs() < 1e-9, "{found}");
    }
}
