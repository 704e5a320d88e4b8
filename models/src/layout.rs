//! The place of an encoded medium in a prompt.

/// Position of a token on the axes time, height and width; equal for text.
pub type Position = [u32; 3];

/// The tokens of a medium: runs of features with text between them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout(Vec<Piece>);

/// A piece of a [`Layout`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text of the prompt, such as the tokens between the tiles of an image or the timestamp of a
    /// frame. It may contain control tokens.
    Text(String),
    /// Consecutive tokens that stand for rows of the medium's features.
    Run(Run),
}

/// Consecutive tokens of a medium.
///
/// A token's position is that of the text before the run plus the token's offset. Text after the
/// run continues [`extent`](Self::extent) positions after the text before it, so that dropping
/// tokens moves neither the other tokens nor the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    offsets: Vec<Position>,
    extent: u32,
    bidirectional: bool,
}

impl Run {
    /// Creates a run of `tokens` tokens at consecutive positions, like text.
    pub fn sequence(tokens: usize) -> Self {
        let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
        Self {
            offsets: (0..tokens).map(|i| [i; 3]).collect(),
            extent: tokens,
            bidirectional: false,
        }
    }

    /// Creates a run of `grid` tokens in time, height and width (M-RoPE, Wang et al. 2024, section
    /// 2.1; `get_rope_index` of the reference). In time, tokens are `time_step` positions apart.
    /// Text continues after the largest position.
    pub fn grid(grid: [usize; 3], time_step: u32) -> Self {
        // A file may claim any frame rate.
        Self::timed_grid(grid, |i| (i as u32).saturating_mul(time_step))
    }

    /// Works as [`grid`](Self::grid), with the position in time that `time` returns for each slice.
    /// Times must not descend.
    pub fn timed_grid([times, height, width]: [usize; 3], time: impl Fn(usize) -> u32) -> Self {
        let [height, width] = [height, width].map(|n| n as u32);
        let slices = (0..times).flat_map(|i| {
            let time = time(i);
            (0..height).flat_map(move |j| (0..width).map(move |k| [time, j, k]))
        });
        let last = times.checked_sub(1).map_or(0, &time);
        Self {
            offsets: slices.collect(),
            extent: last.saturating_add(1).max(height).max(width),
            bidirectional: false,
        }
    }

    /// Creates a run of tokens with the given offsets, after which text continues at `extent`.
    pub fn from_offsets(offsets: Vec<Position>, extent: u32) -> Self {
        Self {
            offsets,
            extent,
            bidirectional: false,
        }
    }

    /// Makes the tokens of the run attend to each other in both directions.
    #[must_use]
    pub fn bidirectional(self) -> Self {
        Self {
            bidirectional: true,
            ..self
        }
    }

    /// Returns the run with only the tokens at `kept`, at their original positions.
    ///
    /// # Panics
    /// If an index is not below [`len`](Self::len).
    #[must_use]
    pub fn keep(&self, kept: &[usize]) -> Self {
        Self {
            offsets: kept.iter().map(|&token| self.offsets[token]).collect(),
            ..*self
        }
    }

    /// Returns the number of tokens.
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Returns `true` if the run has no tokens.
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// Returns the offset of each token from the position of the text before the run.
    pub fn offsets(&self) -> &[Position] {
        &self.offsets
    }

    /// Returns the distance from the position of the text before the run to that of the text after
    /// it.
    pub fn extent(&self) -> u32 {
        self.extent
    }

    /// Returns `true` if the tokens attend to each other in both directions.
    pub fn is_bidirectional(&self) -> bool {
        self.bidirectional
    }
}

impl Layout {
    /// Creates a layout of the given pieces.
    pub fn new(pieces: Vec<Piece>) -> Self {
        Self(pieces)
    }

    /// Returns the pieces, in the order of the prompt.
    pub fn pieces(&self) -> &[Piece] {
        &self.0
    }

