//! LoRA adapters in the layout of PEFT, merged into a checkpoint while it is read.
//!
//! Layout: `peft/utils/save_and_load.py` and `peft/tuners/lora` of <https://github.com/huggingface/peft>.

mod config;
mod detect;
mod low_rank;
mod merge;

pub(super) use detect::{check_files, check_tensors};
pub(super) use low_rank::LowRank;

/// Description file of an adapter.
const CONFIG: &str = "adapter_config.json";
/// Weight file of an adapter.
const WEIGHTS: &str = "adapter_model.safetensors";
