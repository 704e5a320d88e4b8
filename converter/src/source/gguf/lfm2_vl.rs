//! LFM2-VL: architecture `lfm2` with the projector `lfm2`.
//!
//! Names and layout of the result: `LiquidAI/LFM2-VL-450M` on the hub. Files have no settings of the
//! image processor beyond the normalization; the others are those of the published checkpoints.

use serde_json::{Value as Json, json};

use super::super::error::{Result, malformed};
use super::Configs;
use super::assembly::{Assembly, Tensors};
use super::header::Header;
use super::siglip::block_tensors;
use super::text;
use super::vision::VisionTower;
use super::vocabulary::Vocabulary;

const TEXT: &str = "model.language_model";
const TOWER: &str = "model.vision_tower.vision_model";
const PROJECTOR: &str = "model.multi_modal_projector";
const CHANNELS: usize = 3;

/// Reads tensors, config and preprocessor config.
pub(super) fn read(
    text: &mut Assembly<'_, '_>,
    vision: &mut Assembly<'_, '_>,
    vocabulary: &Vocabulary<'_>,
    out: &mut Tensors,
) -> Result<Configs> {
    let model = Lfm2::read(text)?;
    model.tensors(text, out)?;
    let tower = VisionTower::read(vision)?;
    let positions = tower_tensors(vision, &tower, out)?;
    let factor = tower.merge_size(vision, "mm.1.weight")?;
    let inputs = tower.width * factor * factor;
    let projector = projector_tensors(vision, [inputs, model.hidden], out)?;
    let header = vision.header;
    let eps = header.number("clip.vision.attention.layer_norm_epsilon")?;
    let mut config = json!({
        "architectures": ["Lfm2VlForConditionalGeneration"],
        "model_type": "lfm2_vl",
        "image_token_id": vocabulary.need("<image>")?,
        "downsample_factor": factor,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": model.tied,
        "text_config": model.config(text.header, vocabulary)?,
        "vision_config": {
            "model_type": "siglip2_vision_model",
            "hidden_size": tower.width,
            "intermediate_size": tower.feed_forward,
            "num_attention_heads": tower.heads,
            "num_hidden_layers": tower.layers,
            "num_patches": positions,
            "patch_size": tower.patch,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": eps.unwrap_or(1e-6),
        },
    });
    config["projector_hidden_size"] = json!(projector.width);
    config["projector_bias"] = json!(projector.bias);
    config["projector_use_layernorm"] = json!(projector.norm);
    let preprocessor = json!({
        "image_processor_type": "Lfm2VlImageProcessorFast",
        "processor_class": "Lfm2VlProcessor",
        "image_mean": super::channel_values(header, "clip.vision.image_mean")?,
        "image_std": super::channel_values(header, "clip.vision.image_std")?,
        "encoder_patch_size": tower.patch,
        "downsample_factor": factor,
    });
    Ok(Configs {
        config,
        preprocessor: Some(preprocessor),
        video_preprocessor: None,
    })
}

/// Sizes of the language model, from the metadata.
struct Lfm2 {
    hidden: usize,
    vocabulary: usize,
    feed_forward: usize,
    heads: usize,
    /// Heads of keys and values.
    kv_heads: usize,
    /// `true` for a layer of attention, `false` for a convolution.
    attention: Vec<bool>,
    taps: usize,
    tied: bool,
}

impl Lfm2 {
    fn read(assembly: &Assembly<'_, '_>) -> Result<Self> {
        let header = assembly.header;
        let layers = header.need_size("lfm2.block_count")?;
        let (attention, kv_heads) = layer_types(header, layers)?;
        let embedding = assembly.shape("token_embd.weight")?;
        Ok(Self {
            hidden: header.need_size("lfm2.embedding_length")?,
            vocabulary: embedding.first().copied().unwrap_or(0),
            feed_forward: header.need_size("lfm2.feed_forward_length")?,
            heads: header.need_size("lfm2.attention.head_count")?,
            kv_heads,
            attention,
            taps: header.need_size("lfm2.shortconv.l_cache")?,
            tied: !assembly.has("output.weight"),
        })
    }