    /// Returns the runs, in the order of the prompt. Their tokens stand for consecutive rows of
    /// features.
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Run(run) => Some(run),
            Piece::Text(_) => None,
        })
    }

    /// Returns the number of tokens that stand for features. Text between runs is not counted.
    pub fn tokens(&self) -> usize {
        self.runs().map(Run::len).sum()
    }

    /// Returns the layout with only the tokens at `kept`, sorted indices over all runs, at their
    /// original positions. Text between runs stays.
    ///
    /// # Panics
    /// If an index is not below [`tokens`](Self::tokens).
    #[must_use]
    pub fn keep(&self, kept: &[usize]) -> Self {
        assert!(
            kept.last().is_none_or(|&last| last < self.tokens()),
            "a kept token is not one of the layout"
        );
        let mut first = 0;
        let pieces = self.0.iter().map(|piece| match piece {
            Piece::Text(text) => Piece::Text(text.clone()),
            Piece::Run(run) => {
                let range = first..first + run.len();
                first = range.end;
                let [from, to] = [range.start, range.end]
                    .map(|bound| kept.partition_point(|&token| token < bound));
                let of_run: Vec<usize> = kept[from..to]
                    .iter()
                    .map(|token| token - range.start)
                    .collect();
                Piece::Run(run.keep(&of_run))
            }
        });
        Self(pieces.collect())
    }

    /// Joins the layouts of a medium's pieces, of which there is at least one. If they have text,
    /// their pieces follow each other; otherwise they are parts of one run, whose tokens follow each
    /// other and keep their offsets.
    ///
    /// # Panics
    /// If there is no part.
    #[must_use]
    pub fn join(parts: &[&Self]) -> Self {
        if parts.iter().any(|part| part.has_text()) {
            return Self(parts.iter().flat_map(|part| &part.0).cloned().collect());
        }
        let runs: Vec<&Run> = parts.iter().flat_map(|part| part.runs()).collect();
        Run {
            offsets: runs.iter().flat_map(|run| &run.offsets).copied().collect(),
            ..*runs[0]
        }
        .into()
    }

    /// Returns `true` if there is text between the runs.
    pub fn has_text(&self) -> bool {
        self.0.iter().any(|piece| matches!(piece, Piece::Text(_)))
    }
}

impl From<Run> for Layout {
    fn from(run: Run) -> Self {
        Self(vec![Piece::Run(run)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_tokens_move_no_others() {
        let run = Run::grid([1, 2, 3], 1);
        let kept = run.keep(&[1, 5]);
        assert_eq!(kept.offsets(), [[0, 0, 1], [0, 1, 2]]);
        assert_eq!((kept.len(), kept.extent()), (2, 3));
        assert_eq!(run.keep(&[]).extent(), 3);
    }

    #[test]
    fn tokens_of_all_runs_are_counted_through() {
        let layout = Layout::new(vec![
            Piece::Run(Run::sequence(3)),
            Piece::Text("then".to_owned()),
            Piece::Run(Run::sequence(2)),
        ]);
        let kept = layout.keep(&[2, 4]);
        let runs: Vec<&[Position]> = kept.runs().map(Run::offsets).collect();
        assert_eq!(runs, [[[2, 2, 2]], [[1, 1, 1]]]);
        assert!(kept.has_text());
        assert_eq!(layout.keep(&[]).tokens(), 0);
    }

    #[test]
    fn parts_of_a_run_are_joined() {
        let run = Run::grid([2, 1, 3], 5);
        let parts = [run.keep(&[0, 2]), run.keep(&[]), run.keep(&[4])].map(Layout::from);
        let [a, b, c] = &parts;
        assert_eq!(Layout::join(&[a, b, c]), run.keep(&[0, 2, 4]).into());
        let frame = |text: &str| vec![Piece::Text(text.to_owned()), Piece::Run(run.clone())];
        let parts = ["0", "1"].map(|text| Layout::new(frame(text)));
        let whole = [frame("0"), frame("1")].concat();
        assert_eq!(Layout::join(&[&parts[0], &parts[1]]), Layout::new(whole));
    }

    #[test]
    fn time_goes_in_steps() {
        let run = Run::grid([3, 2, 2], 50);
        assert_eq!(run.offsets()[4], [50, 0, 0]);
        assert_eq!(run.offsets()[11], [100, 1, 1]);
        assert_eq!(run.extent(), 101);
        // A file may claim any frame rate.
        assert_eq!(Run::grid([3, 1, 1], u32::MAX).extent(), u32::MAX);
    }
}
