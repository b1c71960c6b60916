//! A model on its way into memory.

use std::rc::Rc;

use crate::compute::Compute;
use crate::engine::{Checked, Engine, GenerateRequest, Texts};
use crate::error::{Error, Result};
use crate::gpu::{self, GpuOptions};
use crate::lora::Loras;
use crate::model::layout::Part;
use crate::model::manifest::Manifest;
use crate::model::plan::{Limits, Residency, TextWeights};
use crate::model::reader::ShardSource;
use crate::model::shards::{ShardAssembler, verify_file};
use crate::parts::Parts;
use crate::text::prompts::PromptPack;
use crate::text::tokenizer::Tokenizer;
use crate::weights::WeightStore;

/// Weights widened to f32 on the CPU device at load only while they stay below this.
pub(crate) const WIDEN_LIMIT_BYTES: u64 = 256 << 20;

/// What a wasm memory has for models: its 4 GiB without the engine's own data and stack, and without what lies idle
/// between its pieces.
const WASM_BYTES: u64 = (4 << 30) - (128 << 20);

/// Where to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The processor.
    Cpu,
    /// WebGPU in a browser, wgpu natively.
    Gpu {
        /// Ask for guaranteed limits only.
        strict_limits: bool,
    },
}

/// A prompt pack and where it came from.
pub enum PackFile<'a> {
    /// The one that the manifest names; its hash has to be the manifest's.
    Named(&'a [u8]),
    /// Any other.
    Given(&'a [u8]),
}

/// How a model is to be loaded.
pub struct LoadOptions<'a> {
    /// `tokenizer.json`; only a model without a text encoder does without.
    pub tokenizer: Option<&'a str>,
    /// What becomes of the text encoder.
    pub text: TextWeights,
    /// Prompts that need no text encoder.
    pub pack: Option<PackFile<'a>>,
    /// Where shards can be read again: a streamed text encoder needs it, and parts that take turns.
    pub storage: Option<Rc<dyn ShardSource>>,
    /// Bytes of memory there are, beyond which clips are refused; `None` where that is not known.
    pub memory: Option<u64>,
    /// Bytes of memory beyond which it becomes short, so that parts take turns; `None` where that is not known.
    pub comfortable: Option<u64>,
    /// As [`Compute::sweep`].
    pub sweep: Option<Rc<dyn Fn()>>,
}

impl<'a> LoadOptions<'a> {
    /// Everything in memory together.
    pub fn resident(tokenizer: &'a str) -> Self {
        let text = TextWeights::Resident;
        Self {
            tokenizer: Some(tokenizer),
            text,
            pack: None,
            storage: None,
            memory: None,
            comfortable: None,
            sweep: None,
        }
    }
}

/// A model on its way into memory: manifest and tokenizer are checked, shards arrive one by one.
pub struct Loading {
    manifest: Manifest,
    texts: Texts,
    text: TextWeights,
    residency: Residency,
    storage: Option<Rc<dyn ShardSource>>,
    limits: Limits,
    shards: ShardAssembler,
    store: WeightStore,
}

