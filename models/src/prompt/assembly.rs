//! Places of media in a tokenized prompt.

use crate::error::ModelError;
use crate::layout::{Layout, Piece, Position, Run};

/// Consecutive tokens of a prompt that stand for features of a medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First token.
    pub start: usize,
    /// Number of tokens.
    pub len: usize,
    /// Index of the medium.
    pub medium: usize,
    /// Row of the medium's features that the first token stands for.
    pub row: usize,
    /// Position of text that follows.
    pub next_position: u32,
    /// `true` if the tokens attend to each other in both directions.
    pub bidirectional: bool,
}

impl Span {
    /// One past the last token.
    pub fn end(&self) -> usize {
        self.start + self.len
    }
}

/// A prompt in tokens, with places for the features of its media.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// Token ids; a placeholder for each row of features.
    pub ids: Vec<u32>,
    /// Places of the media, in order. A medium may have several.
    pub spans: Vec<Span>,
    /// Position of each token.
    pub positions: Vec<Position>,
    /// Position of the first generated token.
    pub next_position: u32,
}

impl Prompt {
    /// Number of tokens that stand for media.
    pub fn visual_tokens(&self) -> usize {
        self.spans.iter().map(|span| span.len).sum()
    }

    /// Appends tokens of text.
    pub fn push_text(&mut self, ids: &[u32]) {
        for &id in ids {
            self.ids.push(id);
            self.positions.push([self.next_position; 3]);
            self.next_position = self.next_position.saturating_add(1);
        }
    }
}

/// Builds a prompt from left to right.
#[derive(Debug, Clone)]
pub struct PromptBuilder(Prompt);

impl Default for PromptBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl PromptBuilder {
    /// An empty prompt.
    pub fn new() -> Self {
        Self(Prompt {
            ids: Vec::new(),
            spans: Vec::new(),
            positions: Vec::new(),
            next_position: 0,
        })
    }

    /// Appends tokens of text.
    pub fn text(&mut self, ids: &[u32]) {
        self.0.push_text(ids);
    }

    /// Appends tokens of text that share one position.
    pub fn together(&mut self, ids: &[u32]) {
        let prompt = &mut self.0;
        prompt.ids.extend(ids);
        let position = [prompt.next_position; 3];
        prompt.positions.extend(ids.iter().map(|_| position));
        prompt.next_position = prompt.next_position.saturating_add(1);
    }

    /// Appends a run of `medium`, whose features begin with row `row`; `placeholder` is the id of
    /// its tokens.
    pub fn run(&mut self, placeholder: u32, medium: usize, row: usize, run: &Run) {
        let prompt = &mut self.0;
        let base = prompt.next_position;
        prompt.next_position = base.saturating_add(run.extent());
        if run.is_empty() {
            return;
        }
        prompt.spans.push(Span {
            start: prompt.ids.len(),
            len: run.len(),
            medium,
            row,
            next_position: prompt.next_position,
            bidirectional: run.is_bidirectional(),
        });
        let positions = run.offsets().iter();
        prompt
            .positions
            .extend(positions.map(|offset| offset.map(|axis| base.saturating_add(axis))));
        prompt
            .ids
            .extend(std::iter::repeat_n(placeholder, run.len()));
    }

    /// Appends all runs of a medium without text between them.
    pub fn medium(&mut self, placeholder: u32, medium: usize, layout: &Layout) {
        let mut row = 0;
        for run in layout.runs() {
            self.run(placeholder, medium, row, run);
            row += run.len();
        }
    }

    /// The finished prompt.
    pub fn finish(self) -> Prompt {
        self.0
    }
}

