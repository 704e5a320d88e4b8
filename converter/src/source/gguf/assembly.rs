//! Assembly of the normal form's tensors from those of a GGUF file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::error::{Result, SourceError, malformed, some_of};
use super::super::view::{Stored, Tiles, View};
use super::super::{Tensor, TensorInfo};
use super::element::READABLE;
use super::header::Header;
use super::parts::Part;
use super::value::shortest;

/// Tensors of the normal form by name.
pub(super) type Tensors = BTreeMap<String, Tensor>;

/// A GGUF file whose tensors are being renamed. Every tensor must be used: an unused one means that
/// the file holds a different model.
pub(super) struct Assembly<'h, 'a> {
    /// The file's checked header.
    pub(super) header: &'h Header<'a>,
    parts: &'h [Part],
    /// Names of the parts, for messages.
    files: Vec<Arc<str>>,
    left: BTreeSet<&'a str>,
}

impl<'h, 'a> Assembly<'h, 'a> {
    pub(super) fn new(header: &'h Header<'a>, parts: &'h [Part]) -> Self {
        let name = |part: &Part| part.path.display().to_string().into();
        Self {
            header,
            parts,
            files: parts.iter().map(name).collect(),
            left: header.tensors.keys().copied().collect(),
        }
    }

    /// Returns `true` if the file has the tensor.
    pub(super) fn has(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    /// Returns the shape of a required tensor.
    pub(super) fn shape(&self, name: &str) -> Result<&'h [usize]> {
        match self.header.tensors.get(name) {
            Some(entry) => Ok(&entry.shape),
            None => Err(self.missing(name)),
        }
    }

    fn missing(&self, name: &str) -> SourceError {
        SourceError::MissingTensor {
            file: self.header.file.clone(),
            tensor: name.into(),
            needed_for:
                "the architecture requires it; the file is incomplete or its metadata names the \
                 wrong architecture"
                    .into(),
        }
    }

    /// Takes a stored tensor and checks its shape, ignoring leading dimensions of 1, which the
    /// tools of llama.cpp drop.
    pub(super) fn stored(&mut self, name: &str, shape: &[usize]) -> Result<Stored> {
        let Some((&name, entry)) = self.header.tensors.get_key_value(name) else {
            return Err(self.missing(name));
        };
        if without_leading_ones(&entry.shape) != without_leading_ones(shape) {
            return Err(malformed(
                &*self.files[entry.part],
                format!("tensor {name} of shape {:?}", entry.shape),
                format!("{shape:?}, as the metadata says"),
            ));
        }
        self.left.remove(name);
        Stored::new(
            (&self.parts[entry.part].map, &self.files[entry.part]),
            entry.bytes.clone(),
            entry.element.name.into(),
            entry.element.decoder,
            READABLE,
        )
        .ok_or_else(|| self.missing(name))
    }

    /// Adds a tensor unchanged.
    pub(super) fn whole(
        &mut self,
        out: &mut Tensors,
        (name, stored): (String, &str),
        shape: &[usize],
    ) -> Result<()> {
        let stored = self.stored(stored, shape)?;
        let dtype = stored.dtype().into();
        insert(out, name, dtype, shape, View::Whole(stored));
        Ok(())
    }

    /// Adds a tensor that is stored in another shape with the same elements.
    pub(super) fn reshaped(
        &mut self,
        out: &mut Tensors,
        (name, stored): (String, &str),
        (stored_shape, shape): (&[usize], &[usize]),
    ) -> Result<()> {
        let stored = self.stored(stored, stored_shape)?;
        let dtype = stored.dtype().into();
        insert(out, name, dtype, shape, View::Whole(stored));
        Ok(())
    }

    /// Adds a matrix `[outputs, side * side * channels]` that is stored as a convolution `[outputs,
    /// channels, side, side]`.
    pub(super) fn channels_last(
        &mut self,
        out: &mut Tensors,
        (name, stored): (String, &str),
        [outputs, channels, side]: [usize; 3],
    ) -> Result<()> {
        let stored = self.stored(stored, &[outputs, channels, side, side])?;
        let dtype = stored.dtype().into();
        let row_len = side * side * channels;
        let view = View::ChannelsLast {
            stored,
            channels,
            row_len,
        };
        insert(out, name, dtype, &[outputs, row_len], view);
        Ok(())
    }

    /// Adds a vector to whose values `by` is added.
    pub(super) fn shifted(
        &mut self,
        out: &mut Tensors,
        (name, stored): (String, &str),
        length: usize,
        by: f32,
    ) -> Result<()> {
        let stored = self.stored(stored, &[length])?;
        let dtype = stored.dtype().into();
        insert(out, name, dtype, &[length], View::Shifted { stored, by });
        Ok(())
    }

    /// Adds a tensor that is stored as parts of shape `part`, stacked along the rows.
    pub(super) fn stacked(
        &mut self,
        out: &mut Tensors,
        (name, stored): (String, &[String]),
        part: &[usize],
    ) -> Result<()> {
        let (parts, dtype) = self.parts(stored, part)?;
        let mut shape = part.to_vec();
        shape[0] *= parts.len();
        let elements = part.iter().product();
        insert(out, name, dtype, &shape, View::Stacked { parts, elements });
        Ok(())
    }