impl Loading {
    /// Checks manifest and tokenizer and opens the device. Nothing is fetched here.
    ///
    /// # Errors
    /// Those of [`Manifest::parse`], [`Tokenizer::parse`], [`PromptPack::parse`] and [`gpu::open`];
    /// [`Error::Integrity`] for a tokenizer or a named pack that is not what the manifest says;
    /// [`Error::InvalidRequest`] for an encoder without its tokenizer, or a streamed one without storage.
    pub async fn new(manifest: &str, device: DeviceChoice, options: LoadOptions<'_>) -> Result<Self> {
        let LoadOptions { tokenizer, text, pack, storage, memory, comfortable, sweep } = options;
        let manifest = Manifest::parse(manifest)?;
        let encoder = text != TextWeights::Absent;
        if encoder && tokenizer.is_none() {
            return Err(Error::InvalidRequest("a text encoder needs its tokenizer".into()));
        }
        if text == TextWeights::Streamed && storage.is_none() {
            return Err(Error::InvalidRequest("a streamed text encoder needs storage that it can be read from".into()));
        }
        let tokenizer = tokenizer.map(|text| {
            verify_file(&manifest.text_encoder.tokenizer, text.as_bytes())?;
            Tokenizer::parse(text, &manifest)
        });
        let pack = pack.map(|file| match (file, &manifest.prompt_pack) {
            (PackFile::Named(bytes), Some(info)) => {
                verify_file(info, bytes)?;
                PromptPack::parse(bytes, &manifest)
            }
            (PackFile::Named(_), None) => Err(Error::InvalidRequest("the manifest names no prompt pack".into())),
            (PackFile::Given(bytes), _) => PromptPack::parse(bytes, &manifest),
        });
        let texts = Texts { tokenizer: tokenizer.transpose()?, pack: pack.transpose()?, encoder };
        let mut compute = Compute { sweep, ..open_device(&manifest, device).await? };
        let resident = text == TextWeights::Resident;
        let wanted = |name: &str| resident || !name.starts_with(Part::TextEncoder.prefix());
        let tensors = manifest.tensors.iter().filter(|(name, _)| wanted(name));
        let elements: u64 = tensors.map(|(_, tensor)| tensor.elements() as u64).sum();
        compute.widen_on_load = elements * 4 <= WIDEN_LIMIT_BYTES;
        let limits = Limits {
            memory,
            host: cfg!(target_family = "wasm").then_some(WASM_BYTES),
            buffer: compute.longest_buffer,
            comfortable,
            turns: storage.is_some(),
        };
        let shards = ShardAssembler::of(&manifest, wanted);
        let store = WeightStore::new(compute);
        Ok(Self { shards, store, manifest, texts, text, residency: Residency::Together, storage, limits })
    }

    /// The device that was opened.
    pub fn compute(&self) -> &Compute {
        self.store.compute()
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Checks a request before the shards are there. Where its plan says that the parts take turns, they had better do
    /// so from the start: [`take_turns`](Self::take_turns).
    pub fn check(&self, request: &GenerateRequest) -> Result<Checked> {
        self.texts.check(&self.manifest, request, self.compute(), self.text, &self.limits)
    }

    /// No part of the model will be loaded now: each is read from storage when its turn comes, so that no shard is
    /// missing any more.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] where there is no storage.
    pub fn take_turns(&mut self) -> Result<()> {
        if self.storage.is_none() {
            return Err(Error::InvalidRequest("parts that take turns need storage that they can be read from".into()));
        }
        self.residency = Residency::Turns;
        if self.text == TextWeights::Resident {
            self.text = TextWeights::Streamed;
        }
        self.shards = ShardAssembler::of(&self.manifest, |_| false);
        self.store = WeightStore::new(self.store.compute().clone());
        Ok(())
    }

    /// Shards that have to be added and have not been, in order of first use.
    pub fn missing_shards(&self) -> Vec<usize> {
        self.shards.missing()
    }

    /// Verifies a shard, takes its tensors and frees it. Error: [`Error::Integrity`]; the shard can be added again.
    pub fn add_shard(&mut self, index: usize, bytes: Vec<u8>) -> Result<()> {
        for tensor in self.shards.add(index, &bytes)? {
            self.store.insert(tensor);
        }
        Ok(())
    }

    /// Builds the models once every shard is there.
    pub fn finish(mut self) -> Result<Engine> {
        let missing = self.missing_shards();
        if !missing.is_empty() {
            return Err(Error::InvalidRequest(format!("{} shards have not been loaded yet", missing.len())));
        }
        let together = self.residency == Residency::Together;
        let store = together.then_some(&mut self.store);
        Ok(Engine {
            parts: Parts::new(&self.manifest, self.text, store, self.storage)?,
            manifest: self.manifest,
            texts: self.texts,
            compute: self.store.compute().clone(),
            limits: self.limits,
            loras: Loras::default(),
        })
    }
}

/// Opens a device that can run a model. Whether a clip fits it is checked when the clip is asked for.
pub(crate) async fn open_device(manifest: &Manifest, device: DeviceChoice) -> Result<Compute> {
    match device {
        DeviceChoice::Cpu => Ok(Compute::cpu()),
        DeviceChoice::Gpu { strict_limits } => {
            gpu::fits(manifest)?;
            gpu::open(GpuOptions { strict_limits }).await
        }
    }
}
