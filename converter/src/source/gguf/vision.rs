//! Parts of `mmproj` files that several multimodal models share.

use super::super::error::{Result, malformed};
use super::assembly::{Assembly, Tensors};
use super::header::Header;

/// Sizes of a vision tower, from the metadata.
#[derive(Debug)]
pub(super) struct VisionTower {
    pub(super) layers: usize,
    pub(super) width: usize,
    pub(super) heads: usize,
    pub(super) patch: usize,
    pub(super) feed_forward: usize,
    /// `true` if the names of `ffn_up` and `ffn_down` are swapped, as in llama.cpp's first
    /// converters.
    swapped: bool,
}

/// Returns the activation of the feed-forward layers under its name in the hub's config.
pub(super) fn activation(header: &Header<'_>) -> Result<&'static str> {
    let flag = |key: &str| Ok(header.flag(key)?.unwrap_or(false));
    Ok(if flag("clip.use_gelu")? {
        "gelu"
    } else if flag("clip.use_silu")? {
        "silu"
    } else {
        "quick_gelu"
    })
}

impl VisionTower {
    /// Reads the sizes.
    pub(super) fn read(assembly: &Assembly<'_, '_>) -> Result<Self> {
        let header = assembly.header;
        let width = header.need_size("clip.vision.embedding_length")?;
        // The first converters wrote a feed_forward_length of 0, so the size is taken from the
        // tensors.
        let up = assembly.shape("v.blk.0.ffn_up.weight")?;
        let swapped = up.first() == Some(&width) && up.last() != Some(&width);
        let feed_forward = if swapped { up.last() } else { up.first() };
        Ok(Self {
            layers: header.need_size("clip.vision.block_count")?,
            width,
            heads: header.need_size("clip.vision.attention.head_count")?,
            patch: header.need_size("clip.vision.patch_size")?,
            feed_forward: feed_forward.copied().unwrap_or(0),
            swapped,
        })
    }

    /// Adds the two feed-forward layers of block `layer`, named `first` and `second`.
    pub(super) fn feed_forward(
        &self,
        assembly: &mut Assembly<'_, '_>,
        layer: usize,
        (first, second): (&str, &str),
        out: &mut Tensors,
    ) -> Result<()> {
        let (up, down) = match self.swapped {
            false => ("ffn_up", "ffn_down"),
            true => ("ffn_down", "ffn_up"),
        };
        let (width, inner) = (self.width, self.feed_forward);
        for (to, from, outputs, inputs) in [(first, up, inner, width), (second, down, width, inner)]
        {
            self.linear(assembly, layer, (to, from), [outputs, inputs], out)?;
        }
        Ok(())
    }

    /// Adds weight and bias of one linear layer of a block.
    pub(super) fn linear(
        &self,
        assembly: &mut Assembly<'_, '_>,
        layer: usize,
        (to, from): (&str, &str),
        [outputs, inputs]: [usize; 2],
        out: &mut Tensors,
    ) -> Result<()> {
        let weight = format!("v.blk.{layer}.{from}.weight");
        assembly.whole(out, (format!("{to}.weight"), &weight), &[outputs, inputs])?;
        let bias = format!("v.blk.{layer}.{from}.bias");
        assembly.whole(out, (format!("{to}.bias"), &bias), &[outputs])
    }

    /// Returns the patches per side of a square that becomes one token, from the inputs of `tensor`,
    /// which takes all patches of a square.
    pub(super) fn merge_size(&self, assembly: &Assembly<'_, '_>, tensor: &str) -> Result<usize> {
        let inputs = assembly.shape(tensor)?.last().copied().unwrap_or(0);
        let merge = (inputs / self.width).isqrt();
        if merge == 0 || merge * merge * self.width != inputs {
            return Err(malformed(
                &assembly.header.file,
                format!(
                    "{tensor} with {inputs} inputs for patches of {} features",
                    self.width
                ),
                "a square number of patches",
            ));
        }
        Ok(merge)
    }

    /// Adds weight and bias of a layer norm over the tower's width; `from` is its full name.
    pub(super) fn norm(
        &self,
        assembly: &mut Assembly<'_, '_>,
        (to, from): (&str, &str),
        out: &mut Tensors,
    ) -> Result<()> {
        for part in ["weight", "bias"] {
            let stored = format!("{from}.{part}");
            assembly.whole(out, (format!("{to}.{part}"), &stored), &[self.width])?;
        }
        Ok(())
    }
}
