//! Drafts from the tokens so far.

/// Fewest tokens that a match has.
const SHORTEST: usize = 2;
/// Longest match that is told from shorter ones.
const LONGEST: usize = 16;

/// Earlier tokens that equal the last ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match {
    /// Number of equal tokens, at most [`LONGEST`].
    pub len: usize,
    /// Index of the token after the earlier ones.
    end: usize,
}

impl Match {
    /// Finds the longest earlier occurrence of the last tokens, the latest one of equals.
    pub fn find(tokens: &[u32]) -> Option<Self> {
        let (&last, _) = tokens.split_last()?;
        let mut best = None;
        let mut longest = SHORTEST - 1;
        for end in (1..tokens.len())
            .rev()
            .filter(|end| tokens[end - 1] == last)
        {
            let pairs = tokens[..end].iter().rev().zip(tokens.iter().rev());
            let len = pairs.take(LONGEST).take_while(|(a, b)| a == b).count();
            if len > longest {
                longest = len;
                best = Some(Self { len, end });
            }
            if len == LONGEST {
                break;
            }
        }
        best
    }

    /// Returns the `count` tokens that followed the earlier ones. Where these end with the last
    /// token, the sequence repeats itself, and so does the draft.
    pub fn draft(self, tokens: &[u32], count: usize) -> Vec<u32> {
        tokens[self.end..]
            .iter()
            .copied()
            .cycle()
            .take(count)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(tokens: &[u32], count: usize) -> Vec<u32> {
        let found = Match::find(tokens);
        found.map_or_else(Vec::new, |found| found.draft(tokens, count))
    }

    #[test]
    fn the_longest_match_comes_first_then_the_latest() {
        // 2 3 is followed by 4, later by 5; 1 2 3 by 4.
        assert_eq!(draft(&[1, 2, 3, 4, 9, 2, 3, 5, 9, 1, 2, 3], 3), [4, 9, 2]);
        assert_eq!(draft(&[1, 2, 3, 4, 9, 2, 3, 5, 8, 2, 3], 2), [5, 8]);
    }

    #[test]
    fn one_equal_token_is_no_match() {
        assert_eq!(Match::find(&[1, 2, 3, 1]), None);
        assert_eq!(Match::find(&[1]), None);
        assert_eq!(Match::find(&[]), None);
    }

    #[test]
    fn repetitions_are_continued() {
        assert_eq!(draft(&[7, 1, 2, 1, 2], 5), [1, 2, 1, 2, 1]);
        assert_eq!(draft(&[5; 40], 3), [5; 3]);
        let found = Match::find(&[5; 40]).expect("a match");
        assert_eq!(found.len, LONGEST);
    }
}
