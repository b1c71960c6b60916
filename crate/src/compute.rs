//! The device a model runs on.

use std::rc::Rc;

use burn::tensor::{Device, Tensor, TensorData};

use crate::error::{Error, Result};
use crate::model::shards::RawTensor;

/// Which family of code paths a device takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// burn's flex backend on the processor (SIMD, in wasm too).
    Cpu,
    /// wgpu: WebGPU in a browser, Vulkan, Metal or DirectX natively.
    Gpu,
}

/// A device and how to use it.
#[derive(Clone)]
pub struct Compute {
    /// burn's handle.
    pub device: Device,
    /// CPU or GPU.
    pub kind: Kind,
    /// Human-readable name of the adapter.
    pub adapter: String,
    /// Whether the adapter is a software rasteriser (or the CPU itself).
    pub software: bool,
    /// On the CPU, widen quantized weights once at load (small models) and not at every use (large ones).
    pub widen_on_load: bool,
    /// Bytes of the longest buffer that the device gives and binds whole; no bound on the CPU.
    pub longest_buffer: Option<u64>,
    /// What the device reported since it was made; checked at every read-back.
    pub faults: std::sync::Arc<crate::gpu::Faults>,
    /// In a browser: destroys the buffers that nothing here refers to any more. Else they would wait for a garbage
    /// collector that does not see what they weigh.
    pub sweep: Option<Rc<dyn Fn()>>,
    /// Stand for inputs that a kernel has a place for and a call does not give. Two, because the buffers of a launch must
    /// be different ones.
    pub nothing: [Tensor<1>; 2],
}

/// [`Compute::nothing`] of a device.
pub fn nothing(device: &Device) -> [Tensor<1>; 2] {
    [Tensor::zeros([1], device), Tensor::zeros([1], device)]
}

impl Compute {
    /// The processor.
    pub fn cpu() -> Self {
        let device = Device::flex();
        Self {
            nothing: nothing(&device),
            device,
            kind: Kind::Cpu,
            adapter: "CPU".to_string(),
            software: true,
            widen_on_load: true,
            longest_buffer: None,
            faults: Default::default(),
            sweep: None,
        }
    }

    /// A tensor of the model as f32 on the device, flat.
    pub fn upload(&self, raw: &RawTensor) -> Result<Tensor<1>> {
        let values = raw.to_f32()?;
        let count = values.len();
        Ok(Tensor::from_data(TensorData::new(values, [count]), &self.device))
    }

    /// Host values to the device.
    pub fn tensor<const D: usize>(&self, values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values, shape), &self.device)
    }

    /// Device values to the host; also the point where faults of the device come to light.
    pub async fn read<const D: usize>(&self, tensor: Tensor<D>) -> Result<Vec<f32>> {
        self.faults.check()?;
        let data = tensor.into_data_async().await;
        self.faults.check()?;
        data.map_err(|e| Error::Internal(format!("reading from the device failed: {e:?}")))?
            .try_into_vec::<f32>()
            .map_err(|e| Error::Internal(format!("the device returned another type than f32: {e:?}")))
    }

    /// Gives memory back that is kept for tensors to come: those that follow are of other sizes, or another program's.
    pub async fn give_back(&self) -> Result<()> {
        self.device.memory_cleanup();
        // A buffer may be destroyed once the commands that use it have been submitted.
        self.drain(&self.nothing[0]).await?;
        if let Some(sweep) = &self.sweep {
            sweep();
        }
        Ok(())
    }

    /// Waits until the device has caught up, so that a long chain of kernels neither piles up memory nor trips a
    /// watchdog. Costs nothing on the CPU.
    pub async fn drain<const D: usize>(&self, tensor: &Tensor<D>) -> Result<()> {
        if self.kind == Kind::Gpu {
            // One element is enough: the queue runs in order.
            let first = tensor.clone().reshape([-1i32]).slice(0..1);
            self.read::<1>(first).await?;
        }
        Ok(())
    }
}
