//! The parts of a model on their device: together for as long as the model is there or, where memory is short, in
//! turns, each read from storage when it is needed and let go when another is.

use std::cell::RefCell;
use std::rc::Rc;

use crate::compute::Compute;
use crate::decode::taehv::Taehv;
use crate::denoise::wan::Wan;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::lora::{Chosen, LoraId};
use crate::model::layout::Part;
use crate::model::manifest::Manifest;
use crate::model::plan::{Residency, TextWeights};
use crate::model::reader::{ShardSource, TensorReader};
use crate::text::TextEncoder;
use crate::text::stream::StreamedUmt5;
use crate::text::umt5::Umt5;
use crate::weights::WeightStore;

/// What there is of a model at the moment.
pub(crate) struct Parts {
    text_encoder: RefCell<Rc<TextEncoder>>,
    denoiser: RefCell<Option<Rc<Wan>>>,
    autoencoder: RefCell<Option<Rc<Taehv>>>,
    storage: Option<Rc<dyn ShardSource>>,
    /// The LoRAs that the denoiser has, or will have.
    loras: Chosen,
}

impl Parts {
    /// Takes the parts from the store, or none of them where there is no store.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for a streamed text encoder without storage, and what building the models reports.
    pub(crate) fn new(
        manifest: &Manifest,
        text: TextWeights,
        mut store: Option<&mut WeightStore>,
        storage: Option<Rc<dyn ShardSource>>,
    ) -> Result<Self> {
        let text_encoder = match (text, store.as_deref_mut()) {
            (TextWeights::Absent, _) => TextEncoder::Absent,
            (TextWeights::Resident, Some(store)) => TextEncoder::Resident(Umt5::load(&manifest.text_encoder, store)?),
            _ => match &storage {
                Some(storage) => TextEncoder::Streamed(StreamedUmt5::new(manifest, storage.clone())),
                None => return Err(Error::InvalidRequest("a text encoder is neither loaded nor stored".into())),
            },
        };
        let (denoiser, autoencoder) = match store {
            Some(store) => {
                let denoiser = Wan::with_sizes(manifest, store)?;
                (Some(Rc::new(denoiser)), Some(Rc::new(Taehv::load(&manifest.autoencoder, store)?)))
            }
            None => (None, None),
        };
        Ok(Self {
            text_encoder: RefCell::new(Rc::new(text_encoder)),
            denoiser: RefCell::new(denoiser),
            autoencoder: RefCell::new(autoencoder),
            storage,
            loras: Chosen::default(),
        })
    }
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Text,
    Denoiser,
    Autoencoder,
}

impl Engine {
    /// Prompts to embeddings.
    pub fn text_encoder(&self) -> Rc<TextEncoder> {
        self.parts.text_encoder.borrow().clone()
    }

    /// Latents to velocities; read from storage where it is not there.
    ///
    /// # Errors
    /// As [`TensorReader::tensor`], and what building the model reports.
    pub async fn denoiser(&self) -> Result<Rc<Wan>> {
        if let Some(denoiser) = &*self.parts.denoiser.borrow() {
            return Ok(denoiser.clone());
        }
        let mut store = self.read(|name| name.starts_with(Part::Transformer.prefix())).await?;
        let mut denoiser = Wan::with_sizes(&self.manifest, &mut store)?;
        denoiser.set_loras(&self.parts.loras);
        let denoiser = Rc::new(denoiser);
        *self.parts.denoiser.borrow_mut() = Some(denoiser.clone());
        Ok(denoiser)
    }

    /// The denoiser, set for latents of this height and width.
    ///
    /// # Errors
    /// As [`denoiser`](Self::denoiser), and [`Error::InvalidRequest`] while it is in use for another size.
    pub(crate) async fn denoiser_for(&self, grid: [usize; 2]) -> Result<Rc<Wan>> {
        let denoiser = self.denoiser().await?;
        if denoiser.is_for(grid) {
            return Ok(denoiser);
        }
        drop(denoiser);
        let mut held = self.parts.denoiser.borrow_mut();
        let denoiser = held.as_mut().ok_or_else(|| Error::Internal("the denoiser has gone".into()))?;
        let in_use = || Error::InvalidRequest("the denoiser is in use for a clip of another size, begin later".into());
        Rc::get_mut(denoiser).ok_or_else(in_use)?.set_for(grid, &self.parts.loras);
        Ok(denoiser.clone())
    }

    /// Latents to frames and back; read from storage where it is not there.
    ///
    /// # Errors
    /// As [`denoiser`](Self::denoiser).
    pub async fn autoencoder(&self) -> Result<Rc<Taehv>> {
        if let Some(autoencoder) = &*self.parts.autoencoder.borrow() {
            return Ok(autoencoder.clone());
        }
        let of_it = |name: &str| matches!(Part::of(name), Some(Part::Decoder | Part::Encoder));
        let mut store = self.read(of_it).await?;
        let autoencoder = Rc::new(Taehv::load(&self.manifest.autoencoder, &mut store)?);
        *self.parts.autoencoder.borrow_mut() = Some(autoencoder.clone());
        Ok(autoencoder)
    }

    /// In turns, lets go of every part but the one that comes next. The memory is given back, so that what comes next
    /// finds it free.
    pub(crate) async fn turn(&self, residency: Residency, turn: Turn) -> Result<()> {
        let Some(storage) = self.parts.storage.as_ref().filter(|_| residency == Residency::Turns) else {
            return Ok(());
        };
        let text_encoder = &self.parts.text_encoder;
        let resident = matches!(**text_encoder.borrow(), TextEncoder::Resident(_));
        if resident {
            let streamed = StreamedUmt5::new(&self.manifest, storage.clone());
            *text_encoder.borrow_mut() = Rc::new(TextEncoder::Streamed(streamed));
        }
        let denoiser = if turn == Turn::Denoiser { None } else { self.parts.denoiser.borrow_mut().take() };
        let autoencoder = if turn == Turn::Autoencoder { None } else { self.parts.autoencoder.borrow_mut().take() };
        if denoiser.is_some() || autoencoder.is_some() {
            drop((denoiser, autoencoder));
            self.compute.give_back().await?;
        }
        Ok(())
    }

    /// Clips are made with these LoRAs from here on, whether the denoiser is there or not.
    pub(crate) fn set_loras(&mut self, loras: &[(LoraId, f32)]) -> Result<()> {
        let chosen = self.loras.choose(loras)?;
        if let Some(denoiser) = self.parts.denoiser.get_mut() {
            let in_use = || Error::InvalidRequest("the denoiser is in use, change its LoRAs later".into());
            Rc::get_mut(denoiser).ok_or_else(in_use)?.set_loras(&chosen);
        }
        self.parts.loras = chosen;
        Ok(())
    }

    /// Tensors from storage. What is read because memory is short is not widened.
    async fn read(&self, wanted: impl Fn(&str) -> bool) -> Result<WeightStore> {
        let Some(storage) = &self.parts.storage else {
            return Err(Error::Internal("a part of the model is neither loaded nor stored".into()));
        };
        let reader = TensorReader::new(&self.manifest, wanted, storage.clone());
        let mut store = WeightStore::new(Compute { widen_on_load: false, ..self.compute.clone() });
        for name in reader.names("") {
            store.insert(reader.tensor(&name).await?);
        }
        Ok(store)
    }
}
