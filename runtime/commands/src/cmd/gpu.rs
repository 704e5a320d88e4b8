//! CUDA section of `edge-lmm doctor`.

/// Describes the GPUs in one line, or why there are none.
pub fn summary() -> String {
    #[cfg(feature = "cuda")]
    {
        match edge_lmm::cuda::gpus() {
            Ok(gpus) => {
                let names: Vec<String> = gpus.iter().map(cuda::describe).collect();
                names.join("; ")
            }
            Err(error) => format!("not usable: {error}"),
        }
    }
    #[cfg(not(feature = "cuda"))]
    "not compiled into this program".to_owned()
}

/// Compiles, runs and times every kernel on the first GPU.
///
/// # Errors
/// If this program or machine does not support CUDA, or a kernel fails.
pub fn try_kernels(json: bool) -> anyhow::Result<()> {
    edge_lmm::Device::Cuda(0).check()?;
    #[cfg(feature = "cuda")]
    cuda::try_kernels(json)?;
    let _ = json;
    Ok(())
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::time::{Duration, Instant};

    use anyhow::anyhow;
    use comfy_table::{Table, presets};
    use edge_lmm::cuda::{Gpu, compile_cache, gpu};
    use edge_lmm::units::bytes;
    use edge_lmm_ops::cube::{CudaDevice, CudaRuntime, Trial, trials};
    use serde_json::json;

    use crate::cmd::options::print_now;

    /// Width of the operands, that of a small language model.
    const WIDTH: usize = 2048;
    /// Tokens of the operands, those of a prefill.
    const TOKENS: usize = 512;

    pub fn describe(gpu: &Gpu) -> String {
        let (major, minor) = gpu.capability;
        let kind = if gpu.integrated { "unified" } else { "own" };
        let size = bytes(gpu.memory as usize);
        format!(
            "{}, compute capability {major}.{minor}, {size} of {kind} memory",
            gpu.name
        )
    }

    pub fn try_kernels(json: bool) -> anyhow::Result<()> {
        let gpu = gpu(0)?;
        let folder = compile_cache(&gpu);
        let start = Instant::now();
        let trials =
            trials::<CudaRuntime>(&CudaDevice::new(0), WIDTH, TOKENS).map_err(|e| anyhow!(e))?;
        let first: Duration = trials.iter().map(|trial| trial.first).sum();
        let kept = match &folder {
            Some(folder) => format!("kept in {}", folder.display()),
            None => "not kept: neither XDG_CACHE_HOME nor HOME is set".to_owned(),
        };
        if json {
            let kernels: Vec<_> = trials.iter().map(as_json).collect();
            let report = json!({
                "gpu": gpu.name,
                "capability": [gpu.capability.0, gpu.capability.1],
                "memory_bytes": gpu.memory,
                "unified": gpu.integrated,
                "cache": folder,
                "first_calls_ms": milliseconds(first),
                "kernels": kernels,
            });
            return print_now(&format!("{report}\n"));
        }
        print_now(&format!(
            "{}\ncompiled kernels are {kept}\n{}\nfirst calls together {:.1} s, all {:.1} s\n",
            describe(&gpu),
            table(&trials),
            first.as_secs_f64(),
            start.elapsed().as_secs_f64(),
        ))
    }

    fn milliseconds(time: Duration) -> f64 {
        time.as_secs_f64() * 1e3
    }

    fn as_json(trial: &Trial) -> serde_json::Value {
        json!({
            "name": trial.name,
            "first_ms": milliseconds(trial.first),
            "call_ms": milliseconds(trial.call),
            "bytes": trial.bytes,
            "products": trial.products,
        })
    }

    fn table(trials: &[Trial]) -> String {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN).set_header([
            "kernel",
            "first call ms",
            "call ms",
            "GB/s",
            "Gproducts/s",
        ]);
        for trial in trials {
            let rate = |count: usize| {
                format!(
                    "{:.0}",
                    count as f64 / trial.call.as_secs_f64().max(1e-9) / 1e9
                )
            };
            table.add_row([
                trial.name.clone(),
                format!("{:.1}", milliseconds(trial.first)),
                format!("{:.3}", milliseconds(trial.call)),
                rate(trial.bytes),
                rate(trial.products),
            ]);
        }
        table.to_string()
    }
}
