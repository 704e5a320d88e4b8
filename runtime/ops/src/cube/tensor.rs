//! How burn's tensors go into kernels.

use burn::tensor::{DType, Shape, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::ComputeClient;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Most cubes in one dimension of a launch; every device allows that many.
const CUBES: usize = 32_768;

/// A grid of `count` cubes; a kernel leaves those beyond it out (`CUBE_POS >= count`).
pub(super) fn cubes(count: usize) -> CubeCount {
    let x = count.clamp(1, CUBES);
    CubeCount::Static(x as u32, count.div_ceil(x).max(1) as u32, 1)
}

/// An f32 matrix whose rows are contiguous, perhaps with a gap after each: devices pad rows.
pub(super) struct Rows<R: CubeRuntime> {
    tensor: CubeTensor<R>,
    pub(super) rows: usize,
    pub(super) width: usize,
    /// Elements from one row to the next.
    pub(super) stride: usize,
}

impl<R: CubeRuntime> Rows<R> {
    /// A view of the tensor, or of a copy where elements of a row do not stand together.
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

    /// A matrix for a kernel to fill.
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

    /// The tensor to be changed in place: itself if nobody else holds it, else a copy.
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

    /// Whether rows can be read four elements at a time.
    pub(super) fn by_four(&self) -> bool {
        let offset = self.tensor.handle.offset_start.unwrap_or(0);
        self.width.is_multiple_of(4) && self.stride.is_multiple_of(4) && offset.is_multiple_of(16)
    }

    /// The elements, from the first row's first to the last row's last.
    pub(super) fn arg(&self) -> ArrayArg<R> {
        let len = match self.rows {
            0 => 0,
            rows => (rows - 1) * self.stride + self.width,
        };
        array(&self.tensor.handle, len)
    }
}

/// The elements of a contiguous tensor.
pub(super) fn elements<R: CubeRuntime>(tensor: &CubeTensor<R>) -> ArrayArg<R> {
    assert_eq!(tensor.dtype, DType::F32, "activations are f32");
    let tensor = into_contiguous(tensor.clone());
    array(&tensor.handle, tensor.shape().num_elements())
}

/// A contiguous f32 tensor for a kernel to fill.
pub(super) fn empty<R: CubeRuntime>(
    client: &ComputeClient<R>,
    device: &R::Device,
    shape: Shape,
) -> CubeTensor<R> {
    let handle = client.empty(shape.num_elements() * size_of::<f32>());
    CubeTensor::new_contiguous(client.clone(), device.clone(), shape, handle, DType::F32)
}

/// `len` elements of four bytes.
pub(super) fn array<R: CubeRuntime>(handle: &Handle, len: usize) -> ArrayArg<R> {
    array_of(handle, len, 4)
}

/// `len` elements of `size` bytes.
pub(super) fn array_of<R: CubeRuntime>(handle: &Handle, len: usize, size: usize) -> ArrayArg<R> {
    assert!(
        (len * size) as u64 <= handle.size_in_used(),
        "{len} elements in {} bytes",
        handle.size_in_used()
    );
    // SAFETY: so many elements are in the buffer, as was just checked.
    #[allow(unsafe_code)]
    unsafe {
        ArrayArg::from_raw_parts(handle.clone(), len)
    }
}

/// Small numbers for a kernel, such as row indices.
pub(super) fn indices<R: CubeRuntime>(client: &ComputeClient<R>, values: &[u32]) -> ArrayArg<R> {
    array(
        &client.create_from_slice(u32::as_bytes(values)),
        values.len(),
    )
}
