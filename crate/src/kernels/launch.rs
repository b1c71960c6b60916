//! Fills in a WGSL template and puts it on the queue.

use std::fmt::Debug;
use std::hash::Hash;

use burn::tensor::{DType, Shape};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::template::{KernelSource, SourceKernel, SourceTemplate};
use cubecl::prelude::{CubeCount, CubeDim, KernelId};
use cubecl::server::{KernelArguments, MetadataBindingInfo};

use super::GpuTensor;

/// A fresh tensor that a kernel fills completely.
pub(super) struct Output(GpuTensor);

impl Output {
    /// f32, on the device of `like`.
    pub(super) fn new(like: &GpuTensor, shape: &[usize]) -> Self {
        Self(empty_device_contiguous_dtype(
            like.client.clone(),
            like.device.clone(),
            Shape::from(shape.to_vec()),
            DType::F32,
        ))
    }

    /// 32-bit words instead, on the device of `like`.
    pub(super) fn words(like: &GpuTensor, count: usize) -> Self {
        let shape = Shape::from(vec![count]);
        Self(empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape, DType::I32))
    }
}

impl From<Output> for GpuTensor {
    fn from(output: Output) -> Self {
        output.0
    }
}

/// Workgroups along a row that is folded: no device has to take more than 65,535. The kernels undo it with this number.
const FOLD: usize = 32_768;

/// Workgroup counts for `n` one-dimensional workgroups.
pub(super) fn grid_1d(n: usize) -> [usize; 3] {
    [n.min(FOLD), n.div_ceil(FOLD), 1]
}

/// Workgroup counts for `rows` rows of `n` workgroups each.
pub(super) fn grid_2d(n: usize, rows: usize) -> [usize; 3] {
    [n.min(FOLD), rows, n.div_ceil(FOLD)]
}

/// A kernel written in WGSL, with what is fixed when it is compiled. Sizes are not: they travel in a uniform, so that one
/// compiled pipeline serves every shape. Two kernels are the same pipeline when their variants are equal.
pub(super) trait Variant: Clone + Debug + Eq + Hash + Send + Sync + 'static {
    /// The template.
    const TEXT: &'static str;

    /// Threads of a workgroup, as the template has them.
    fn threads(&self) -> [u32; 2] {
        [64, 1]
    }

    /// The template's placeholders. Asked for only where no pipeline is there yet.
    fn fill(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

struct Kernel<V>(V);

impl<V: Variant> KernelSource for Kernel<V> {
    fn source(&self) -> SourceTemplate {
        self.0
            .fill()
            .into_iter()
            .fold(SourceTemplate::new(V::TEXT), |template, (name, value)| template.register(name, value))
    }

    fn id(&self) -> KernelId {
        KernelId::new::<Self>().info(self.0.clone())
    }

    fn lang(&self) -> &'static str {
        "wgsl"
    }
}

/// Queues a kernel: bindings are the inputs in order, then the output, then a uniform with the words of `info`.
///
/// cubecl keeps uniforms by their words, so that a launch it has seen before writes nothing. A buffer written for each
/// launch would be a submission for each, since writes overtake what is only recorded.
pub(super) fn launch<V: Variant>(variant: V, inputs: &[&GpuTensor], output: &Output, info: &[usize], grid: [usize; 3]) {
    let client = output.0.client.clone();
    // A uniform's struct is a multiple of 16 bytes long.
    let words = info.chunks(4).flat_map(|four| {
        let word = |at: usize| four.get(at).map_or(0, |&value| value as u64 & 0xffff_ffff);
        [word(0) | word(1) << 32, word(2) | word(3) << 32]
    });
    let mut bindings: Vec<_> = inputs.iter().map(|tensor| tensor.handle.clone().binding()).collect();
    bindings.push(output.0.handle.clone().binding());
    let [x, y] = variant.threads();
    client.launch(
        Box::new(SourceKernel::new(Kernel(variant), CubeDim::new_2d(x, y))),
        CubeCount::Static(grid[0] as u32, grid[1] as u32, grid[2] as u32),
        KernelArguments::new().with_buffers(bindings).with_info(MetadataBindingInfo::custom(words.collect())),
    );
}
