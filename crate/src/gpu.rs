//! Brings up a wgpu device of our own and hands it to burn.
//!
//! burn could ask for a device itself, but on wasm it then unwraps every refusal, takes every feature the adapter has
//! and lets an invalid shader pass in silence, which leaves whatever an earlier kernel left in the output buffer. Here
//! the device's lost and error callbacks write into [`Faults`], which every read-back looks at.

use std::sync::{Arc, Mutex};

use burn::tensor::Device;
use burn::tensor::wgpu::WgpuSetup;
use wgpu::{DeviceType, Features, Limits};

use crate::compute::{Compute, Kind, nothing};
use crate::error::{Error, Result};
use crate::model::manifest::Manifest;

/// What a device has reported about itself since it was made.
#[derive(Debug, Default)]
pub struct Faults(Mutex<Option<Error>>);

impl Faults {
    /// Keeps the first fault; a lost device overrides it, because everything else follows from that.
    fn report(&self, fault: Error) {
        log::error!("graphics device: {fault}");
        let mut first = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if first.is_none() || matches!(fault, Error::DeviceLost(_)) {
            *first = Some(fault);
        }
    }

    /// The fault, if there was one.
    pub fn check(&self) -> Result<()> {
        match &*self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            Some(fault) => Err(fault.clone()),
            None => Ok(()),
        }
    }
}

/// What the kernels of a GPU ask of a model; the CPU takes any width and size.
pub(crate) fn fits(manifest: &Manifest) -> Result<()> {
    let (text, wan) = (&manifest.text_encoder, &manifest.transformer);
    let widths = [
        ("text_encoder.d_model", text.d_model),
        ("text_encoder.d_kv", text.d_kv),
        ("text_encoder.d_ff", text.d_ff),
        ("transformer.attention_head_dim", wan.attention_head_dim),
        ("transformer.freq_dim", wan.freq_dim),
        ("transformer.ffn_dim", wan.ffn_dim),
        ("a patch of the latents", wan.in_channels * wan.patch_size.iter().product::<usize>()),
    ];
    match widths.into_iter().find(|(_, width)| !width.is_multiple_of(4)) {
        Some((name, width)) => Err(Error::UnsupportedFeature(format!(
            "four values are read at once there, and {name} is {width}, which is no multiple of 4"
        ))),
        None => Ok(()),
    }
}

/// How to ask for a GPU.
#[derive(Clone, Copy, Debug, Default)]
pub struct GpuOptions {
    /// Ask for nothing beyond the limits that every WebGPU device guarantees, to test what a phone would refuse. One
    /// exception: burn's own kernels need more than 256 invocations where the subgroups are wider than 32 lanes.
    pub strict_limits: bool,
}

/// Bytes of the longest buffer that the engine takes, whatever the adapter offers: what every WebGPU device binds. A clip
/// that works on one device is not too long for another.
pub const LONGEST_BUFFER: u64 = 128 << 20;

/// Finds an adapter, makes a device and registers it with burn.
///
/// Errors: [`Error::NoAdapter`], [`Error::UnsupportedFeature`] (no timestamp queries in a browser).
pub async fn open(options: GpuOptions) -> Result<Compute> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = instance
        .request_adapter(&wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        })
        .await
        .map_err(|e| Error::NoAdapter(e.to_string()))?;
    // burn's runtime panics in a browser without them.
    let needed = if cfg!(target_family = "wasm") { Features::TIMESTAMP_QUERY } else { Features::empty() };
    if !adapter.features().contains(needed) {
        return Err(Error::UnsupportedFeature("its driver offers no timestamp queries".into()));
    }
    let limits = wanted_limits(&adapter, options);
    let longest_buffer = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(LONGEST_BUFFER);
    let (device, queue) = adapter
        .request_device(&wgpu::DeviceDescriptor {
            label: Some("kinora"),
            required_features: needed | (adapter.features() & assumed_features()),
            required_limits: limits,
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        })
        .await
        .map_err(|e| Error::UnsupportedFeature(e.to_string()))?;

    let info = adapter.get_info();
    let name = [info.name.as_str(), info.driver.as_str(), info.driver_info.as_str()]
        .iter()
        .find(|part| !part.is_empty())
        .map_or_else(|| "unnamed adapter".to_string(), |part| part.to_string());
    let software = info.device_type == DeviceType::Cpu || name.to_lowercase().contains("swiftshader");
    let setup = WgpuSetup { instance, backend: info.backend, adapter, device: device.clone(), queue };
    let burn_device: Device = Device::wgpu_options()
        .tasks_max(32)
        .setup(setup)
        .init()
        .map_err(|e| Error::UnsupportedFeature(e.to_string()))?;
    let faults = watch(&device);
    Ok(Compute {
        nothing: nothing(&burn_device),
        device: burn_device,
        kind: Kind::Gpu,
        adapter: name,
        software,
        widen_on_load: false,
        longest_buffer: Some(longest_buffer),
        faults,
        sweep: None,
    })
}