    fn tensors(&self, assembly: &mut Assembly<'_, '_>, out: &mut Tensors) -> Result<()> {
        let hidden = self.hidden;
        let table = [self.vocabulary, hidden];
        let embedding = format!("{TEXT}.embed_tokens.weight");
        assembly.whole(out, (embedding, "token_embd.weight"), &table)?;
        if !self.tied {
            assembly.whole(out, ("lm_head.weight".into(), "output.weight"), &table)?;
        }
        // llama.cpp names the last norm like one after the embedding.
        let names = ["token_embd_norm.weight", "output_norm.weight"];
        let from = names.into_iter().find(|name| assembly.has(name));
        let norm = format!("{TEXT}.embedding_norm.weight");
        assembly.whole(out, (norm, from.unwrap_or(names[0])), &[hidden])?;
        for (layer, &is_attention) in self.attention.iter().enumerate() {
            let mut tensors = self.mlp();
            match is_attention {
                true => tensors.extend(self.attention()),
                false => {
                    let to = format!("{TEXT}.layers.{layer}.conv.conv.weight");
                    let from = format!("blk.{layer}.shortconv.conv.weight");
                    let shape = [hidden, 1, self.taps];
                    assembly.reshaped(out, (to, &from), (&[hidden, self.taps], &shape))?;
                    tensors.extend(self.convolution());
                }
            }
            for (to, from, shape) in tensors {
                let to = format!("{TEXT}.layers.{layer}.{to}.weight");
                let from = format!("blk.{layer}.{from}.weight");
                assembly.whole(out, (to, &from), &shape)?;
            }
        }
        Ok(())
    }

    /// Returns the norms and the MLP of a layer: original and stored name, and shape.
    fn mlp(&self) -> Vec<(&'static str, &'static str, Vec<usize>)> {
        let (hidden, inner) = (self.hidden, self.feed_forward);
        vec![
            ("operator_norm", "attn_norm", vec![hidden]),
            ("ffn_norm", "ffn_norm", vec![hidden]),
            ("feed_forward.w1", "ffn_gate", vec![inner, hidden]),
            ("feed_forward.w2", "ffn_down", vec![hidden, inner]),
            ("feed_forward.w3", "ffn_up", vec![inner, hidden]),
        ]
    }

    fn attention(&self) -> Vec<(&'static str, &'static str, Vec<usize>)> {
        let (hidden, head) = (self.hidden, self.hidden / self.heads);
        let inner = self.kv_heads * head;
        vec![
            ("self_attn.q_proj", "attn_q", vec![hidden, hidden]),
            ("self_attn.k_proj", "attn_k", vec![inner, hidden]),
            ("self_attn.v_proj", "attn_v", vec![inner, hidden]),
            ("self_attn.out_proj", "attn_output", vec![hidden, hidden]),
            ("self_attn.q_layernorm", "attn_q_norm", vec![head]),
            ("self_attn.k_layernorm", "attn_k_norm", vec![head]),
        ]
    }

    fn convolution(&self) -> Vec<(&'static str, &'static str, Vec<usize>)> {
        let hidden = self.hidden;
        vec![
            (
                "conv.in_proj",
                "shortconv.in_proj",
                vec![3 * hidden, hidden],
            ),
            ("conv.out_proj", "shortconv.out_proj", vec![hidden, hidden]),
        ]
    }

