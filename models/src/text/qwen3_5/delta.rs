//! Layers with a gated delta rule, and their state.

use std::any::Any;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use edge_lmm_ops::{
    Activation, Columns, DeltaHeads, DeltaRule, KernelBackend, gated_delta_rule, probe, short_conv,
    stage,
};

use super::Qwen35TextConfig;
use crate::error::ModelError;
use crate::language::RecurrentState;
use crate::layers::{Linear, RmsNorm};
use crate::text::step::Place;
use crate::weights::Scope;

/// State of a layer with a gated delta rule.
pub(super) struct DeltaState<B: KernelBackend> {
    /// Last inputs of the convolution: `[taps - 1, width]`.
    inputs: Tensor<B, 2>,
    /// See [`DeltaHeads::state`].
    state: Tensor<B, 2>,
    /// The last step, if it is revisable.
    step: Option<DeltaStep<B>>,
}

/// A step of a few tokens, from which the state after some of them is computed without the weights.
struct DeltaStep<B: KernelBackend> {
    /// State before the step.
    inputs: Tensor<B, 2>,
    state: Tensor<B, 2>,
    rule: DeltaRule<B>,
}

impl<B: KernelBackend> DeltaState<B> {
    /// Creates the state before the first token, with the shapes of both tensors.
    pub fn empty(inputs: [usize; 2], state: [usize; 2], device: &B::Device) -> Self {
        Self {
            inputs: Tensor::zeros(inputs, device),
            state: Tensor::zeros(state, device),
            step: None,
        }
    }
}

impl<B: KernelBackend> DeltaStep<B> {
    /// Returns the state after the first `tokens` tokens.
    fn after(&self, tokens: usize) -> DeltaState<B> {
        let (_, state) = gated_delta_rule(self.rule.first(tokens), self.state.clone());
        let [last, width] = self.inputs.dims();
        // The projection begins with the inputs of the convolution. burn does not cut out empty
        // tensors.
        let inputs = match last {
            0 => self.inputs.clone(),
            _ => {
                let projected = self.rule.output_gate.tensor.clone();
                let projected = projected.slice([0..tokens, 0..width]);
                Tensor::cat(vec![self.inputs.clone(), projected], 0).narrow(0, tokens, last)
            }
        };
        DeltaState {
            inputs,
            state,
            step: None,
        }
    }

    fn elements(&self) -> usize {
        let rule = &self.rule;
        let of_tokens = [&rule.qkv, &rule.gates, &rule.output_gate.tensor];
        let tensors = of_tokens.into_iter().chain([&self.inputs, &self.state]);
        tensors.map(|tensor| tensor.shape().num_elements()).sum()
    }
}

impl<B: KernelBackend> RecurrentState for DeltaState<B> {
    fn bytes(&self) -> usize {
        let step = self.step.as_ref().map_or(0, DeltaStep::elements);
        let own = self.inputs.shape().num_elements() + self.state.shape().num_elements();
        (own + step) * size_of::<f32>()
    }

    fn fork(&self) -> Box<dyn RecurrentState> {
        Box::new(Self {
            inputs: self.inputs.clone(),
            state: self.state.clone(),
            step: None,
        })
    }

    fn revised(&self, tokens: usize) -> Option<Box<dyn RecurrentState>> {
        let step = self.step.as_ref()?;
        Some(Box::new(step.after(tokens)))
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

/// A gated delta rule after a convolution over a few tokens.
#[derive(Module, Debug)]
pub(super) struct DeltaNet<B: KernelBackend> {
    /// Queries, keys and values, then the gates of the outputs.
    input: Linear<B>,
    /// Gates of the update and of the decay.
    gates: Linear<B>,
    kernel: Param<Tensor<B, 2>>,
    decay_log: Param<Tensor<B, 1>>,
    decay_bias: Param<Tensor<B, 1>>,
    norm: RmsNorm<B>,
    out: Linear<B>,
}

impl<B: KernelBackend> DeltaNet<B> {
    /// Declares the weights.
    ///
    /// # Errors
    /// If a weight is missing.
    pub fn init(config: &Qwen35TextConfig, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        let (hidden, heads) = (config.hidden_size, config.delta);
        let (count, width) = (heads.value_heads, heads.value_width());
        let normed = scope.normed("attention_norm", hidden);
        let scope = scope.child("delta", "linear_attn");
        let input = [("in_proj_qkv", heads.width()), ("in_proj_z", width)];
        let gates = [("in_proj_b", count), ("in_proj_a", count)];
        let outputs = scope.repeated("norm", 0, width, heads.value_dim, count);
        Ok(Self {
            input: scope.linear("input", &input, normed.clone(), false)?,
            gates: scope.linear("gates", &gates, normed, false)?,
            kernel: scope.matrix("kernel", "conv1d.weight", heads.width(), config.taps),
            decay_log: scope.vector("decay_log", &[("A_log", count)]),
            decay_bias: scope.vector("decay_bias", &[("dt_bias", count)]),
            norm: scope.rms_norm("norm", "norm", heads.value_dim, config.norm_eps),
            out: scope.linear("out", &[("out_proj", hidden)], outputs, false)?,
        })
    }

    /// Adds the outputs for `normed` to the residual `x`, and returns the state after the last token. The
    /// state of a `revisable` step keeps what [`RecurrentState::revised`] needs.
    pub fn forward(
        &self,
        normed: Tensor<B, 2>,
        x: Tensor<B, 2>,
        heads: DeltaHeads,
        state: &DeltaState<B>,
        (captured, revisable): (bool, bool),
        place: Place<'_>,
    ) -> (Tensor<B, 2>, DeltaState<B>) {
        let _stage = stage::module("delta");
        let gates = self.gates.forward(normed.clone());
        let projected = self.input.forward(normed);
        let (qkv, inputs) = short_conv(
            projected.clone(),
            state.inputs.clone(),
            self.kernel.val(),
            Activation::Silu,
        );
        let (gamma, eps) = self.norm.parameters();
        let rule = DeltaRule {
            heads,
            qkv,
            gates,
            decay_log: self.decay_log.val(),
            decay_bias: self.decay_bias.val(),
            output_gate: Columns {
                tensor: projected,
                column: heads.width(),
            },
            gamma,
            eps,
        };
        let step = revisable.then(|| DeltaStep {
            inputs: state.inputs.clone(),
            state: state.state.clone(),
            rule: rule.clone(),
        });
        let (out, after) = gated_delta_rule(rule, state.state.clone());
        let (out, x) = place.used_rows(out, x);
        let out = self.out.forward(out);
        if captured && probe::active() {
            let shape = [heads.value_heads, heads.key_dim, heads.value_dim];
            probe::capture("delta_conv_state", &inputs);
            probe::capture("delta_state", &after.clone().reshape(shape));
            probe::capture("delta_out", &out);
        }
        let after = DeltaState {
            inputs,
            state: after,
            step,
        };
        (x + out, after)
    }
}