/// Collects what the device reports. To be called after the runtime has taken the device, because the runtime installs
/// callbacks of its own and the last ones count: its error callback panics, which would end a wasm module.
fn watch(device: &wgpu::Device) -> Arc<Faults> {
    let faults = Arc::new(Faults::default());
    let on_lost = faults.clone();
    device.set_device_lost_callback(move |reason, message| {
        if reason != wgpu::DeviceLostReason::Destroyed {
            on_lost.report(Error::DeviceLost(message));
        }
    });
    let on_error = faults.clone();
    device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
        on_error.report(match error {
            wgpu::Error::OutOfMemory { source } => Error::OutOfMemory(source.to_string()),
            // A driver that cannot compile a shader of ours will not learn it: the CPU has to do the work.
            other => Error::UnsupportedFeature(format!("the graphics device refused a command: {other}")),
        });
    }));
    faults
}

/// burn's runtime looks at what the adapter offers and not at what the device was made with, so whatever it may use has
/// to be asked for where it is on offer.
fn assumed_features() -> Features {
    Features::TIMESTAMP_QUERY
        | Features::SHADER_F16
        | Features::SHADER_F64
        | Features::SHADER_INT64
        | Features::SHADER_FLOAT32_ATOMIC
        | Features::SUBGROUP
}

/// Invocations of the largest workgroup that burn's own small kernels (fill, slice, join) take: eight subgroups, as far as
/// the adapter allows, whatever the device was made with. Only a subgroup of more than 32 lanes goes beyond WebGPU's 256.
fn runtime_invocations(info: &wgpu::AdapterInfo, offered: &Limits) -> u32 {
    // The runtime takes 128 lanes where an adapter states none.
    let lanes = if info.subgroup_max_size == 0 { 128 } else { info.subgroup_max_size };
    (8 * lanes).min(offered.max_compute_invocations_per_workgroup)
}

/// The guaranteed limits, raised only where the runtime gains from it.
fn wanted_limits(adapter: &wgpu::Adapter, options: GpuOptions) -> Limits {
    let offered = adapter.limits();
    let mut limits = Limits::default();
    // wgpu's own defaults follow WebGPU's; an adapter below them is no WebGPU adapter.
    if !limits.check_limits(&offered) {
        limits = limits.or_worse_values_from(&offered);
    }
    limits.max_compute_invocations_per_workgroup =
        limits.max_compute_invocations_per_workgroup.max(runtime_invocations(&adapter.get_info(), &offered));
    if !options.strict_limits {
        limits.max_compute_workgroup_storage_size = offered.max_compute_workgroup_storage_size;
        limits.max_compute_invocations_per_workgroup = offered.max_compute_invocations_per_workgroup;
        limits.max_compute_workgroup_size_x = offered.max_compute_workgroup_size_x;
        limits.max_compute_workgroup_size_y = offered.max_compute_workgroup_size_y;
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_that_no_kernel_reads_are_refused_by_name() {
        const MANIFEST: &str = include_str!("../../tests/goldens/tiny-model/manifest.json");
        let manifest = Manifest::parse(MANIFEST).expect("the manifest is right");
        assert_eq!(fits(&manifest), Ok(()));
        let refused = |change: fn(&mut Manifest)| {
            let mut changed = manifest.clone();
            change(&mut changed);
            fits(&changed).expect_err("it is refused").to_string()
        };
        assert!(refused(|manifest| manifest.text_encoder.d_kv = 6).contains("text_encoder.d_kv is 6"));
        assert!(refused(|manifest| manifest.transformer.attention_head_dim = 14).contains("head_dim is 14"));
    }
}
