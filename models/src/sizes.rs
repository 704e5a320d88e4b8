//! Checks of the values in a section of a configuration, with the same messages for all families.

use edge_lmm_preprocess::settings::out_of_range;

use crate::error::ModelError;

/// Largest width of a residual stream.
pub(crate) const WIDTH: usize = 1 << 16;
/// Largest width of a feed-forward.
pub(crate) const FFN: usize = 1 << 20;
/// Largest number of layers.
pub(crate) const LAYERS: usize = 1 << 10;
/// Largest number of heads, and of elements of a head.
pub(crate) const HEADS: usize = 1 << 10;
/// Largest number of rows of an embedding table.
pub(crate) const VOCABULARY: usize = 1 << 22;
/// Largest number of positions of a language model.
pub(crate) const POSITIONS: usize = 1 << 24;

/// The name of a section of `config.json`, which precedes the names of fields in messages; empty for
/// the top level.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Section<'a>(pub &'a str);

impl Section<'_> {
    fn field(&self, name: &str) -> String {
        match self.0 {
            "" => name.to_owned(),
            section => format!("{section}.{name}"),
        }
    }

    /// Checks sizes, given as `(field, value, largest)`, against 1 and the largest value.
    ///
    /// # Errors
    /// Names the first that is out of range.
    pub fn sizes(&self, sizes: &[(&str, usize, usize)]) -> Result<(), ModelError> {
        match out_of_range(sizes) {
            Some(message) => Err(ModelError::config(self.field(&message))),
            None => Ok(()),
        }
    }

    /// Checks that a width is divisible by a number of heads.
    ///
    /// # Errors
    /// If it is not.
    pub fn heads(&self, width: usize, heads: usize) -> Result<(), ModelError> {
        if heads > 0 && width.is_multiple_of(heads) {
            return Ok(());
        }
        let section = match self.0 {
            "" => String::new(),
            section => format!("{section}: "),
        };
        Err(ModelError::config(format!(
            "{section}width {width} is not divisible by {heads} heads"
        )))
    }

    /// Checks that a field has the only supported value.
    ///
    /// # Errors
    /// If it has another one.
    pub fn only(&self, name: &str, found: &str, expected: &str) -> Result<(), ModelError> {
        if found == expected {
            return Ok(());
        }
        Err(ModelError::config(format!(
            "{} is {found:?}, expected {expected:?}",
            self.field(name)
        )))
    }

    /// Checks that the vocabulary has the token of a field.
    ///
    /// # Errors
    /// If the token's id is too large.
    pub fn token(&self, name: &str, id: u32, vocabulary: usize) -> Result<(), ModelError> {
        if (id as usize) < vocabulary {
            return Ok(());
        }
        Err(ModelError::config(format!(
            "{} is {id}, the vocabulary has {vocabulary} tokens",
            self.field(name)
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_section_and_field() {
        let message = |result: Result<(), ModelError>| result.unwrap_err().to_string();
        let vision = Section("vision_config");
        assert!(
            message(vision.sizes(&[("depth", 3, LAYERS), ("patch_size", 0, 8)]))
                .contains("vision_config.patch_size is 0, expected 1 to 8")
        );
        assert!(
            message(Section("").sizes(&[("vocab_size", 9, 8)]))
                .contains("vocab_size is 9, expected 1 to 8")
        );
        assert!(
            message(vision.heads(10, 3))
                .contains("vision_config: width 10 is not divisible by 3 heads")
        );
        assert!(message(vision.heads(10, 0)).contains("0 heads"));
        assert!(
            message(vision.only("hidden_act", "relu", "silu"))
                .contains("vision_config.hidden_act is \"relu\", expected \"silu\"")
        );
        assert!(
            message(vision.token("bos", 8, 8))
                .contains("vision_config.bos is 8, the vocabulary has 8")
        );
        assert!(vision.sizes(&[("depth", 8, 8)]).is_ok());
        assert!(vision.heads(12, 3).is_ok());
        assert!(vision.token("bos", 7, 8).is_ok());
    }
}
