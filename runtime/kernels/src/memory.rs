//! Heap accounting: a global allocator that counts the bytes in use and their peak.
//!
//! ```
//! use edge_lmm_kernels::memory::{self, CountingAllocator};
//!
//! #[global_allocator]
//! static ALLOCATOR: CountingAllocator = CountingAllocator;
//!
//! memory::reset_peak();
//! let before = memory::peak_bytes();
//! drop(vec![0u8; 1 << 20]);
//! assert!(memory::peak_bytes() >= before + (1 << 20));
//! ```
//! Both counts are 0 in a program that does not install the allocator. Mapped files are not counted.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static CURRENT: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system allocator with a count of the bytes in use.
#[derive(Clone, Copy, Debug, Default)]
pub struct CountingAllocator;

/// Heap bytes in use.
pub fn current_bytes() -> usize {
    CURRENT.load(Relaxed)
}

/// Peak of the heap bytes in use since the last [`reset_peak`] or [`set_peak`].
pub fn peak_bytes() -> usize {
    PEAK.load(Relaxed)
}

/// Starts a new measurement by setting the peak to the bytes in use.
pub fn reset_peak() {
    set_peak(current_bytes());
}

/// Sets the peak, so that a nested measurement can restore that of the outer one:
/// `set_peak(outer.max(peak_bytes()))`.
pub fn set_peak(bytes: usize) {
    PEAK.store(bytes, Relaxed);
}

/// Makes glibc keep up to 256 MiB of large freed blocks for reuse instead of returning each to the system
/// immediately. The activations of successive layers have the same size; without this, each layer faults
/// in their pages again. Call it once at startup. It does nothing with other C libraries.
pub fn keep_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use std::ffi::c_int;
        // Values from malloc.h.
        const M_TRIM_THRESHOLD: c_int = -1;
        const M_MMAP_THRESHOLD: c_int = -3;
        unsafe extern "C" {
            fn mallopt(parameter: c_int, value: c_int) -> c_int;
        }
        // SAFETY: allocator parameters may be set at any time; 0 reports failure.
        unsafe {
            mallopt(M_TRIM_THRESHOLD, 256 << 20);
            // glibc up to 2.34 accepts at most 32 MiB.
            if mallopt(M_MMAP_THRESHOLD, 1 << 30) == 0 {
                mallopt(M_MMAP_THRESHOLD, 32 << 20);
            }
        }
    }
}

/// Returns freed memory that glibc keeps for reuse to the system. It does nothing with other C libraries.
pub fn release_free() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: the function takes any number and touches only free memory of the allocator.
        unsafe {
            malloc_trim(0);
        }
    }
}

fn grow(bytes: usize) {
    let now = CURRENT.fetch_add(bytes, Relaxed).wrapping_add(bytes);
    // The peak rarely moves; a plain load keeps the line shared between threads.
    if now > PEAK.load(Relaxed) {
        PEAK.fetch_max(now, Relaxed);
    }
}

fn shrink(bytes: usize) {
    CURRENT.fetch_sub(bytes, Relaxed);
}

// SAFETY: every call is forwarded unchanged to `System`, which upholds the contract; the counters
// neither allocate nor unwind.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller upholds the contract of `alloc`.
        let pointer = unsafe { System.alloc(layout) };
        if !pointer.is_null() {
            grow(layout.size());
        }
        pointer
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller upholds the contract of `alloc_zeroed`.
        let pointer = unsafe { System.alloc_zeroed(layout) };
        if !pointer.is_null() {
            grow(layout.size());
        }
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) };
        shrink(layout.size());
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller upholds the contract of `realloc`.
        let new = unsafe { System.realloc(pointer, layout, new_size) };
        if !new.is_null() {
            if new_size >= layout.size() {
                grow(new_size - layout.size());
            } else {
                shrink(layout.size() - new_size);
            }
        }
        new
    }
}
