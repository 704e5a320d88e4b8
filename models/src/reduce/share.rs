//! A share of tokens.

use std::fmt;
use std::str::FromStr;

/// The share of tokens to keep, above 0 and at most 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Share(f64);

impl Share {
    /// All tokens.
    pub const ALL: Self = Self(1.0);

    /// One of five tokens.
    pub const FIFTH: Self = Self(0.2);

    /// Creates a share; `None` unless it is above 0 and at most 1.
    pub fn new(share: f64) -> Option<Self> {
        (share > 0.0 && share <= 1.0).then_some(Self(share))
    }

    /// Returns the share as a number.
    pub fn get(self) -> f64 {
        self.0
    }

    /// Returns the number of tokens to keep out of `tokens`: rounded half up, at least one unless
    /// there are none.
    pub fn of(self, tokens: usize) -> usize {
        let kept = (self.0 * tokens as f64 + 0.5).floor() as usize;
        kept.max(1).min(tokens)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Share {
    type Err = ();

    /// Parses a ratio such as `0.25` or a percentage such as `25%`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let number = match text.strip_suffix('%') {
            Some(percent) => percent.parse::<f64>().map(|percent| percent / 100.0),
            None => text.parse(),
        };
        number.ok().and_then(Self::new).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_half_up() {
        let half = Share::new(0.5).unwrap();
        assert_eq!([0, 1, 2, 3, 5].map(|n| half.of(n)), [0, 1, 1, 2, 3]);
        assert_eq!(Share::new(0.001).unwrap().of(100), 1);
        assert_eq!(Share::ALL.of(7), 7);
    }

    #[test]
    fn ratios_and_percentages_are_read() {
        assert_eq!("25%".parse(), Ok(Share(0.25)));
        assert_eq!("0.25".parse(), Ok(Share(0.25)));
        for wrong in ["0", "1.1", "-1", "nan", "inf", "", "101%", "%"] {
            assert_eq!(wrong.parse::<Share>(), Err(()), "{wrong}");
        }
    }
}
