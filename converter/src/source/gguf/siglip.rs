//! SigLIP towers, which Gemma 3 and Idefics3 have.

use serde_json::{Value as Json, json};

use super::super::error::Result;
use super::assembly::{Assembly, Tensors};
use super::vision::VisionTower;

/// Color channels.
const CHANNELS: usize = 3;

/// A SigLIP tower.
pub(super) struct Siglip {
    pub(super) tower: VisionTower,
    /// Side of an image in pixels.
    pub(super) image: usize,
    eps: f64,
}

impl Siglip {
    /// Reads the sizes.
    pub(super) fn read(vision: &Assembly<'_, '_>) -> Result<Self> {
        let header = vision.header;
        let eps = header.number("clip.vision.attention.layer_norm_epsilon")?;
        Ok(Self {
            tower: VisionTower::read(vision)?,
            image: header.need_size("clip.vision.image_size")?,
            eps: eps.unwrap_or(1e-6),
        })
    }

    /// Returns the patches per side of an image.
    pub(super) fn side(&self) -> usize {
        self.image / self.tower.patch
    }

    /// Adds all tensors under names that begin with `prefix`.
    pub(super) fn tensors(
        &self,
        vision: &mut Assembly<'_, '_>,
        prefix: &str,
        out: &mut Tensors,
    ) -> Result<()> {
        let (width, patch) = (self.tower.width, self.tower.patch);
        let positions = self.side().saturating_pow(2);
        let embedding = |rest: &str| format!("{prefix}.embeddings.{rest}");
        for (to, from, shape) in [
            (
                "patch_embedding.weight",
                "v.patch_embd.weight",
                &[width, CHANNELS, patch, patch][..],
            ),
            ("patch_embedding.bias", "v.patch_embd.bias", &[width]),
            (
                "position_embedding.weight",
                "v.position_embd.weight",
                &[positions, width],
            ),
        ] {
            vision.whole(out, (embedding(to), from), shape)?;
        }
        for layer in 0..self.tower.layers {
            block_tensors(vision, &self.tower, (prefix, layer), out)?;
        }
        let norm = format!("{prefix}.post_layernorm");
        self.tower.norm(vision, (&norm, "v.post_ln"), out)
    }

    /// Returns the tower's section of the config. The activation is that of all SigLIP towers; files
    /// state it as any kind of GELU.
    pub(super) fn config(&self, model_type: &str) -> Json {
        json!({
            "model_type": model_type,
            "hidden_size": self.tower.width,
            "image_size": self.image,
            "intermediate_size": self.tower.feed_forward,
            "num_attention_heads": self.tower.heads,
            "num_hidden_layers": self.tower.layers,
            "patch_size": self.tower.patch,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": self.eps,
        })
    }
}

/// Adds the tensors of a block, which CLIP and SigLIP name alike; `prefix` is the tower's.
pub(super) fn block_tensors(
    vision: &mut Assembly<'_, '_>,
    tower: &VisionTower,
    (prefix, layer): (&str, usize),
    out: &mut Tensors,
) -> Result<()> {
    let to = |rest: &str| format!("{prefix}.encoder.layers.{layer}.{rest}");
    for name in ["q", "k", "v", "out"] {
        let names = (
            &*to(&format!("self_attn.{name}_proj")),
            &*format!("attn_{name}"),
        );
        tower.linear(vision, layer, names, [tower.width; 2], out)?;
    }
    let mlp = (&*to("mlp.fc1"), &*to("mlp.fc2"));
    tower.feed_forward(vision, layer, mlp, out)?;
    for norm in ["1", "2"] {
        let from = format!("v.blk.{layer}.ln{norm}");
        tower.norm(vision, (&to(&format!("layer_norm{norm}")), &from), out)?;
    }
    Ok(())
}
