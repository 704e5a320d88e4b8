//! The layers of a vision tower, with merging of units between attention and MLP.

use burn::tensor::Tensor;
use edge_lmm_ops::{KernelBackend, Mask, WeightedMask, stage};

use crate::error::ModelError;
use crate::model::UnitsLeft;
use crate::monitor::Monitor;
use crate::reduce::merge::{Pairs, Units};
use crate::reduce::rows::indices;
use crate::reduce::{Merge, Reduction, Reductions};
use crate::text::rotary::RotaryTable;

/// A layer of a tower, in the halves between which units are merged.
pub(crate) trait TowerLayer<B: KernelBackend> {
    /// Attention with its norm, added to the residual `x`.
    ///
    /// # Errors
    /// If `monitor` cancels.
    fn attend(
        &self,
        x: Tensor<B, 2>,
        input: AttentionInput<'_, B>,
        monitor: &mut Monitor<'_>,
    ) -> Result<Attended<B>, ModelError>;

    /// The MLP with its norm, added to the residual `x`.
    ///
    /// # Errors
    /// If `monitor` cancels.
    fn mlp(&self, x: Tensor<B, 2>, monitor: &mut Monitor<'_>) -> Result<Tensor<B, 2>, ModelError>;
}

/// Arguments of attention in a tower.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionInput<'a, B: KernelBackend> {
    /// The keys that queries attend to, and their weights.
    pub mask: WeightedMask<'a>,
    /// Rotation of queries and keys.
    pub table: Option<&'a RotaryTable<B>>,
    /// Returns the keys before rotation.
    pub keys: bool,
    /// Returns the attention that every key receives.
    pub received: bool,
}

/// Result of attention in a tower.
pub(crate) struct Attended<B: KernelBackend> {
    /// `[rows, width]`
    pub x: Tensor<B, 2>,
    /// Keys before rotation, summed over heads: `[rows, head_dim]`.
    pub keys: Option<Tensor<B, 2>>,
    /// Mean over heads and queries of the attention probability of each key: `[rows]`.
    pub received: Option<Tensor<B, 1>>,
}

impl<B: KernelBackend> Attended<B> {
    /// Replaces the rows.
    pub fn map(self, f: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 2>) -> Self {
        Self {
            x: f(self.x),
            ..self
        }
    }
}

/// The units that attend to each other.
#[derive(Clone, Copy)]
pub(crate) enum Scopes<'a> {
    /// All units, and the leading rows.
    Whole,
    /// Units of the same slice in time, or of the same window of it: the number of a unit's slice,
    /// and that of its scope in a layer.
    Slices {
        /// Slice of a unit.
        slice: &'a dyn Fn(usize) -> usize,
        /// Scope of a unit in a layer; units of a scope are of one slice and adjacent.
        scope: &'a dyn Fn(usize, usize) -> usize,
    },
}

impl Scopes<'_> {
    /// Returns the bounds of units in slices, and in scopes of layer `layer`.
    fn bounds(self, units: &Units, layer: usize) -> [Vec<usize>; 2] {
        match self {
            Self::Whole => {
                let whole = vec![0, units.ids.len()];
                [whole.clone(), whole]
            }
            Self::Slices { slice, scope } => {
                [units.bounds(slice), units.bounds(|unit| scope(layer, unit))]
            }
        }
    }
}

/// A tower's layers and the reduction of its units.
pub(crate) struct Tower<'a, B: KernelBackend, L> {
    pub layers: &'a [L],
    /// Rotation of every row.
    pub table: Option<RotaryTable<B>>,
    /// Rows before the units, such as a class token.
    pub leading: usize,
    pub scopes: Scopes<'a>,
    pub methods: &'a Reductions,
    /// Layers whose outputs are returned with those of the last one, in ascending order.
    pub inner: &'a [usize],
}

/// The rows after a tower's layers.
pub(crate) struct TowerOutput<B: KernelBackend> {
    /// `[leading + units * rows, width]`, units in the order of their numbers
    pub x: Tensor<B, 2>,
    /// The units that are left.
    pub left: UnitsLeft,
    /// Outputs of the inner layers that were asked for, in the form of `x`. Their units are merged as
    /// those of `x`.
    pub inner: Vec<Tensor<B, 2>>,
}