    /// Adds a 3-D convolution `[out, in, parts, height, width]` stored as one `[out, in, height, width]` per frame.
    pub(super) fn over_time(
        &mut self,
        out: &mut Tensors,
        (name, stored): (String, &[String]),
        [outputs, inputs, height, width]: [usize; 4],
    ) -> Result<()> {
        let (parts, dtype) = self.parts(stored, &[outputs, inputs, height, width])?;
        let shape = [outputs, inputs, parts.len(), height, width];
        let chunk = height * width;
        insert(out, name, dtype, &shape, View::Interleaved { parts, chunk });
        Ok(())
    }

    /// Adds a query or key projection `[heads * head, columns]` whose rows llama.cpp permuted.
    pub(super) fn unpermuted(
        &mut self,
        out: &mut Tensors,
        (name, stored): (String, &str),
        [rows, row_len]: [usize; 2],
        head: usize,
    ) -> Result<()> {
        if head == 0 || !head.is_multiple_of(2) || !rows.is_multiple_of(head) {
            return Err(malformed(
                &*self.header.file,
                format!("heads of {head} rows in tensor {stored}"),
                "heads of an even size",
            ));
        }
        let stored = self.stored(stored, &[rows, row_len])?;
        let dtype = stored.dtype().into();
        let view = View::Unpermuted {
            stored,
            head,
            row_len,
        };
        insert(out, name, dtype, &[rows, row_len], view);
        Ok(())
    }

    /// Adds a tensor whose value heads are in the order of llama.cpp.
    pub(super) fn untiled(
        &mut self,
        out: &mut Tensors,
        (name, stored): (String, &str),
        (stored_shape, shape): (&[usize], &[usize]),
        tiles: Tiles,
    ) -> Result<()> {
        let stored = self.stored(stored, stored_shape)?;
        let dtype = stored.dtype().into();
        insert(out, name, dtype, shape, View::Untiled { stored, tiles });
        Ok(())
    }

    /// Adds the logarithms of a vector with one value for each value head that is stored as negated
    /// exponentials.
    pub(super) fn decay_logs(
        &mut self,
        out: &mut Tensors,
        (name, from): (String, &str),
        tiles: Tiles,
    ) -> Result<()> {
        let shape = [tiles.heads()];
        let stored = self.stored(from, &shape)?;
        let mut rates = Vec::new();
        stored
            .read(0..shape[0], &mut rates)
            .map_err(|unreadable| unreadable.into_error(from))?;
        if let Some(rate) = rates
            .iter()
            .find(|rate| !(rate.is_finite() && **rate < 0.0))
        {
            return Err(malformed(
                &*self.header.file,
                format!("{rate} in {from}"),
                "negative numbers: -exp(A_log)",
            ));
        }
        let dtype = stored.dtype().into();
        let view = View::NegatedExponential(Box::new(View::Untiled { stored, tiles }));
        insert(out, name, dtype, &shape, view);
        Ok(())
    }

    /// Adds a matrix with `rows` rows, of which only the first `stored_rows` are stored; the others
    /// repeat row `filler`.
    pub(super) fn extended(
        &mut self,
        out: &mut Tensors,
        (name, stored): (String, &str),
        [stored_rows, row_len]: [usize; 2],
        (rows, filler): (usize, usize),
    ) -> Result<()> {
        let stored = self.stored(stored, &[stored_rows, row_len])?;
        let dtype = stored.dtype().into();
        let view = View::Extended {
            stored,
            rows: stored_rows,
            filler,
            row_len,
        };
        insert(out, name, dtype, &[rows, row_len], view);
        Ok(())
    }

    /// Reads the values of a short tensor that becomes part of the config.
    pub(super) fn values(&mut self, name: &str, length: usize) -> Result<Vec<f64>> {
        let stored = self.stored(name, &[length])?;
        let mut values = Vec::new();
        stored
            .read(0..length, &mut values)
            .map_err(|unreadable| unreadable.into_error(name))?;
        match values.iter().find(|value| !value.is_finite()) {
            None => Ok(values.into_iter().map(shortest).collect()),
            Some(value) => Err(malformed(
                &*self.header.file,
                format!("{value} in {name}"),
                "finite numbers",
            )),
        }
    }

    /// Takes tensors of equal shape. Returns them with their type names, joined if they differ.
    fn parts(&mut self, names: &[String], shape: &[usize]) -> Result<(Vec<Stored>, String)> {
        let parts = names
            .iter()
            .map(|name| self.stored(name, shape))
            .collect::<Result<Vec<_>>>()?;
        let mut dtypes: Vec<&str> = parts.iter().map(Stored::dtype).collect();
        dtypes.dedup();
        let dtype = dtypes.join("+");
        Ok((parts, dtype))
    }

    /// Finishes the file.
    ///
    /// # Errors
    /// If it contains unused tensors.
    pub(super) fn finish(self, kind: &str) -> Result<()> {
        if self.left.is_empty() {
            return Ok(());
        }
        let left: Vec<&str> = self.left.into_iter().collect();
        Err(malformed(
            &*self.header.file,
            format!(
                "tensors that are not part of a {kind} model: {}",
                some_of(&left)
            ),
            "only tensors of that architecture, since ignoring some would change the model",
        ))
    }
}

fn insert(out: &mut Tensors, name: String, dtype: String, shape: &[usize], view: View) {
    let shape = shape.to_vec();
    let info = TensorInfo { dtype, shape };
    out.insert(name, Tensor { info, view });
}

fn without_leading_ones(shape: &[usize]) -> &[usize] {
    let ones = shape.iter().take_while(|&&dim| dim == 1).count();
    &shape[ones..]
}
