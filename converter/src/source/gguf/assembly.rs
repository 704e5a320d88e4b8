//! Putting the tensors of the normal form together from those of a GGUF file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::super::error::{Result, SourceError, malformed, some_of};
use super::super::view::{Stored, View};
use super::super::{Tensor, TensorInfo};
use super::element::READABLE;
use super::header::Header;
use super::value::shortest;
use edge_lmm_record::FileMap;

/// The tensors of the normal form by name.
pub(super) type Tensors = BTreeMap<String, Tensor>;

/// One GGUF file while its tensors are being renamed. Every tensor of it must be asked for: one that nobody wants means
/// that the model is not what it was taken for.
pub(super) struct Assembly<'h, 'a> {
    /// The file's checked header.
    pub(super) header: &'h Header<'a>,
    map: &'h Arc<FileMap>,
    file: Arc<str>,
    left: BTreeSet<&'a str>,
}

impl<'h, 'a> Assembly<'h, 'a> {
    pub(super) fn new(header: &'h Header<'a>, map: &'h Arc<FileMap>, path: &Path) -> Self {
        Self {
            header,
            map,
            file: path.display().to_string().into(),
            left: header.tensors.keys().copied().collect(),
        }
    }

    /// Whether the file has a tensor.
    pub(super) fn has(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    /// The shape of a tensor that must be there.
    pub(super) fn shape(&self, name: &str) -> Result<&'h [usize]> {
        match self.header.tensors.get(name) {
            Some(entry) => Ok(&entry.shape),
            None => Err(self.missing(name)),
        }
    }

    fn missing(&self, name: &str) -> SourceError {
        SourceError::MissingTensor {
            file: self.file.to_string(),
            tensor: name.into(),
            needed_for:
                "the architecture needs it; the file is incomplete or of another kind than it says"
                    .into(),
        }
    }

    /// Takes a stored tensor, whose shape must be `shape` up to leading ones, which llama.cpp's tools drop.
    pub(super) fn stored(&mut self, name: &str, shape: &[usize]) -> Result<Stored> {
        let Some((&name, entry)) = self.header.tensors.get_key_value(name) else {
            return Err(self.missing(name));
        };
        if without_leading_ones(&entry.shape) != without_leading_ones(shape) {
            return Err(malformed(
                &*self.file,
                format!("tensor {name} of shape {:?}", entry.shape),
                format!("{shape:?}, as the metadata say"),
            ));
        }
        self.left.remove(name);
        Stored::new(
            (self.map, &self.file),
            entry.bytes.clone(),
            entry.element.name.into(),
            entry.element.decoder,
            READABLE,
        )
        .ok_or_else(|| self.missing(name))
    }

    /// Adds a tensor that is stored as it is.
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

    /// Adds a tensor stored in parts that stand one below the other, each of shape `part`.
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

    /// Adds a query or key projection `[heads * head, columns]` whose rows llama.cpp has permuted.
    pub(super) fn unpermuted(
        &mut self,
        out: &mut Tensors,
        (name, stored): (String, &str),
        [rows, row_len]: [usize; 2],
        head: usize,
    ) -> Result<()> {
        if head == 0 || !head.is_multiple_of(2) || !rows.is_multiple_of(head) {
            return Err(malformed(
                &*self.file,
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

    /// Adds a matrix with `rows` rows, of which only the first `stored_rows` are stored; the others repeat row `filler`.
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

    /// The values of a short tensor that belongs into the config.
    pub(super) fn values(&mut self, name: &str, length: usize) -> Result<Vec<f64>> {
        let stored = self.stored(name, &[length])?;
        let mut values = Vec::new();
        stored
            .read(0..length, &mut values)
            .map_err(|unreadable| unreadable.into_error(name))?;
        match values.iter().find(|value| !value.is_finite()) {
            None => Ok(values.into_iter().map(shortest).collect()),
            Some(value) => Err(malformed(
                &*self.file,
                format!("{value} in {name}"),
                "finite numbers",
            )),
        }
    }

    /// Takes tensors of one shape; the type names are joined where they differ.
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

    /// Ends the work on this file.
    ///
    /// # Errors
    /// When it holds tensors that nobody asked for.
    pub(super) fn finish(self, kind: &str) -> Result<()> {
        if self.left.is_empty() {
            return Ok(());
        }
        let left: Vec<&str> = self.left.into_iter().collect();
        Err(malformed(
            &*self.file,
            format!(
                "tensors that a {kind} model does not have: {}",
                some_of(&left)
            ),
            "only the tensors of that architecture, since leaving some out would change the model",
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
