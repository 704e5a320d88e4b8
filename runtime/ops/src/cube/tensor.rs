//! Tensors as kernel arguments.

use burn::tensor::{DType, Shape, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::ComputeClient;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Largest number of cubes in one dimension of a launch, supported by all devices.
const CUBES: usize = 32_768;

/// Returns a grid of at least `count` cubes. Kernels must skip those with `CUBE_POS >= count`.
pub(super) fn cubes(count: usize) -> CubeCount {
    let x = count.clamp(1, CUBES);
    CubeCount::Static(x as u32, count.div_ceil(x).max(1) as u32, 1)
}

/// An f32 matrix with contiguous rows. There can be padding between rows.
pub(super) struct Rows<R: CubeRuntime> {
    tensor: CubeTensor<R>,
    pub(super) rows: usize,
    pub(super) width: usize,
    /// Elements from one row to the next.
    pub(super) stride: usize,
}

impl<R: CubeRuntime> Rows<R> {
    /// Views the tensor, or a contiguous copy if its rows are not contiguous.
    pub(super) fn of(tensor: &CubeTensor<R>) -> Self {
        assert_eq!(tensor.dtype, DType::F32, "activations are f32");
        let mut tensor = tensor.clone();
        let shape = tensor.shape();
        let (rows, width) = (shape[0], shape[1]);
        if width > 1 && tensor.meta.strides()[1] != 1 {
            tensor = into_contiguous(tensor);
        }
        Self {
            rows,
            width,
            stride: if rows > 1 {
                tensor.meta.strides()[0]
            } else {
                width
            },
            tensor,
        }
    }

    /// Creates an uninitialized matrix.
    pub(super) fn empty(like: &Self, rows: usize, width: usize) -> Self {
        let (client, device) = (like.client().clone(), like.tensor.device.clone());
        let tensor = empty(&client, &device, [rows, width].into());
        Self {
            tensor,
            rows,
            width,
            stride: width,
        }
    }

    /// Takes the tensor for modification in place, or a copy if it has other owners.
    pub(super) fn owned(tensor: CubeTensor<R>) -> Self {
        let alone = tensor.can_mut() && tensor.is_nonoverlapping();
        let tensor = if alone { tensor } else { tensor.copy() };
        Self::of_owned(tensor)
    }

    fn of_owned(tensor: CubeTensor<R>) -> Self {
        let view = Self::of(&tensor);
        drop(tensor);
        view
    }

    pub(super) fn client(&self) -> &ComputeClient<R> {
        &self.tensor.client
    }

    pub(super) fn into_tensor(self) -> CubeTensor<R> {
        self.tensor
    }

    /// Returns `true` if rows can be read four elements at a time.
    pub(super) fn by_four(&self) -> bool {
        let offset = self.tensor.handle.offset_start.unwrap_or(0);
        self.width.is_multiple_of(4) && self.stride.is_multiple_of(4) && offset.is_multiple_of(16)
    }

    /// Returns the elements as a kernel argument, from the first of the first row to the last of
    /// the last row.
    pub(super) fn arg(&self) -> ArrayArg<R> {
        let len = match self.rows {
            0 => 0,
            rows => (rows - 1) * self.stride + self.width,
        };
        array(&self.tensor.handle, len)
    }
}

/// Returns the elements of a tensor as a kernel argument, contiguous.
pub(super) fn elements<R: CubeRuntime>(tensor: &CubeTensor<R>) -> ArrayArg<R> {
    assert_eq!(tensor.dtype, DType::F32, "activations are f32");
    let tensor = into_contiguous(tensor.clone());
    array(&tensor.handle, tensor.shape().num_elements())
}

/// Creates an uninitialized contiguous f32 tensor.
pub(super) fn empty<R: CubeRuntime>(
    client: &ComputeClient<R>,
    device: &R::Device,
    shape: Shape,
) -> CubeTensor<R> {
    let handle = client.empty(shape.num_elements() * size_of::<f32>());
    CubeTensor::new_contiguous(client.clone(), device.clone(), shape, handle, DType::F32)
}

/// Returns `len` elements of four bytes as a kernel argument.
pub(super) fn array<R: CubeRuntime>(handle: &Handle, len: usize) -> ArrayArg<R> {
    array_of(handle, len, 4)
}

/// Returns `len` elements of `size` bytes as a kernel argument.
pub(super) fn array_of<R: CubeRuntime>(handle: &Handle, len: usize, size: usize) -> ArrayArg<R> {
    assert!(
        (len * size) as u64 <= handle.size_in_used(),
        "{len} elements in {} bytes",
        handle.size_in_used()
    );
    // SAFETY: the size of the buffer is checked above.
    #[allow(unsafe_code)]
    unsafe {
        ArrayArg::from_raw_parts(handle.clone(), len)
    }
}

/// Returns integers, such as row indices, as a kernel argument.
pub(super) fn indices<R: CubeRuntime>(client: &ComputeClient<R>, values: &[u32]) -> ArrayArg<R> {
    array(
        &client.create_from_slice(u32::as_bytes(values)),
        values.len(),
    )
}

/// Returns f32 values of the host as a kernel argument.
pub(super) fn floats<R: CubeRuntime>(client: &ComputeClient<R>, values: &[f32]) -> ArrayArg<R> {
    array(
        &client.create_from_slice(f32::as_bytes(values)),
        values.len(),
    )
}
