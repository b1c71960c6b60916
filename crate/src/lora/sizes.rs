//! Low-rank changes that are part of a model: one for each picture size that the denoiser cannot make as it is.
//!
//! A denoiser learns where things stand in the pictures that it has seen, so that another shape of the picture is new to
//! it. A change of a few per cent of its weights makes up for that, and leaves the other sizes as they are.

use std::rc::Rc;

use crate::error::{Error, Result};
use crate::lora::{Changes, matrices};
use crate::model::layout::{Part, changed_layers, size_lora_prefix};
use crate::model::manifest::{DType, Manifest, VideoSize};
use crate::model::quant;
use crate::ops::LowRank;
use crate::weights::WeightStore;

/// Those of a model, by the height and width of the latents.
#[derive(Default)]
pub(crate) struct SizeLoras(Vec<([usize; 2], Rc<Changes>)>);

impl SizeLoras {
    /// Takes the tensors `transformer.size_loras.*` from the store.
    pub(crate) fn load(manifest: &Manifest, store: &mut WeightStore) -> Result<Self> {
        let mut found = Vec::new();
        for size in &manifest.video.sizes {
            if let Some(rank) = size.lora_rank {
                let [_, _, height, width] = manifest.latent_shape(size.width, size.height, 1);
                found.push(([height, width], Rc::new(load(manifest, size, rank, store)?)));
            }
        }
        Ok(Self(found))
    }

    /// The change for latents of this height and width, if they need one.
    pub(crate) fn of(&self, grid: [usize; 2]) -> Option<Rc<Changes>> {
        self.0.iter().find(|(own, _)| *own == grid).map(|(_, changes)| changes.clone())
    }
}

fn load(manifest: &Manifest, size: &VideoSize, rank: usize, store: &mut WeightStore) -> Result<Changes> {
    let prefix = size_lora_prefix(size);
    let mut changes = Changes::new();
    for layer in changed_layers(&manifest.transformer) {
        let mut half = |half: &str| {
            let raw = store.host(&format!("{prefix}{layer}.{half}.weight"))?;
            let held = if raw.dtype == DType::F16 { DType::F16 } else { DType::F32 };
            Ok::<_, Error>((quant::decode(raw.dtype, &raw.shape, raw.group, &raw.bytes)?, held))
        };
        let (down, up) = (half("lora_A")?, half("lora_B")?);
        let weight = format!("{}{layer}", Part::Transformer.prefix());
        let (down, up) = matrices(store.compute(), &weight, rank, down, up)?;
        changes.insert(weight, Rc::new(LowRank::new(down, up, 1.0)));
    }
    Ok(changes)
}
