//! Fills in a WGSL template and puts it on the queue.

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

/// Workgroup counts for `n` one-dimensional workgroups. The kernels undo the fold with the same 32768.
pub(super) fn grid_1d(n: usize) -> [usize; 2] {
    [n.min(32_768), n.div_ceil(32_768)]
}

/// A template with its placeholders filled in. Sizes never go into the text: they travel in the uniform, so that one
/// compiled pipeline serves every shape.
pub(super) struct Kernel {
    name: &'static str,
    text: &'static str,
    threads: [u32; 2],
    items: Vec<(&'static str, String)>,
    key: Vec<u32>,
}

impl Kernel {
    pub(super) fn new(name: &'static str, text: &'static str, threads: [u32; 2]) -> Self {
        Self { name, text, threads, items: Vec::new(), key: Vec::new() }
    }

    /// Fills one placeholder. `key` must tell apart all values the placeholder can take: it is what the pipeline
    /// cache looks at.
    pub(super) fn with(mut self, placeholder: &'static str, value: &str, key: u32) -> Self {
        self.items.push((placeholder, value.to_string()));
        self.key.push(key);
        self
    }

    /// Queues the kernel: bindings are the inputs in order, then the output, then a uniform with the words of `info`.
    ///
    /// cubecl keeps uniforms by their words, so that a launch it has seen before writes nothing. A buffer written for
    /// each launch would be a submission for each, since writes overtake what is only recorded.
    pub(super) fn launch(self, inputs: &[&GpuTensor], output: &Output, info: &[usize], grid: [usize; 2]) {
        let client = output.0.client.clone();
        // A uniform's struct is a multiple of 16 bytes long.
        let words = info.chunks(4).flat_map(|four| {
            let word = |at: usize| four.get(at).map_or(0, |&value| value as u64 & 0xffff_ffff);
            [word(0) | word(1) << 32, word(2) | word(3) << 32]
        });
        let mut bindings: Vec<_> = inputs.iter().map(|tensor| tensor.handle.clone().binding()).collect();
        bindings.push(output.0.handle.clone().binding());
        let dim = CubeDim::new_2d(self.threads[0], self.threads[1]);
        client.launch(
            Box::new(SourceKernel::new(self, dim)),
            CubeCount::Static(grid[0] as u32, grid[1] as u32, 1),
            KernelArguments::new().with_buffers(bindings).with_info(MetadataBindingInfo::custom(words.collect())),
        );
    }
}

impl KernelSource for Kernel {
    fn source(&self) -> SourceTemplate {
        self.items
            .iter()
            .fold(SourceTemplate::new(self.text), |template, (name, value)| template.register(*name, value.clone()))
    }

    fn id(&self) -> KernelId {
        KernelId::new::<Self>().info((self.name, self.key.clone()))
    }

    fn lang(&self) -> &'static str {
        "wgsl"
    }
}
