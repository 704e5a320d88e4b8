//! GPUs and libraries that CUDA finds on this machine, checked before the CUDA runtime is started,
//! which panics where something is missing. The driver is asked through its own library ([CUDA
//! driver API](https://docs.nvidia.com/cuda/cuda-driver-api/)), opened at run time.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;

/// Names of the driver's library.
const DRIVER: &[&str] = &["libcuda.so.1", "libcuda.so"];
/// Names of the run-time compiler's library; the runtime tries the same ones.
const COMPILER: &[&str] = &[
    "libnvrtc.so",
    "libnvrtc.so.13",
    "libnvrtc.so.12",
    "libnvrtc.so.11",
];
/// A header that the kernels include.
const HEADER: &str = "cuda_fp16.h";

/// The oldest CUDA that the bindings know how to use, as the driver counts: 1000 for a major version, 10 for a minor one.
const OLDEST: c_int = 12_000;

/// Attributes of a device, by their numbers in `cuda.h`.
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;
const INTEGRATED: c_int = 18;

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Name.
    pub name: String,
    /// Compute capability, such as 8.7 for Orin.
    pub capability: (i32, i32),
    /// Bytes of its memory.
    pub memory: u64,
    /// `true` if the GPU shares the memory of the machine, as on a Jetson.
    pub integrated: bool,
}

/// Reason why CUDA cannot be used.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CudaError {
    /// A library is missing.
    #[error("{library} cannot be opened ({reason}): {remedy}")]
    Library {
        /// Name.
        library: &'static str,
        /// The loader's reason.
        reason: String,
        /// Remedy.
        remedy: &'static str,
    },
    /// The headers are missing.
    #[error(
        "the CUDA headers ({HEADER}) are not in {}: kernels are compiled on this machine and need \
         them; install the CUDA toolkit or set CUDA_PATH",
        path.display()
    )]
    Headers {
        /// Folder that was searched.
        path: PathBuf,
    },
    /// The driver refuses.
    #[error("the CUDA driver's {call} failed with error {code}: is a GPU there, and its driver?")]
    Driver {
        /// The function.
        call: &'static str,
        /// Error code.
        code: c_int,
    },
    /// The driver is too old.
    #[error(
        "the driver has CUDA {}.{}, this program needs {}.{} or newer: update the driver (on a Jetson, to JetPack 6), or use \
         the CPU",
        found / 1000, found % 1000 / 10, OLDEST / 1000, OLDEST % 1000 / 10
    )]
    Version {
        /// The version that it says it has.
        found: c_int,
    },
    /// There are not so many GPUs.
    #[error("there is no CUDA device {index}, the machine has {count}")]
    NoDevice {
        /// The one asked for.
        index: usize,
        /// Number of GPUs.
        count: usize,
    },
}

/// Returns the GPU of an index if kernels can be compiled and run for it.
///
/// # Errors
/// Says what is missing.
pub fn gpu(index: usize) -> Result<Gpu, CudaError> {
    let gpus = gpus()?;
    let count = gpus.len();
    gpus.into_iter()
        .nth(index)
        .ok_or(CudaError::NoDevice { index, count })
}

