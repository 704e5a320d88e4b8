//! The pre-norm transformer block of the vision towers: layer norm, attention, layer norm, MLP.
//! CLIP, EVA-CLIP and Qwen2-VL differ in the names of their tensors, the activation,
//! and whether queries and keys are rotated.

use burn::module::Module;
use burn::tensor::Tensor;
use edge_lmm_ops::{
    Activation, Columns, Heads, KernelBackend, attention_received, encoder_attention, stage,
    sum_heads,
};

use crate::encoders::tower::{Attended, AttentionInput, TowerLayer};
use crate::error::ModelError;
use crate::layers::{LayerNorm, Linear};
use crate::monitor::Monitor;
use crate::weights::Scope;

/// Sizes and names of a [`Block`].
#[derive(Debug, Clone, Copy)]
pub struct BlockConfig<'a> {
    /// Attention heads; their total width is that of the residual stream.
    pub heads: Heads,
    /// Width of the MLP.
    pub ffn: usize,
    /// Activation of the MLP.
    pub activation: Activation,
    /// Epsilon of the norms.
    pub eps: f64,
    /// `true` if queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Names of the modules in the checkpoint.
    pub names: &'a BlockNames,
}

/// Names of a block's modules in the checkpoint.
#[derive(Debug)]
pub struct BlockNames {
    /// The norms before attention and before the MLP.
    pub norms: [&'static str; 2],
    /// Queries, keys and values, in one module or in three.
    pub qkv: &'static [&'static str],
    /// The projection of the attention's output.
    pub out: &'static str,
    /// The two layers of the MLP.
    pub mlp: [&'static str; 2],
}

/// A pre-norm transformer block.
#[derive(Module, Debug)]
pub struct Block<B: KernelBackend> {
    attention_norm: LayerNorm<B>,
    qkv: Linear<B>,
    out: Linear<B>,
    mlp_norm: LayerNorm<B>,
    up: Linear<B>,
    down: Linear<B>,
    #[module(skip)]
    activation: Activation,
    #[module(skip)]
    heads: Heads,
}

impl<B: KernelBackend> Block<B> {
    /// Declares the weights.
    ///
    /// # Errors
    /// If a weight is missing.
    pub fn init(config: BlockConfig<'_>, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        let BlockConfig { names, eps, .. } = config;
        let width = config.heads.heads * config.heads.head_dim;
        let ffn = scope.dimension("ffn", config.ffn)?;
        let rows = 3 * width / names.qkv.len();
        let qkv: Vec<(&str, usize)> = names.qkv.iter().map(|name| (*name, rows)).collect();
        let normed = |norm| scope.normed(norm, width);
        let attended = scope.produced("qkv", 2 * width, width);
        let hidden = scope.activated("up", config.activation, &ffn);
        Ok(Self {
            attention_norm: scope.layer_norm("attention_norm", names.norms[0], width, eps),
            qkv: scope.linear("qkv", &qkv, normed("attention_norm"), config.qkv_bias)?,
            out: scope.linear("out", &[(names.out, width)], attended, true)?,
            mlp_norm: scope.layer_norm("mlp_norm", names.norms[1], width, eps),
            up: scope.linear("up", &[(names.mlp[0], &ffn)], normed("mlp_norm"), true)?,
            down: scope.linear("down", &[(names.mlp[1], width)], hidden, true)?,
            activation: config.activation,
            heads: config.heads,
        })
    }
}

impl<B: KernelBackend> TowerLayer<B> for Block<B> {
    fn attend(
        &self,
        x: Tensor<B, 2>,
        input: AttentionInput<'_, B>,
        monitor: &mut Monitor<'_>,
    ) -> Result<Attended<B>, ModelError> {
        let norm = |x| self.attention_norm.forward(x);
        attend(x, norm, [&self.qkv, &self.out], self.heads, input, monitor)
    }

    /// Reports progress before the MLP.
    fn mlp(&self, x: Tensor<B, 2>, monitor: &mut Monitor<'_>) -> Result<Tensor<B, 2>, ModelError> {
        monitor.report(3, 4)?;
        let _stage = stage::module("mlp");
        let normed = self.mlp_norm.forward(x.clone());
        Ok(self
            .up
            .feed_forward(normed, self.activation, &self.down, Some(x)))
    }
}

/// Attention of a layer of a tower: the norm, queries, keys and values, attention, and the projection
/// `out`, added to the residual `x`. Reports progress before each product and before attention itself.
///
/// # Errors
/// If `monitor` cancels.
pub(crate) fn attend<B: KernelBackend>(
    x: Tensor<B, 2>,
    norm: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 2>,
    [qkv, out]: [&Linear<B>; 2],
    heads: Heads,
    input: AttentionInput<'_, B>,
    monitor: &mut Monitor<'_>,
) -> Result<Attended<B>, ModelError> {
    monitor.report(0, 4)?;
    let projected = qkv.forward(norm(x.clone()));
    monitor.report(1, 4)?;
    let attended = self_attention(projected, heads, input, qkv.is_quantized());
    monitor.report(2, 4)?;
    Ok(attended.map(|attended| out.forward_residual(attended, x)))
}

/// Self-attention of an encoder. `quantized` is `true` if the projection of queries, keys and values
/// is quantized.
///
/// # Shapes
/// - qkv: `[tokens, 3 * width]`, output: `[tokens, width]`
fn self_attention<B: KernelBackend>(
    qkv: Tensor<B, 2>,
    heads: Heads,
    input: AttentionInput<'_, B>,
    quantized: bool,
) -> Attended<B> {
    let AttentionInput { mask, table, .. } = input;
    let width = heads.heads * heads.head_dim;
    let columns = |qkv: &Tensor<B, 2>, i| Columns {
        tensor: qkv.clone(),
        column: i * width,
    };
    let keys = (input.keys).then(|| sum_heads(columns(&qkv, 1), heads.heads, heads.head_dim));
    let qkv = match table {
        Some(table) => table.rotate(qkv, 0, 2 * heads.heads, heads.head_dim),
        None => qkv,
    };
    let [k, v] = [1, 2].map(|i| columns(&qkv, i));
    let scale = (heads.head_dim as f32).powf(-0.5);
    let received = input
        .received
        .then(|| attention_received(qkv.clone(), k.clone(), heads, mask, scale));
    Attended {
        x: encoder_attention(qkv, k, v, heads, mask, scale, quantized),
        keys,
        received,
    }
}

/// Returns `count` heads of `width / count` elements each.
pub fn equal_heads(count: usize, width: usize) -> Heads {
    Heads {
        heads: count,
        kv_heads: count,
        head_dim: width / count,
    }
}
