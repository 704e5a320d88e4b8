//! The experiments, one file each.

pub mod audio_length;
pub mod audio_padding;
pub mod defects;
pub mod frame_ablation;
pub mod modality_bottleneck;
pub mod module_profile;
pub mod multiturn;
pub mod parallel;
pub mod projection_compare;
pub mod quantization;
pub mod resolution;
pub mod serial_vs_parallel;
pub mod threads;
pub mod token_prefill;
pub mod token_reduction;
pub mod two_devices;
pub mod video_audio_encode;