/// Returns the free memory in bytes of the GPU of an index, which must be usable.
///
/// # Errors
/// If the driver reports an error.
pub fn free_memory(index: usize) -> Result<u64, CudaError> {
    type Device = extern "C" fn(*mut c_int, c_int) -> c_int;
    type Retain = extern "C" fn(*mut *mut c_void, c_int) -> c_int;
    type Enter = extern "C" fn(*mut c_void) -> c_int;
    type Info = extern "C" fn(*mut usize, *mut usize) -> c_int;
    let driver = Library::open(DRIVER[0], DRIVER, "it comes with the NVIDIA driver")?;
    // SAFETY: these are the functions' types in `cuda.h`.
    #[allow(unsafe_code)]
    let (device, retain, enter, info) = unsafe {
        (
            std::mem::transmute::<*mut c_void, Device>(driver.symbol(c"cuDeviceGet")?),
            std::mem::transmute::<*mut c_void, Retain>(driver.symbol(c"cuDevicePrimaryCtxRetain")?),
            std::mem::transmute::<*mut c_void, Enter>(driver.symbol(c"cuCtxSetCurrent")?),
            std::mem::transmute::<*mut c_void, Info>(driver.symbol(c"cuMemGetInfo_v2")?),
        )
    };
    let (mut id, mut context, mut free, mut total) = (0, std::ptr::null_mut(), 0, 0);
    check("cuDeviceGet", device(&mut id, index as c_int))?;
    // Held for the rest of the program, as the runtime holds it, too.
    check("cuDevicePrimaryCtxRetain", retain(&mut context, id))?;
    check("cuCtxSetCurrent", enter(context))?;
    check("cuMemGetInfo", info(&mut free, &mut total))?;
    Ok(free as u64)
}

fn check(call: &'static str, code: c_int) -> Result<(), CudaError> {
    match code {
        0 => Ok(()),
        code => Err(CudaError::Driver { call, code }),
    }
}

/// Returns all GPUs if kernels can be compiled and run for them.
///
/// # Errors
/// Says what is missing.
pub fn gpus() -> Result<Vec<Gpu>, CudaError> {
    let driver = Library::open(
        "libcuda.so.1",
        DRIVER,
        "it comes with the NVIDIA driver (on a Jetson, with JetPack)",
    )?;
    Library::open(
        "libnvrtc.so",
        COMPILER,
        "install CUDA's run-time compiler (NVRTC), and let LD_LIBRARY_PATH name its folder",
    )?;
    let path = headers();
    if !path.join(HEADER).is_file() {
        return Err(CudaError::Headers { path });
    }
    driver.gpus()
}

/// Returns the folder of compiled kernels and creates it if it is missing. It lies below
/// `XDG_CACHE_HOME` or `~/.cache`, one for each build of this program and kind of GPU. With it, a
/// start needs no compilation. `None` if there is no such place.
pub fn compile_cache(gpu: &Gpu) -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let root = match variable("XDG_CACHE_HOME") {
        Some(root) => PathBuf::from(root),
        None => PathBuf::from(variable("HOME")?).join(".cache"),
    };
    // Kernels are kept by name, not by code: another build may have other code.
    let program = std::fs::metadata(std::env::current_exe().ok()?).ok()?;
    let mut build = program.len().to_le_bytes().to_vec();
    if let Ok(Ok(time)) = program
        .modified()
        .map(|time| time.duration_since(std::time::UNIX_EPOCH))
    {
        build.extend(time.as_nanos().to_le_bytes());
    }
    let (major, minor) = gpu.capability;
    let folder = root.join(format!(
        "edge-lmm/{}-{:016x}-sm_{major}{minor}",
        env!("CARGO_PKG_VERSION"),
        xxhash_rust::xxh3::xxh3_64(&build),
    ));
    if let Err(error) = std::fs::create_dir_all(&folder) {
        log::warn!(
            "compiled kernels are not kept: {}: {error}",
            folder.display()
        );
        return None;
    }
    edge_lmm_ops::cube::keep_compiled(&folder);
    Some(folder)
}