impl<B: KernelBackend, L: TowerLayer<B>> Tower<'_, B, L> {
    /// Runs the layers over the rows of `units`.
    ///
    /// # Errors
    /// If `monitor` cancels.
    pub fn run(
        mut self,
        mut x: Tensor<B, 2>,
        mut units: Units,
        monitor: &mut Monitor<'_>,
    ) -> Result<TowerOutput<B>, ModelError> {
        let depth = self.layers.len();
        let merge = self.methods.merge();
        let [slices, _] = self.scopes.bounds(&units, 0);
        let first: Vec<usize> = slices.windows(2).map(|ends| ends[1] - ends[0]).collect();
        let mut received = None;
        let mut inner = Vec::with_capacity(self.inner.len());
        for (i, layer) in self.layers.iter().enumerate() {
            let _layer = stage::scope(format_args!("blocks.{i}"));
            let rest = (merge.as_ref(), &first[..]);
            x = monitor.pass(i, depth, |monitor| {
                let wants_attention = i + 1 == depth && self.methods.needs_attention();
                let attended = self.attend(i, layer, x, &units, wants_attention, monitor)?;
                received = attended.received;
                let x = match attended.keys {
                    Some(keys) => {
                        self.merge(i, (attended.x, &mut inner), keys, &mut units, rest)?
                    }
                    None => attended.x,
                };
                layer.mlp(x, monitor)
            })?;
            if self.inner.contains(&i) {
                inner.push(x.clone());
            }
        }
        let attention = received.map(|received| of_units(received, self.leading, units.rows));
        let steps = merge.map(|merge| Reduction::Merge(merge).left(units.ids.len()));
        let left = UnitsLeft {
            ids: units.ids,
            attention: attention.transpose()?,
            steps: steps.into_iter().collect(),
        };
        Ok(TowerOutput { x, left, inner }.sorted(self.leading, units.rows))
    }

    fn attend(
        &self,
        i: usize,
        layer: &L,
        x: Tensor<B, 2>,
        units: &Units,
        received: bool,
        monitor: &mut Monitor<'_>,
    ) -> Result<Attended<B>, ModelError> {
        let _stage = stage::module("attention");
        let [_, scopes] = self.scopes.bounds(units, i);
        let rows: Vec<usize> = scopes.iter().map(|bound| bound * units.rows).collect();
        let weights = units.key_weights(self.leading);
        let input = AttentionInput {
            mask: WeightedMask {
                mask: match self.scopes {
                    Scopes::Whole => Mask::Full,
                    Scopes::Slices { .. } => Mask::Segments(&rows),
                },
                key_weights: weights.as_deref(),
            },
            table: self.table.as_ref(),
            keys: self.methods.merges(),
            received,
        };
        layer.attend(x, input, monitor)
    }

    /// Merges units after the attention of layer `i`, in `x` and in the outputs of inner layers.
    fn merge(
        &mut self,
        i: usize,
        (x, inner): (Tensor<B, 2>, &mut Vec<Tensor<B, 2>>),
        keys: Tensor<B, 2>,
        units: &mut Units,
        (merge, first): (Option<&Merge>, &[usize]),
    ) -> Result<Tensor<B, 2>, ModelError> {
        let Some(merge) = merge else { return Ok(x) };
        let _stage = stage::module("merge");
        let [slices, scopes] = self.scopes.bounds(units, i);
        let [rows, _] = x.dims();
        let count = rows - self.leading;
        let depth = self.layers.len();
        let left = |slice: usize| merge.left(first[slice], i, depth);
        let keys = match self.leading {
            0 => keys,
            leading => keys.narrow(0, leading, count),
        };
        let pairs = Pairs::find(keys, units, [&slices, &scopes], left)?;
        let Some(pairs) = pairs else { return Ok(x) };
        let left = units.row_indices(pairs.left());
        if let Some(table) = &self.table {
            self.table = Some(table.select(&left));
        }
        let merge_rows = |x: Tensor<B, 2>, units: &mut Units| match self.leading {
            0 => pairs.merge(x, units),
            leading => {
                let merged = pairs.merge(x.clone().narrow(0, leading, count), units);
                Tensor::cat(vec![x.narrow(0, 0, leading), merged], 0)
            }
        };
        for x in inner {
            *x = merge_rows(x.clone(), &mut units.clone());
        }
        Ok(merge_rows(x, units))
    }
}

/// Sums the attention that rows receive over the rows of each unit.
fn of_units<B: KernelBackend>(
    received: Tensor<B, 1>,
    leading: usize,
    rows: usize,
) -> Result<Vec<f32>, ModelError> {
    let received: Vec<f32> = received
        .into_data()
        .into_vec()
        .map_err(|error| ModelError::config(format!("attention is not f32: {error:?}")))?;
    let units = received[leading..].chunks_exact(rows);
    Ok(units.map(|rows| rows.iter().sum()).collect())
}

impl<B: KernelBackend> TowerOutput<B> {
    /// Sorts the units by their numbers.
    fn sorted(mut self, leading: usize, rows: usize) -> Self {
        let ids = &mut self.left.ids;
        if ids.is_sorted() {
            return self;
        }
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_unstable_by_key(|&place| ids[place]);
        ids.sort_unstable();
        let of_unit = |&place: &usize| leading + place * rows..leading + (place + 1) * rows;
        let places: Vec<usize> = (0..leading).chain(order.iter().flat_map(of_unit)).collect();
        let places = indices(&places, &self.x.device());
        for x in std::iter::once(&mut self.x).chain(&mut self.inner) {
            *x = x.clone().select(0, places.clone());
        }
        if let Some(attention) = &mut self.left.attention {
            *attention = order.iter().map(|&place| attention[place]).collect();
        }
        self
    }
}
