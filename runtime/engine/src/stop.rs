//! Stop strings.

/// Passes text on up to the first stop string.
///
/// Text that may be the beginning of a stop string is held back until more is known, so that no part
/// of a stop string is ever passed on.
#[derive(Debug, Clone, Default)]
pub struct StopFilter {
    stop: Vec<String>,
    held: String,
    stopped: bool,
}

impl StopFilter {
    /// Creates a filter for the given strings; empty ones have no effect.
    pub fn new(stop: &[String]) -> Self {
        Self {
            stop: stop
                .iter()
                .filter(|stop| !stop.is_empty())
                .cloned()
                .collect(),
            held: String::new(),
            stopped: false,
        }
    }

    /// Returns `true` if a stop string was found. All text after it is dropped.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Takes further text and returns what can be passed on.
    pub fn push(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(text);
        if let Some(at) = first(&self.stop, &self.held) {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let kept = self.stop.iter().map(|stop| overlap(&self.held, stop)).max();
        let rest = self.held.split_off(self.held.len() - kept.unwrap_or(0));
        std::mem::replace(&mut self.held, rest)
    }

    /// Returns the text held back at the end of the answer.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Returns the start of the first stop string in `text`. Among overlapping strings, the one that
/// ends first counts, as it is complete first when text arrives in pieces; among those, the
/// longest.
fn first(stop: &[String], text: &str) -> Option<usize> {
    let found = stop.iter().filter_map(|stop| {
        let start = text.find(stop.as_str())?;
        Some((start + stop.len(), start))
    });
    found.min().map(|(_, start)| start)
}

/// Returns the length of the longest suffix of `text` that is a proper prefix of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    let starts = (0..=longest)
        .rev()
        .filter(|&len| text.is_char_boundary(text.len() - len));
    let mut matching = starts.filter(|&len| stop.starts_with(&text[text.len() - len..]));
    matching.next().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filter(stop: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stop: Vec<String> = stop.iter().map(|&stop| stop.to_owned()).collect();
        let mut filter = StopFilter::new(&stop);
        let mut out: Vec<String> = pieces.iter().map(|piece| filter.push(piece)).collect();
        out.push(filter.finish());
        (out, filter.stopped())
    }

    #[test]
    fn nothing_of_a_stop_string_is_passed_on() {
        let (out, stopped) = filter(&["\nUser:"], &["Hello", "\nUs", "er: more", "more"]);
        assert_eq!(out, ["Hello", "", "", "", ""]);
        assert!(stopped);
        let (out, stopped) = filter(&["\nUser:"], &["Hello\nUs", "ual"]);
        assert_eq!(out, ["Hello", "\nUsual", ""]);
        assert!(!stopped);
        let (out, _) = filter(&["\nUser:"], &["Hello\nUser"]);
        assert_eq!(out, ["Hello", "\nUser"]);
    }

    #[test]
    fn of_overlapping_stop_strings_the_first_complete_one_counts() {
        for pieces in [&["ébé"][..], &["é", "b", "é"]] {
            let (out, stopped) = filter(&["ébé", "b"], pieces);
            assert_eq!((out.concat().as_str(), stopped), ("é", true));
        }
    }

    #[test]
    fn the_first_of_several_ends_the_text() {
        let (out, _) = filter(&["c", "b"], &["abcd"]);
        assert_eq!(out[0], "a");
        let (out, stopped) = filter(&["", "é"], &["aé"]);
        assert_eq!((out[0].as_str(), stopped), ("a", true));
        let (out, stopped) = filter(&[""], &["text"]);
        assert_eq!((out[0].as_str(), stopped), ("text", false));
    }

    proptest! {
        /// Pieces of any size give the text up to the first stop string.
        #[test]
        fn pieces_do_not_matter(text in "[abé]{0,20}", stop in prop::collection::vec("[abé]{1,4}", 0..3), size in 1usize..5) {
            let expected = first(&stop, &text);
            let mut filter = StopFilter::new(&stop);
            let chars: Vec<char> = text.chars().collect();
            let pieces = chars.chunks(size).map(|piece| piece.iter().collect::<String>());
            let mut out: String = pieces.map(|piece| filter.push(&piece)).collect();
            out.push_str(&filter.finish());
            prop_assert_eq!(out, &text[..expected.unwrap_or(text.len())]);
            prop_assert_eq!(filter.stopped(), expected.is_some());
        }
    }
}