/// Returns the folder where the runtime looks for headers.
fn headers() -> PathBuf {
    let folders = ["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from);
    let found = || folders.into_iter().find(|folder| folder.exists());
    let root = std::env::var_os("CUDA_PATH").map(PathBuf::from);
    let root = root.or_else(found);
    root.unwrap_or_else(|| "/usr/local/cuda".into())
        .join("include")
}

/// A shared library, open for the rest of the program.
struct Library(*mut c_void);

impl Library {
    fn open(
        library: &'static str,
        names: &[&str],
        remedy: &'static str,
    ) -> Result<Self, CudaError> {
        let mut reason = String::new();
        for name in names {
            let name = CString::new(*name).unwrap_or_default();
            // SAFETY: the name is a C string. Loading runs the library's own initialization, as
            // the CUDA runtime would.
            #[allow(unsafe_code)]
            let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
            if !handle.is_null() {
                return Ok(Self(handle));
            }
            // SAFETY: after a failure, dlerror gives a C string that is valid until the next call.
            #[allow(unsafe_code)]
            let error = unsafe { CStr::from_ptr(libc::dlerror()) };
            if reason.is_empty() {
                reason = error.to_string_lossy().into_owned();
            }
        }
        Err(CudaError::Library {
            library,
            reason,
            remedy,
        })
    }

    /// Returns the address of a function.
    fn symbol(&self, name: &'static CStr) -> Result<*mut c_void, CudaError> {
        // SAFETY: the library is open and the name a C string.
        #[allow(unsafe_code)]
        let address = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        if address.is_null() {
            return Err(CudaError::Library {
                library: "libcuda.so.1",
                reason: format!("it has no {}", name.to_string_lossy()),
                remedy: "the NVIDIA driver is too old",
            });
        }
        Ok(address)
    }

    fn gpus(&self) -> Result<Vec<Gpu>, CudaError> {
        type Init = extern "C" fn(u32) -> c_int;
        type Version = extern "C" fn(*mut c_int) -> c_int;
        type Count = extern "C" fn(*mut c_int) -> c_int;
        type Device = extern "C" fn(*mut c_int, c_int) -> c_int;
        type Name = extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
        type Memory = extern "C" fn(*mut usize, c_int) -> c_int;
        type Attribute = extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
        // SAFETY: these are the functions' types in `cuda.h`.
        #[allow(unsafe_code)]
        let (init, version, count, device, name, memory, attribute) = unsafe {
            (
                std::mem::transmute::<*mut c_void, Init>(self.symbol(c"cuInit")?),
                std::mem::transmute::<*mut c_void, Version>(self.symbol(c"cuDriverGetVersion")?),
                std::mem::transmute::<*mut c_void, Count>(self.symbol(c"cuDeviceGetCount")?),
                std::mem::transmute::<*mut c_void, Device>(self.symbol(c"cuDeviceGet")?),
                std::mem::transmute::<*mut c_void, Name>(self.symbol(c"cuDeviceGetName")?),
                std::mem::transmute::<*mut c_void, Memory>(self.symbol(c"cuDeviceTotalMem_v2")?),
                std::mem::transmute::<*mut c_void, Attribute>(
                    self.symbol(c"cuDeviceGetAttribute")?,
                ),
            )
        };
        let mut found = 0;
        check("cuDriverGetVersion", version(&mut found))?;
        if found < OLDEST {
            return Err(CudaError::Version { found });
        }
        check("cuInit", init(0))?;
        let mut number = 0;
        check("cuDeviceGetCount", count(&mut number))?;
        (0..number)
            .map(|index| {
                let (mut id, mut text, mut bytes) = (0, [0 as c_char; 128], 0);
                check("cuDeviceGet", device(&mut id, index))?;
                let length = text.len() as c_int - 1;
                check("cuDeviceGetName", name(text.as_mut_ptr(), length, id))?;
                check("cuDeviceTotalMem", memory(&mut bytes, id))?;
                let attribute = |number| {
                    let mut value = 0;
                    let code = attribute(&mut value, number, id);
                    check("cuDeviceGetAttribute", code).map(|()| value)
                };
                let text: Vec<u8> = text
                    .iter()
                    .take_while(|&&c| c != 0)
                    .map(|&c| c as u8)
                    .collect();
                Ok(Gpu {
                    name: String::from_utf8_lossy(&text).into_owned(),
                    capability: (attribute(CAPABILITY_MAJOR)?, attribute(CAPABILITY_MINOR)?),
                    memory: bytes as u64,
                    integrated: attribute(INTEGRATED)? != 0,
                })
            })
            .collect()
    }
}
