//! Accuracy of VQA with several annotators.
//!
//! Normalization follows the answer processor of EvalAI in
//! [MMF](https://github.com/facebookresearch/mmf) (`EvalAIAnswerProcessor`), which TextVQA is scored
//! with. It knows some contractions without their apostrophe; keys with capital letters, which it
//! compares with text in lower case, have no effect and are left out here.

/// Contractions. Without one of its apostrophes, a word is replaced by its contraction.
const CONTRACTIONS: &str = "ain't aren't can't could've couldn't couldn't've didn't doesn't don't \
    hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll \
    ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at \
    shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd \
    someone'd've someone'll someone's something'd something'd've something'll that's there'd \
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've \
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll \
    who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've \
    you'd you'd've you'll you're you've";

/// Numbers as words.
const NUMBERS: [(&str, &str); 12] = [
    ("none", "0"),
    ("zero", "0"),
    ("one", "1"),
    ("two", "2"),
    ("three", "3"),
    ("four", "4"),
    ("five", "5"),
    ("six", "6"),
    ("seven", "7"),
    ("eight", "8"),
    ("nine", "9"),
    ("ten", "10"),
];

const PUNCTUATION: &str = ";/[]\"{}()=+\\_-><@`!";

/// Returns the accuracy of an answer. With a single accepted answer, which has no subsets without
/// one annotator, it is 1 if the answers are equal.
pub(super) fn accuracy(answer: &str, accepted: &[String]) -> f64 {
    let answer = normal(answer);
    let equal: Vec<bool> = accepted.iter().map(|text| normal(text) == answer).collect();
    let matches = equal.iter().filter(|&&equal| equal).count();
    match &equal[..] {
        [] => 0.0,
        [only] => f64::from(*only),
        all => {
            let without = |&equal: &bool| ((matches - usize::from(equal)) as f64 / 3.0).min(1.0);
            all.iter().map(without).sum::<f64>() / all.len() as f64
        }
    }
}

/// Normalizes case, punctuation, numbers, articles and contractions.
fn normal(text: &str) -> String {
    let text = text.to_lowercase().replace([',', '?'], "");
    let text = text.replace("'s", " 's").replace(['\n', '\t'], " ");
    let text = without_punctuation(text.trim());
    let words = text.split_whitespace().map(number);
    let words = words.filter(|word| !matches!(*word, "a" | "an" | "the"));
    let words: Vec<&str> = words.map(contraction).collect();
    words.join(" ")
}

/// Removes a mark if it is next to a space anywhere in the text, otherwise replaces it by a space.
/// Periods that no digit follows are removed.
fn without_punctuation(text: &str) -> String {
    let mut result = text.to_owned();
    for mark in PUNCTUATION.chars() {
        let is_next_to_space =
            text.contains(&format!("{mark} ")) || text.contains(&format!(" {mark}"));
        result = result.replace(mark, if is_next_to_space { "" } else { " " });
    }
    let mut characters = result.chars().peekable();
    let mut kept = String::with_capacity(result.len());
    while let Some(character) = characters.next() {
        let is_decimal = characters.peek().is_some_and(char::is_ascii_digit);
        if character != '.' || is_decimal {
            kept.push(character);
        }
    }
    kept
}

fn number(word: &str) -> &str {
    let number = NUMBERS.iter().find(|(name, _)| *name == word);
    number.map_or(word, |(_, digits)| digits)
}

fn contraction(word: &str) -> &str {
    // The table of EvalAI has this pair the other way round.
    if word == "somebody'd" {
        return "somebodyd";
    }
    let mut contractions = CONTRACTIONS.split_ascii_whitespace();
    let lacks_one = |contraction: &&str| {
        let apostrophes = contraction.match_indices('\'');
        contraction.len() == word.len() + 1
            && apostrophes.into_iter().any(|(at, _)| {
                word.get(..at) == contraction.get(..at)
                    && word.get(at..) == contraction.get(at + 1..)
            })
    };
    contractions.find(lacks_one).unwrap_or(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_normalized_as_by_evalai() {
        for (text, expected) in [
            ("The Cat", "cat"),
            ("two dogs.", "2 dogs"),
            ("12.50", "12.50"),
            ("U.S.A.", "usa"),
            ("dont walk", "don't walk"),
            ("couldntve", "couldntve"),
            ("couldn'tve", "couldn't've"),
            ("yall'd've", "y'all'd've"),
            ("1,000", "1000"),
            ("left-right", "left right"),
            ("left - right", "left right"),
            // The mark is next to a space somewhere, so it is removed everywhere.
            ("a-b - c", "ab c"),
            ("mike's", "mike 's"),
            ("what?\n", "what"),
            ("none", "0"),
            ("the", ""),
        ] {
            assert_eq!(normal(text), expected, "{text:?}");
        }
    }

    #[test]
    fn annotators_are_counted_without_one() {
        let answers = |equal: usize| -> Vec<String> {
            let texts = (0..10).map(|i| if i < equal { "Cat" } else { "dog" });
            texts.map(str::to_owned).collect()
        };
        let expect = |equal: usize, expected: f64| {
            let found = accuracy("the cat.", &answers(equal));
            assert!((found - expected).abs() < 1e-9, "{equal}: {found}");
        };
        expect(0, 0.0);
        // Nine subsets with one match, one with none: 0.9 * 1/3.
        expect(1, 0.3);
        // Eight with two matches, two with one: 0.8 * 2/3 + 0.2 * 1/3.
        expect(2, 0.6);
        // Seven with three matches, three with two: 0.7 + 0.3 * 2/3.
        expect(3, 0.9);
        expect(4, 1.0);
        expect(10, 1.0);
    }

    #[test]
    fn a_single_answer_is_compared() {
        assert_eq!(accuracy("the cat", &["cat".to_owned()]), 1.0);
        assert_eq!(accuracy("dog", &["cat".to_owned()]), 0.0);
        assert_eq!(accuracy("dog", &[]), 0.0);
    }
}
