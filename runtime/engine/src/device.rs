//! Devices that models run on.

use std::fmt;
use std::str::FromStr;

use edge_lmm_ops::KernelBackend;
use edge_lmm_ops::stage::Synchronize;

/// Device to compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// The processor.
    Cpu,
    /// A CUDA device by its index.
    Cuda(usize),
    /// The first Vulkan device.
    Vulkan,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            None if text == "vulkan" => Ok(Self::Vulkan),
            Some(("cuda", index)) => index
                .parse()
                .map(Self::Cuda)
                .map_err(|_| format!("{index:?} is no device index")),
            _ => Err("expected cpu, cuda, cuda:N or vulkan".to_owned()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Vulkan => f.write_str("vulkan"),
        }
    }
}

/// Devices in the order in which they are tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices(Vec<Device>);

impl FromStr for Devices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',')
            .map(Device::from_str)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl Devices {
    /// Returns the first usable device; those before it are reported in the log.
    ///
    /// # Errors
    /// Why the last one cannot be used, if none can.
    pub fn choose(&self) -> Result<Device, DeviceError> {
        let (last, others) = self.0.split_last().ok_or(DeviceError::None)?;
        for &device in others {
            match device.check() {
                Ok(()) => return Ok(device),
                Err(error) => log::warn!("{error}"),
            }
        }
        last.check().map(|()| *last)
    }
}

/// Reason why a device cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No device was named.
    #[error("no device was named")]
    None,
    /// This program was built without support for the device.
    #[error(
        "this program was built without {name}: build it with the Cargo feature `{feature}`, or \
         use the CPU"
    )]
    NotBuilt {
        /// Name of the device's backend.
        name: &'static str,
        /// The cargo feature that has it.
        feature: &'static str,
    },
    /// Error of CUDA.
    #[cfg(feature = "cuda")]
    #[error("CUDA: {0}")]
    Cuda(#[from] crate::cuda::CudaError),
    /// Vulkan.
    #[cfg(feature = "vulkan")]
    #[error(
        "no Vulkan device can be opened: install a Vulkan driver and its loader (libvulkan.so.1)"
    )]
    Vulkan,
}

impl Device {
    /// The kinds of devices that this program was built for.
    pub const BUILT: &[&str] = &[
        "cpu",
        #[cfg(feature = "cuda")]
        "cuda",
        #[cfg(feature = "vulkan")]
        "vulkan",
    ];

    /// Checks that this program and this machine have it, and prepares the folder of compiled
    /// kernels.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn check(self) -> Result<(), DeviceError> {
        match self {
            Self::Cpu => Ok(()),
            #[cfg(feature = "cuda")]
            Self::Cuda(index) => {
                crate::cuda::compile_cache(&crate::cuda::gpu(index)?);
                edge_lmm_ops::cube::memory::watch();
                Ok(())
            }
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(_) => Err(DeviceError::NotBuilt {
                name: "CUDA",
                feature: "cuda",
            }),
            #[cfg(feature = "vulkan")]
            Self::Vulkan => check_vulkan(),
            #[cfg(not(feature = "vulkan"))]
            Self::Vulkan => Err(DeviceError::NotBuilt {
                name: "Vulkan",
                feature: "vulkan",
            }),
        }
    }

    /// Describes the device and the instruction set or kind of GPU. The device must have been
    /// checked.
    pub(crate) fn fingerprint(self) -> String {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(index) => crate::Cuda::fingerprint(&cuda_device(index)),
            #[cfg(feature = "vulkan")]
            Self::Vulkan => crate::Vulkan::fingerprint(&Default::default()),
            _ => crate::Cpu::fingerprint(&Default::default()),
        }
    }

    /// Returns a function that waits until the device has completed its work, if work is
    /// asynchronous. The device must have been checked.
    pub(crate) fn synchronize(self) -> Option<Synchronize> {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(index) => Some(synchronize::<crate::Cuda>(cuda_device(index))),
            #[cfg(feature = "vulkan")]
            Self::Vulkan => Some(synchronize::<crate::Vulkan>(Default::default())),
            _ => None,
        }
    }
}

#[cfg(feature = "cuda")]
pub(crate) fn cuda_device(index: usize) -> edge_lmm_ops::cube::CudaDevice {
    edge_lmm_ops::cube::CudaDevice::new(index)
}

/// Waits until a device has done its work.
pub(crate) fn synchronize<B: KernelBackend>(device: B::Device) -> Synchronize {
    Box::new(move || {
        if let Err(error) = B::sync(&device) {
            // Whoever reads the next result gets the error.
            log::error!("the device failed: {error}");
        }
    })
}

/// Checks for a Vulkan device. The runtime panics if there is none and cannot be asked first.
#[cfg(feature = "vulkan")]
fn check_vulkan() -> Result<(), DeviceError> {
    use burn::tensor::backend::Backend;
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let opened = std::panic::catch_unwind(|| crate::Vulkan::sync(&Default::default()));
    std::panic::set_hook(hook);
    match opened {
        Ok(Ok(())) => {
            edge_lmm_ops::cube::memory::watch();
            Ok(())
        }
        _ => Err(DeviceError::Vulkan),
    }
}

/// Returns the free memory of a GPU in bytes, if it can be measured.
pub(crate) fn free_memory(device: Device) -> Option<u64> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => crate::cuda::free_memory(index).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (text, device) in [
            ("cpu", Device::Cpu),
            ("cuda:0", Device::Cuda(0)),
            ("cuda:3", Device::Cuda(3)),
            ("vulkan", Device::Vulkan),
        ] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:x", "cpu:1", "vulkan:0"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_first_usable_device_is_taken() {
        let devices = |text: &str| text.parse::<Devices>().unwrap();
        assert_eq!(devices("cpu,cuda").choose().unwrap(), Device::Cpu);
        assert!("cuda,,cpu".parse::<Devices>().is_err());
        #[cfg(not(feature = "cuda"))]
        {
            assert_eq!(devices("cuda,cpu").choose().unwrap(), Device::Cpu);
            let error = devices("cuda").choose().unwrap_err().to_string();
            assert!(error.contains("`cuda`"), "{error}");
        }
    }
}
