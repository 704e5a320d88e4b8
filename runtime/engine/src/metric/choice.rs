//! The option that an answer to a multiple-choice question chooses.

use super::words;

/// Number of options of a question that does not list them.
const DEFAULT_OPTIONS: usize = 4;

/// Phrases before the chosen letter, in lower case; the letter after the last of them counts.
const ANNOUNCEMENTS: [&str; 5] = ["answer is", "option is", "choice is", "answer:", "option:"];

/// Returns the letter that an answer chooses, in upper case; `None` if there is none or it is not
/// clear which.
pub(super) fn letter(answer: &str, choices: &[String]) -> Option<char> {
    let options = match choices.len() {
        0 => DEFAULT_OPTIONS,
        options => options.min(26),
    };
    let answer = answer.trim();
    let announced = announced(answer);
    let clear = announced.as_ref().filter(|token| !token.is_word);
    alone(answer, options)
        .or_else(|| option(clear?.letter, options))
        .or_else(|| leading(answer, options))
        .or_else(|| option_text(answer, choices))
        .or_else(|| option(announced.as_ref()?.letter, options))
        .or_else(|| mentioned(answer, options))
}

/// Returns the letter in upper case if it names one of the options.
fn option(letter: char, options: usize) -> Option<char> {
    let letter = letter.to_ascii_uppercase();
    let index = (letter as usize).checked_sub('A' as usize)?;
    (index < options).then_some(letter)
}

/// An answer that is a letter and punctuation: `B`, `(b)`, `B.`
fn alone(answer: &str, options: usize) -> Option<char> {
    let mut letters = answer.chars().filter(|c| c.is_alphanumeric());
    match (letters.next(), letters.next()) {
        (Some(letter), None) => option(letter, options),
        _ => None,
    }
}

/// The letter after an announcement: `The answer is B because ...`, `Answer: (B)`.
fn announced(answer: &str) -> Option<Token> {
    let lower = answer.to_ascii_lowercase();
    let ends = ANNOUNCEMENTS.iter().filter_map(|announcement| {
        let start = lower.rfind(announcement)?;
        Some(start + announcement.len())
    });
    let rest = &answer[ends.max()?..];
    let rest = rest.trim_start_matches(|c: char| !c.is_alphanumeric());
    let rest = match rest.get(.."option ".len()) {
        Some(word) if word.eq_ignore_ascii_case("option ") => &rest[word.len()..],
        _ => rest,
    };
    tokens(rest)
        .into_iter()
        .next()
        .filter(|token| token.at == 0)
}

/// A letter with punctuation at the start: `B. A dog`, `(B) a dog`, `B: a dog`.
fn leading(answer: &str, options: usize) -> Option<char> {
    let marked = answer.trim_start_matches(['(', '[', '*', '"', '\'']);
    let mut characters = marked.chars();
    let letter = characters.next().filter(char::is_ascii_uppercase)?;
    let is_marked = matches!(
        characters.next(),
        Some('.' | ')' | ']' | ':' | ',' | '*' | '\n')
    );
    is_marked.then(|| option(letter, options))?
}

/// The only option whose text the answer contains; of options that contain each other, the longest.
fn option_text(answer: &str, choices: &[String]) -> Option<char> {
    let answer = words(answer);
    let contains = |words: &[String], part: &[String]| {
        !part.is_empty() && words.windows(part.len()).any(|window| window == part)
    };
    let found: Vec<(usize, Vec<String>)> = choices
        .iter()
        .take(26)
        .map(|choice| words(choice))
        .enumerate()
        .filter(|(_, choice)| contains(&answer, choice))
        .collect();
    let longest = found.iter().max_by_key(|(_, choice)| choice.len())?;
    let others = found.iter().filter(|(index, _)| *index != longest.0);
    let mut others =
        others.filter(|(_, choice)| !contains(&longest.1, choice) || *choice == longest.1);
    match others.next() {
        None => Some((b'A' + longest.0 as u8) as char),
        Some(_) => None,
    }
}

/// The only letter that is mentioned as a word: `I think it is B`.
fn mentioned(answer: &str, options: usize) -> Option<char> {
    let tokens = tokens(answer).into_iter();
    let letters = tokens.filter(|token| !token.is_word);
    let mut letters = letters.filter_map(|token| option(token.letter, options));
    let first = letters.next()?;
    letters.all(|letter| letter == first).then_some(first)
}

/// A single capital letter that is a word.
struct Token {
    letter: char,
    /// Byte at which it starts.
    at: usize,
    /// It may be the article, at the start of a sentence, or the pronoun.
    is_word: bool,
}

fn tokens(text: &str) -> Vec<Token> {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '\'' | '’');
    let mut tokens = Vec::new();
    let mut before = None;
    for (at, letter) in text.char_indices() {
        let mut after = text[at + letter.len_utf8()..].chars();
        let next = after.next();
        if letter.is_ascii_uppercase() && !before.is_some_and(is_part) && !next.is_some_and(is_part)
        {
            let is_before_word = next == Some(' ') && after.next().is_some_and(char::is_lowercase);
            let sentence = text[..at].trim_end().chars().next_back();
            let starts_sentence = sentence.is_none_or(|end| matches!(end, '.' | '!' | '?'));
            let is_word = match letter {
                'A' => is_before_word && starts_sentence,
                'I' => is_before_word,
                _ => false,
            };
            tokens.push(Token {
                letter,
                at,
                is_word,
            });
        }
        before = Some(letter);
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choices(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn letters_are_found_in_answers() {
        let choices = choices(&["a red car", "two dogs", "A house", "None of the above."]);
        for (answer, expected) in [
            ("B", Some('B')),
            ("b", Some('B')),
            (" (B) ", Some('B')),
            ("B.", Some('B')),
            ("B. two dogs", Some('B')),
            ("**C**", Some('C')),
            ("[D] something", Some('D')),
            ("The answer is B", Some('B')),
            ("The answer is (B), because A is too far.", Some('B')),
            ("The answer is A because it is red", Some('A')),
            ("The answer is two dogs", Some('B')),
            ("Answer: option C", Some('C')),
            ("the best answer is: D.", Some('D')),
            ("I think it is B", Some('B')),
            ("There are two dogs in it.", Some('B')),
            ("two dogs", Some('B')),
            ("A house", Some('C')),
            ("A red car", Some('A')),
            ("none of the above", Some('D')),
            ("It shows two dogs and a red car", None),
            ("Either A or B", None),
            ("A man walks", None),
            ("It rains. A man walks", None),
            ("I think it is A because of that", Some('A')),
            ("E", None),
            ("", None),
            ("I do not know", None),
        ] {
            assert_eq!(letter(answer, &choices), expected, "{answer:?}");
        }
    }

    #[test]
    fn options_are_a_to_d_without_a_list() {
        assert_eq!(letter("d", &[]), Some('D'));
        assert_eq!(letter("E", &[]), None);
        assert_eq!(letter("Ä", &[]), None);
    }

    #[test]
    fn the_longest_of_nested_options_is_chosen() {
        let choices = choices(&["a dog", "a dog and a cat", "A dog"]);
        assert_eq!(letter("it is a dog and a cat", &choices), Some('B'));
        // Two options have the same text.
        assert_eq!(letter("it is a dog", &choices), None);
    }
}
