//! Reusable buffers, and slices that several tasks write to.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Floats per cache line.
const LINE: usize = 16;

/// Calls `f` with a buffer of `len` elements of arbitrary content, aligned to a cache line. Each thread
/// reuses its buffers, so that repeated calls do not allocate.
pub(crate) fn with<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = FREE.with_borrow_mut(|free| free.pop()).unwrap_or_default();
    let needed = len + LINE;
    if buffer.len() < needed {
        // `resize` alone would copy the old content to the new allocation.
        if buffer.capacity() < needed {
            buffer = Vec::new();
        }
        buffer.resize(needed, 0.0);
    }
    // Without the alignment the result is the same, only slower.
    let start = buffer.as_ptr().align_offset(LINE * 4).min(LINE);
    let result = f(&mut buffer[start..start + len]);
    FREE.with_borrow_mut(|free| free.push(buffer));
    result
}

/// A mutable slice of which several tasks write disjoint parts.
pub(crate) struct Parts<'a, T> {
    pointer: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: `part` is the only access, and its caller promises that parts do not overlap.
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
        // SAFETY: the range is checked above; the caller promises that it is not aliased.
        unsafe {
            std::slice::from_raw_parts_mut(self.pointer.add(range.start), range.end - range.start)
        }
    }
}

/// Returns a vector of `len` floats written by `fill`. Its memory is not cleared first, which would take
/// as long as many of the operations that fill it.
///
/// # Safety
/// `fill` must write every element.
pub(crate) unsafe fn fresh(len: usize, fill: impl FnOnce(&Parts<MaybeUninit<f32>>)) -> Vec<f32> {
    let mut out = Vec::with_capacity(len);
    fill(&Parts::new(&mut out.spare_capacity_mut()[..len]));
    // SAFETY: the caller promises that `fill` has written all elements.
    unsafe { out.set_len(len) };
    out
}

/// Initializes the floats to zero. They are overwritten soon, while still in the cache.
pub(crate) fn zeroed(floats: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    for float in &mut *floats {
        float.write(0.0);
    }
    // SAFETY: all elements are initialized above.
    unsafe { floats.assume_init_mut() }
}

/// Views floats as bytes.
pub(crate) fn as_bytes(floats: &mut [f32]) -> &mut [u8] {
    // SAFETY: a float is four bytes, any bytes are a valid float, and bytes have no alignment.
    unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), floats.len() * 4) }
}

/// Views floats as integers.
pub(crate) fn as_ints(floats: &mut [f32]) -> &mut [i32] {
    // SAFETY: both types have the same size and alignment, and all bit patterns are valid in both.
    unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), floats.len()) }
}

/// Views floats as possibly uninitialized. Callers must not write uninitialized values.
pub(crate) fn as_uninit(floats: &mut [f32]) -> &mut [MaybeUninit<f32>] {
    // SAFETY: both types have the same layout; callers write initialized floats only.
    unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), floats.len()) }
}