    fn config(&self, header: &Header<'_>, vocabulary: &Vocabulary<'_>) -> Result<Json> {
        let kind = |&attention: &bool| match attention {
            true => "full_attention",
            false => "conv",
        };
        let theta = header.number("lfm2.rope.freq_base")?;
        let mut config = json!({
            "model_type": "lfm2",
            "hidden_size": self.hidden,
            "intermediate_size": self.feed_forward,
            "block_auto_adjust_ff_dim": false,
            "num_hidden_layers": self.attention.len(),
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": header.need_size("lfm2.context_length")?,
            "norm_eps": header.need_number("lfm2.attention.layer_norm_rms_epsilon")?,
            "rope_theta": theta.unwrap_or(1e6),
            "conv_L_cache": self.taps,
            "conv_bias": false,
            "layer_types": self.attention.iter().map(kind).collect::<Vec<_>>(),
            "tie_embedding": self.tied,
        });
        for (key, id) in [
            ("bos_token_id", vocabulary.bos),
            ("eos_token_id", vocabulary.eos),
        ] {
            if let Some(id) = id {
                config[key] = json!(id);
            }
        }
        if let Some(scaling) = text::rope_scaling(header, "lfm2")? {
            config["rope_scaling"] = scaling;
        }
        Ok(config)
    }
}

/// Returns the layers of attention, which have heads of keys and values, and the number of these
/// heads.
fn layer_types(header: &Header<'_>, layers: usize) -> Result<(Vec<bool>, usize)> {
    const KEY: &str = "lfm2.attention.head_count_kv";
    let counts = header.integers(KEY)?.unwrap_or_default();
    let largest = counts.iter().copied().max().unwrap_or(0);
    let uniform = counts.iter().all(|&count| count == 0 || count == largest);
    match usize::try_from(largest) {
        Ok(heads) if heads > 0 && uniform && counts.len() == layers => {
            Ok((counts.iter().map(|&count| count > 0).collect(), heads))
        }
        _ => Err(malformed(
            &header.file,
            format!("{KEY} {counts:?}"),
            format!("one number for each of {layers} layers: 0 for convolutions, otherwise equal"),
        )),
    }
}

/// Adds the tower. Returns the number of learned positions.
fn tower_tensors(
    vision: &mut Assembly<'_, '_>,
    tower: &VisionTower,
    out: &mut Tensors,
) -> Result<usize> {
    let width = tower.width;
    let to = |rest: &str| format!("{TOWER}.embeddings.{rest}");
    let weight = (to("patch_embedding.weight"), "v.patch_embd.weight");
    vision.channels_last(out, weight, [width, CHANNELS, tower.patch])?;
    let bias = (to("patch_embedding.bias"), "v.patch_embd.bias");
    vision.whole(out, bias, &[width])?;
    const POSITIONS: &str = "v.position_embd.weight";
    let positions = vision.shape(POSITIONS)?.first().copied().unwrap_or(0);
    let table = (to("position_embedding.weight"), POSITIONS);
    vision.whole(out, table, &[positions, width])?;
    for layer in 0..tower.layers {
        block_tensors(vision, tower, (TOWER, layer), out)?;
    }
    let norm = format!("{TOWER}.post_layernorm");
    tower.norm(vision, (&norm, "v.post_ln"), out)?;
    Ok(positions)
}

/// Properties of the projector.
struct Projector {
    width: usize,
    bias: bool,
    norm: bool,
}

fn projector_tensors(
    vision: &mut Assembly<'_, '_>,
    [inputs, outputs]: [usize; 2],
    out: &mut Tensors,
) -> Result<Projector> {
    let width = vision.shape("mm.1.weight")?.first().copied().unwrap_or(0);
    let projector = Projector {
        width,
        bias: vision.has("mm.1.bias"),
        norm: vision.has("mm.input_norm.weight"),
    };
    if projector.norm {
        for part in ["weight", "bias"] {
            let to = format!("{PROJECTOR}.layer_norm.{part}");
            vision.whole(out, (to, &format!("mm.input_norm.{part}")), &[inputs])?;
        }
    }
    for (number, rows, columns) in [(1, width, inputs), (2, outputs, width)] {
        let to = |part: &str| format!("{PROJECTOR}.linear_{number}.{part}");
        let from = |part: &str| format!("mm.{number}.{part}");
        vision.whole(out, (to("weight"), &from("weight")), &[rows, columns])?;
        if projector.bias {
            vision.whole(out, (to("bias"), &from("bias")), &[rows])?;
        }
    }
    Ok(projector)
}
