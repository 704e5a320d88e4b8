//! Buffers that are kept between calls, and writing to one slice from several tasks.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Floats of a cache line.
const LINE: usize = 16;

/// Lends a buffer of `len` elements of arbitrary content that begins with a cache line. Each thread keeps its buffers,
/// so that steady work allocates nothing.
pub(crate) fn with<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = FREE.with_borrow_mut(|free| free.pop()).unwrap_or_default();
    let needed = len + LINE;
    if buffer.len() < needed {
        // A new one where it must move: `resize` alone would copy the old content.
        if buffer.capacity() < needed {
            buffer = Vec::new();
        }
        buffer.resize(needed, 0.0);
    }
    // Should the alignment be impossible to find, the work is slower, not wrong.
    let start = buffer.as_ptr().align_offset(LINE * 4).min(LINE);
    let result = f(&mut buffer[start..start + len]);
    FREE.with_borrow_mut(|free| free.push(buffer));
    result
}

/// A mutable slice that several tasks write to, each its own part.
pub(crate) struct Parts<'a, T> {
    pointer: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it only hands out parts, and whoever asks for one promises that nobody else has it.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self {
            pointer: slice.as_mut_ptr(),
            len: slice.len(),
            slice: PhantomData,
        }
    }

    /// The elements in `range`.
    ///
    /// # Safety
    /// No other part that overlaps `range` may be alive.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "part {range:?} of {}",
            self.len
        );
        // SAFETY: within the slice as just checked, and not aliased as the caller promises.
        unsafe {
            std::slice::from_raw_parts_mut(self.pointer.add(range.start), range.end - range.start)
        }
    }
}

/// A new vector of `len` floats, all of which `fill` writes. Its memory is not cleared before: that would take as long as
/// much of what is done with it.
///
/// # Safety
/// `fill` must write every element.
pub(crate) unsafe fn fresh(len: usize, fill: impl FnOnce(&Parts<MaybeUninit<f32>>)) -> Vec<f32> {
    let mut out = Vec::with_capacity(len);
    fill(&Parts::new(&mut out.spare_capacity_mut()[..len]));
    // SAFETY: they have just been written, as the caller promises.
    unsafe { out.set_len(len) };
    out
}

/// Clears what was not initialized, where it is about to be written anyway and stays in the cache.
pub(crate) fn zeroed(floats: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    for float in &mut *floats {
        float.write(0.0);
    }
    // SAFETY: written just now.
    unsafe { floats.assume_init_mut() }
}

/// The same memory as bytes.
pub(crate) fn as_bytes(floats: &mut [f32]) -> &mut [u8] {
    // SAFETY: any four bytes are a float and a float is four bytes; alignment 1 is less than 4.
    unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), floats.len() * 4) }
}

/// The same memory as integers.
pub(crate) fn as_ints(floats: &mut [f32]) -> &mut [i32] {
    // SAFETY: the types have the same size and alignment, and any bits are valid in both.
    unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), floats.len()) }
}

/// The same memory, as what may be written before it is read. Nothing uninitialized may be written to it.
pub(crate) fn as_uninit(floats: &mut [f32]) -> &mut [MaybeUninit<f32>] {
    // SAFETY: the types have the same layout; this module's users only ever write floats.
    unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), floats.len()) }
}
