//! The declaration of a weight.

use super::extent::Extent;

/// The part of a model that a weight belongs to; quantization is chosen per part.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The vision encoder.
    Vision,
    /// The audio encoder.
    Audio,
    /// The layers that map features into the language model: merger, MLP, Q-Former.
    Projector,
    /// The language model.
    Text,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Vision => "vision",
            Self::Audio => "audio",
            Self::Projector => "projector",
            Self::Text => "text",
        })
    }
}

/// Rows of a weight that come from one checkpoint tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowSource {
    /// Checkpoint name.
    pub tensor: String,
    /// The rows, and the number that the tensor must have; its other dimensions are the columns.
    pub rows: Extent,
}

/// The storage of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// A packed matrix in the kernels' layout, of a format chosen at conversion.
    Packed {
        /// Inputs.
        cols: usize,
    },
    /// Plain f32 values, `[len]` or, with columns, `[rows, cols]`.
    Dense {
        /// Columns, for a matrix.
        cols: Option<usize>,
    },
}

/// The module that computes the inputs of a linear layer, if it can take a scale of them: a norm, or
/// a linear layer whose outputs are used only, and linearly, in this layer's inputs.
///
/// Multiplying row [`Self::row`]`(j)` (an element, for a vector) of all weights of the module by a
/// positive factor multiplies input `j` of the layer by it, and dividing column `j` of every layer
/// that folds into that row by the factor leaves the model's function unchanged. This is how AWQ
/// (Lin et al. 2023, section 3.2) protects important columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fold {
    /// Path of the module in the record, such as `text.layers.0.mlp_norm`.
    pub module: String,
    /// The row for column 0.
    pub first: usize,
    /// Rows that stay together.
    pub unit: usize,
    /// Repetitions of each unit of rows in the columns: query heads per key-value
    /// head, or patches per token.
    pub repeats: usize,
}

impl Fold {
    /// Returns the row of the module's weights for a column.
    pub fn row(&self, column: usize) -> usize {
        self.first + column / (self.unit * self.repeats) * self.unit + column % self.unit
    }

    /// Returns `true` if a weight belongs to the module.
    pub fn scales(&self, weight: &str) -> bool {
        weight
            .strip_prefix(&*self.module)
            .and_then(|rest| rest.strip_prefix('.'))
            .is_some_and(|field| !field.contains('.'))
    }
}

/// One weight of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightSpec {
    /// Name in the record: the path of the module's field.
    pub name: String,
    /// Part of the model.
    pub part: Part,
    /// Storage in the record.
    pub storage: Storage,
    /// Checkpoint tensors, stacked by rows in this order.
    pub sources: Vec<RowSource>,
    /// The columns, of which every source has as many as the extent's source; 1 for a vector.
    pub columns: Extent,
    /// `true` if the checkpoint stores the values less 1, as the scales of Gemma's norms.
    pub zero_centered: bool,
    /// `true` if the checkpoint stores the matrix transposed: the rows as columns.
    pub transposed: bool,
    /// `true` if activations are multiplied with it: every packed weight, except an embedding table
    /// that is not also the output head.
    pub product: bool,
    /// The module that a scale of the inputs can be moved to.
    pub folds_into: Option<Fold>,
}

impl WeightSpec {
    /// Returns the number of rows (elements, for a vector).
    pub fn rows(&self) -> usize {
        self.sources.iter().map(|source| source.rows.len()).sum()
    }

    /// Returns the number of columns; 1 for a vector.
    pub fn cols(&self) -> usize {
        self.columns.len()
    }

    /// Returns `true` if the outputs are gates of a recurrent state. They are few, and their errors are
    /// multiplied over all tokens.
    pub fn is_recurrent_gate(&self) -> bool {
        self.name.ends_with(".delta.gates.weight")
    }

    /// Returns `true` if the weight belongs to the layer that predicts further tokens, which is used
    /// only to draft them.
    pub fn is_mtp(&self) -> bool {
        self.name.starts_with("text.mtp.")
    }

    /// Returns `true` if the rows are those of the vocabulary: the table of embeddings and the output
    /// head.
    pub fn is_vocabulary(&self) -> bool {
        matches!(&*self.name, "text.embedding.weight" | "text.head.weight")
    }
}

/// The inputs of a linear layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inputs {
    /// The columns of its matrix.
    pub columns: Extent,
    /// The module that a scale of them can be moved to.
    pub folds_into: Option<Fold>,
}

impl<E: Into<Extent>> From<E> for Inputs {
    fn from(columns: E) -> Self {
        Self {
            columns: columns.into(),
            folds_into: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_given_by_rows() {
        let fold = |first, unit, repeats| Fold {
            module: "text.layers.1.qkv".to_owned(),
            first,
            unit,
            repeats,
        };
        let rows = |fold: Fold| (0..8).map(|j| fold.row(j)).collect::<Vec<_>>();
        // Four query heads of two elements over two key-value heads, whose values begin at row 10.
        assert_eq!(rows(fold(10, 2, 2)), [10, 11, 10, 11, 12, 13, 12, 13]);
        // Four patches of two elements behind one norm.
        assert_eq!(rows(fold(0, 2, 4)), [0, 1, 0, 1, 0, 1, 0, 1]);
        assert_eq!(rows(fold(5, 8, 1)), [5, 6, 7, 8, 9, 10, 11, 12]);
        assert!(fold(0, 1, 1).scales("text.layers.1.qkv.weight"));
        assert!(!fold(0, 1, 1).scales("text.layers.1.qkv_norm.gamma"));
        assert!(!fold(0, 1, 1).scales("text.layers.1.qkv.lora.weight"));
    }
}