/// Builds a prompt from tokens with one placeholder for each run of the media.
///
/// # Errors
/// If the number of placeholders differs from the number of runs.
pub fn expand_placeholders(
    ids: &[u32],
    is_placeholder: impl Fn(u32) -> bool,
    media: &[&Layout],
) -> Result<Prompt, ModelError> {
    let found = ids.iter().filter(|&&id| is_placeholder(id)).count();
    let expected: usize = media.iter().map(|layout| layout.runs().count()).sum();
    if found != expected {
        return Err(ModelError::Placeholders { found, expected });
    }
    let mut runs = media.iter().enumerate().flat_map(|(medium, layout)| {
        let rows = layout.runs().scan(0, |row, run| {
            let first = *row;
            *row += run.len();
            Some((first, run))
        });
        rows.map(move |(row, run)| (medium, row, run))
    });
    let mut prompt = PromptBuilder::new();
    for id in ids {
        let run = is_placeholder(*id).then(|| runs.next()).flatten();
        match run {
            Some((medium, row, run)) => prompt.run(*id, medium, row, run),
            None => prompt.text(std::slice::from_ref(id)),
        }
    }
    Ok(prompt.finish())
}

/// The text of a medium in a rendered prompt: its text pieces, and `placeholder` for each run.
pub fn medium_text(layout: &Layout, placeholder: &str) -> String {
    let piece = |piece: &Piece| match piece {
        Piece::Text(text) => text.clone(),
        Piece::Run(_) => placeholder.to_owned(),
    };
    layout.pieces().iter().map(piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(ids: &[u32], media: &[&Layout]) -> Result<Prompt, ModelError> {
        expand_placeholders(ids, |id| id == 9, media)
    }

    #[test]
    fn every_run_needs_its_place() {
        let layout = Run::sequence(1).into();
        let error = expand(&[1, 2], &[&layout]).unwrap_err();
        assert!(error.to_string().contains("found 0"), "{error}");
    }

    /// Worked by hand from the figure of the Qwen2-VL paper: text 0 1, an image of 2x3 tokens
    /// from 2 on, text from 5.
    #[test]
    fn text_continues_after_the_largest_position() {
        let layout = Run::grid([1, 2, 3], 1).into();
        let prompt = expand(&[7, 7, 9, 8], &[&layout]).unwrap();
        assert_eq!(prompt.ids, [7, 7, 9, 9, 9, 9, 9, 9, 8]);
        assert_eq!(prompt.positions[1], [1, 1, 1]);
        assert_eq!(prompt.positions[2], [2, 2, 2]);
        assert_eq!(prompt.positions[4], [2, 2, 4]);
        assert_eq!(prompt.positions[7], [2, 3, 4]);
        assert_eq!(prompt.positions[8], [5, 5, 5]);
        assert_eq!(prompt.next_position, 6);
    }

    /// The example in the documentation of the reference's `get_rope_index`: three patches in
    /// time of 2x2 tokens, 50 positions apart, then text from 101 on.
    #[test]
    fn text_continues_after_the_last_frame() {
        let layout = Run::grid([3, 2, 2], 50).into();
        let prompt = expand(&[9, 8, 8], &[&layout]).unwrap();
        assert_eq!(prompt.positions[4], [50, 0, 0]);
        assert_eq!(prompt.positions[12..], [[101; 3], [102; 3]]);
    }

    #[test]
    fn runs_follow_each_other_with_text_between_them() {
        let run = |tokens| Piece::Run(Run::sequence(tokens));
        let layout = Layout::new(vec![run(2), Piece::Text("<row>".to_owned()), run(1)]);
        assert_eq!(medium_text(&layout, "<image>"), "<image><row><image>");
        let other = Run::sequence(2).into();
        let prompt = expand(&[9, 5, 9, 6, 9], &[&layout, &other]).unwrap();
        assert_eq!(prompt.ids, [9, 9, 5, 9, 6, 9, 9]);
        let place = |span: &Span| (span.start, span.len, span.medium, span.row);
        let places: Vec<_> = prompt.spans.iter().map(place).collect();
        assert_eq!(places, [(0, 2, 0, 0), (3, 1, 0, 2), (5, 2, 1, 0)]);
    }
}
