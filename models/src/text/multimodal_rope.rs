//! Positions along time, height and width (M-RoPE, Wang et al. 2024, section 2.1).

use crate::model::{MediaInput, Position, Span};

/// Computes the positions of a prompt's tokens (`get_rope_index` of the reference). Text tokens
/// have equal positions on all axes. Tokens of an image or video have the next text position plus
/// their offset in time, height and width. Text then continues after the largest position so far.
/// Patches adjacent in time are [`MediaInput::time_step`] positions apart.
pub(crate) fn multimodal_positions(
    len: usize,
    spans: &[Span],
    media: &[MediaInput],
    merge: usize,
) -> Vec<Position> {
    let mut positions: Vec<Position> = Vec::with_capacity(len);
    let mut next = 0;
    let text = |positions: &mut Vec<Position>, next: &mut u32, until: usize| {
        while positions.len() < until {
            positions.push([*next; 3]);
            *next = next.saturating_add(1);
        }
    };
    for span in spans {
        text(&mut positions, &mut next, span.start);
        let medium = &media[span.medium];
        let [t, h, w] = medium.grid.map(|n| n as u32);
        let (h, w) = (h / merge as u32, w / merge as u32);
        for i in 0..t {
            // A file may claim any frame rate.
            let time = next.saturating_add(i.saturating_mul(medium.time_step));
            for j in 0..h {
                positions.extend((0..w).map(|k| [time, next + j, next + k]));
            }
        }
        let last = t.saturating_sub(1).saturating_mul(medium.time_step);
        next = next.saturating_add(last.saturating_add(1).max(h).max(w));
    }
    text(&mut positions, &mut next, len);
    positions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MediaKind;
    use crate::prompt::placeholder::expand_placeholders;

    fn medium(grid: [usize; 3], time_step: u32) -> MediaInput {
        MediaInput {
            kind: MediaKind::Image,
            values: Vec::new(),
            shape: vec![0, 0],
            grid,
            time_step,
            tokens: grid.iter().product::<usize>() / 4,
        }
    }

    /// Computed by hand from the paper's figure: text 0 1, a 2x3 image from 2 on, text from 5.
    #[test]
    fn text_goes_on_after_the_largest_position() {
        let media = [medium([1, 4, 6], 1)];
        let ids = [7, 7, 9, 8];
        let (ids, spans) = expand_placeholders(&ids, |id| id == 9, &media).unwrap();
        assert_eq!(ids, [7, 7, 9, 9, 9, 9, 9, 9, 8]);
        let positions = multimodal_positions(ids.len(), &spans, &media, 2);
        assert_eq!(positions[1], [1, 1, 1]);
        assert_eq!(positions[2], [2, 2, 2]);
        assert_eq!(positions[4], [2, 2, 4]);
        assert_eq!(positions[7], [2, 3, 4]);
        assert_eq!(positions[8], [5, 5, 5]);
    }

    /// The example in the documentation of the reference's `get_rope_index`: three temporal patches
    /// of 2x2 tokens, 50 positions apart, then text from 101 on.
    #[test]
    fn time_goes_in_steps() {
        let media = [medium([3, 4, 4], 50)];
        let ids = [9, 8, 8];
        let (ids, spans) = expand_placeholders(&ids, |id| id == 9, &media).unwrap();
        let positions = multimodal_positions(ids.len(), &spans, &media, 2);
        assert_eq!(positions[3], [0, 1, 1]);
        assert_eq!(positions[4], [50, 0, 0]);
        assert_eq!(positions[11], [100, 1, 1]);
        assert_eq!(positions[12..], [[101; 3], [102; 3]]);
    }
}
