//! Weights: what is fetched, and what they take where they are held.
//!
//! Follows `weights.rs` and `Linear::new`, `Conv::new` in `ops.rs`. A linear matrix stays packed on a GPU. On
//! the CPU it stays packed where it is quantized and the model is large, and is f32 otherwise. The token table stays
//! packed in host memory. Everything else is f32, convolutions on a GPU with their output channels filled up to 8.

use std::collections::BTreeSet;

use crate::loading::WIDEN_LIMIT_BYTES;
use crate::lora::held_rank;
use crate::model::layout::{self, Part};
use crate::model::manifest::{DType, Manifest, TensorInfo};
use crate::model::plan::bytes::{Bytes, OVERHEAD, page};
use crate::model::plan::{Both, Item, PlanRequest, Residency, Row, Target, TextWeights};
use crate::text::umt5::TABLE;
use crate::weights::{is_linear_weight, is_lora};

/// A linear layer's matrix `[n, k]`.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    pub(super) n: u64,
    pub(super) k: u64,
    /// Its values as f32, where they are made for each use.
    pub(super) widened: Bytes,
}

/// How the weights of a model are held on a device.
pub(super) struct Weights<'a> {
    manifest: &'a Manifest,
    target: Target,
    text: TextWeights,
    widen: bool,
}

impl<'a> Weights<'a> {
    pub(super) fn new(manifest: &'a Manifest, request: &PlanRequest) -> Self {
        let PlanRequest { target, text, residency, .. } = *request;
        let wanted = |name: &str| text == TextWeights::Resident || Part::of(name) != Some(Part::TextEncoder);
        let tensors = manifest.tensors.iter().filter(|(name, _)| wanted(name));
        let widened: Bytes = tensors.map(|(_, info)| values(info)).sum();
        let widen = residency == Residency::Together && widened.get() <= WIDEN_LIMIT_BYTES;
        Self { manifest, target, text, widen }
    }

    /// Tensors and shards that the manifest lists.
    pub(super) fn entries(&self) -> u64 {
        (self.manifest.tensors.len() + self.manifest.shards.len()) as u64
    }

    /// Whether a tensor is loaded with the model.
    fn wanted(&self, name: &str) -> bool {
        self.text == TextWeights::Resident || Part::of(name) != Some(Part::TextEncoder)
    }

    /// The matrix of a linear layer, by its name without `.weight`.
    pub(super) fn matrix(&self, name: &str) -> Matrix {
        let Some(info) = self.manifest.tensors.get(&format!("{name}.weight")) else {
            return Matrix { n: 0, k: 0, widened: Bytes::default() };
        };
        let n = info.shape.first().copied().unwrap_or(0) as u64;
        let k = info.shape.iter().skip(1).fold(1, |product: u64, &length| product.saturating_mul(length as u64));
        let streamed = !self.wanted(name);
        let packed = info.dtype.quantized() && (!self.widen || streamed) && self.target != Target::Gpu;
        Matrix { n, k, widened: if packed { values(info) } else { Bytes::default() } }
    }

    /// What a tensor takes once its model has been built; `widen` says whether quantized matrices become f32.
    fn held(&self, name: &str, info: &TensorInfo, widen: bool) -> Both {
        let host = |bytes| Both { host: bytes, gpu: Bytes::default() };
        if name == TABLE {
            return host(Bytes::new(info.bytes()));
        }
        if name.ends_with("relative_attention_bias.weight") {
            return host(values(info));
        }
        if is_lora(name) {
            return self.held_change(info);
        }
        let linear = is_linear_weight(name, &info.shape);
        if self.target != Target::Gpu {
            let packed = linear && info.dtype.quantized() && !widen;
            return host(if packed { Bytes::new(info.bytes()) } else { values(info) });
        }
        // A tensor has a page of its own.
        let gpu = match info.shape[..] {
            _ if linear => Bytes::new(info.bytes().next_multiple_of(4)),
            [out, input, height, width] => {
                Bytes::f32s(&[(out as u64).next_multiple_of(8), input as u64, height as u64, width as u64])
            }
            _ => values(info),
        };
        Both { host: Bytes::default(), gpu: Bytes::new(page(gpu.get())) }
    }

    /// One of the matrices of a size's low-rank change, whose rank is its shorter side: as f16 on a GPU where it is
    /// stored so, with the one number that stands for a bias.
    fn held_change(&self, info: &TensorInfo) -> Both {
        let sides = || info.shape.iter().map(|&side| side as u64);
        let (rank, other) = (sides().min().unwrap_or(0), sides().max().unwrap_or(0));
        let values = Bytes::new(other) * held_rank(rank as usize) as u64;
        let gpu = self.target == Target::Gpu;
        let bytes = values * if gpu && info.dtype == DType::F16 { 2 } else { 4 };
        if gpu {
            return Both { host: Bytes::default(), gpu: Bytes::new(page(bytes.get()) + page(4)) };
        }
        Both { host: bytes + Bytes::new(OVERHEAD), gpu: Bytes::default() }
    }

    /// What a part of the model takes while it is resident.
    pub(super) fn resident(&self, part: Part) -> Both {
        let tensors = self.manifest.tensors.iter().filter(|(name, _)| Part::of(name) == Some(part));
        tensors.filter(|(name, _)| self.wanted(name)).map(|(name, info)| self.cost(name, info)).sum()
    }

    /// As a line of the plan.
    pub(super) fn item(&self, part: Part) -> Item {
        Item::of(&part.to_string(), self.resident(part))
    }

    fn cost(&self, name: &str, info: &TensorInfo) -> Both {
        let Both { host, gpu } = self.held(name, info, self.widen);
        Both { host: host + Bytes::new(OVERHEAD), gpu }
    }

    /// The longest piece of memory on the GPU that a weight takes.
    pub(super) fn largest_on_gpu(&self) -> Bytes {
        let tensors = self.manifest.tensors.iter().filter(|(name, _)| self.wanted(name));
        tensors.map(|(name, info)| self.held(name, info, self.widen).gpu).max().unwrap_or_default()
    }

    /// The most that is held while shards arrive and the models are built from them, in their order.
    pub(super) fn loading(&self) -> Both {
        self.loading_of(|_| true)
    }

    /// As [`loading`](Self::loading), for some parts of the model alone.
    pub(super) fn loading_of(&self, of: impl Fn(Part) -> bool) -> Both {
        let on_gpu = self.target == Target::Gpu;
        let waits = |name: &str, info: &TensorInfo| {
            // The matrices go to a GPU as they arrive; everything else waits for its model.
            if on_gpu && is_linear_weight(name, &info.shape) { 0 } else { info.bytes() + OVERHEAD }
        };
        let all: Vec<_> = layout::expected(self.manifest).into_iter().map(|tensor| tensor.name).collect();
        let tensors = all.iter().filter(|name| self.wanted(name) && Part::of(name).is_some_and(&of));
        let tensors: Vec<_> = tensors.filter_map(|name| self.manifest.tensors.get_key_value(name)).collect();
        let shard = self.longest_shard().get();
        let largest = tensors.iter().map(|(_, info)| info.bytes()).max().unwrap_or(0);
        let mut held = Both::default();
        held.host += tensors.iter().map(|(name, info)| Bytes::new(waits(name, info))).sum();
        // The last shard is there with the tensor that it completes, which on its way to a GPU is there twice more.
        let mut host = held.host + Bytes::new(shard) + Bytes::new(largest) * if on_gpu { 3 } else { 1 };
        for (name, info) in tensors {
            // A tensor is there twice, and on its way to a GPU once more, while it is turned into what is held.
            held = held + self.cost(name, info);
            host = host.max(held.host + if on_gpu { values(info) * 2 } else { Bytes::default() });
            held.host = Bytes::new(held.host.get().saturating_sub(waits(name, info)));
        }
        Both { host, gpu: held.gpu }
    }

    /// What reading one layer of a streamed text encoder takes at most, and what the layer then takes.
    pub(super) fn layer(&self, prefix: &str) -> (Both, Both) {
        let on_gpu = self.target == Target::Gpu;
        let tensors: Vec<_> = self.manifest.tensors.iter().filter(|(name, _)| name.starts_with(prefix)).collect();
        let held: Both = tensors.iter().map(|(name, info)| self.held(name, info, false)).sum();
        let held = Both { host: held.host + Bytes::new(OVERHEAD) * tensors.len() as u64, gpu: held.gpu };
        let waits = tensors.iter().filter(|(name, info)| !(on_gpu && is_linear_weight(name, &info.shape)));
        let waits: u64 = waits.map(|(_, info)| info.bytes()).sum();
        let largest = tensors.iter().map(|(_, info)| info.bytes()).max().unwrap_or(0);
        // On its way to a GPU a matrix is there three times.
        let turned = Bytes::new(largest) * if on_gpu { 3 } else { 1 };
        (Both { host: held.host + Bytes::new(waits) + turned, gpu: held.gpu }, held)
    }

    /// What each tensor with a prefix takes on a GPU.
    pub(super) fn pieces(&self, prefix: &str) -> Vec<Bytes> {
        let tensors = self.manifest.tensors.iter().filter(|(name, _)| name.starts_with(prefix));
        tensors.map(|(name, info)| self.held(name, info, false).gpu).collect()
    }

    /// Bytes of the longest shard.
    pub(super) fn longest_shard(&self) -> Bytes {
        Bytes::new(self.manifest.shards.iter().map(|shard| shard.bytes).max().unwrap_or(0))
    }

    /// Bytes of the longest shard that holds some of the text encoder.
    pub(super) fn longest_text_shard(&self) -> Bytes {
        let shards = self.manifest.shards_of(|name| Part::of(name) == Some(Part::TextEncoder));
        let lengths = shards.into_iter().filter_map(|index| self.manifest.shards.get(index)).map(|shard| shard.bytes);
        Bytes::new(lengths.max().unwrap_or(0))
    }
}

fn values(info: &TensorInfo) -> Bytes {
    let lengths: Vec<u64> = info.shape.iter().map(|&length| length as u64).collect();
    Bytes::f32s(&lengths)
}

/// What is fetched before the first clip: by part, the rest of the shards, and the files beside them.
pub(super) fn download(manifest: &Manifest, text: TextWeights, packed_prompt: bool) -> Vec<Row> {
    let parts = [Part::TextEncoder, Part::Transformer, Part::Decoder, Part::Encoder];
    let encoder = text != TextWeights::Absent && !packed_prompt;
    let wanted = |part: &Part| *part != Part::TextEncoder || encoder;
    let mut rows = Vec::new();
    for part in parts.into_iter().filter(wanted) {
        let tensors = manifest.tensors.iter().filter(|(name, _)| Part::of(name) == Some(part));
        rows.push(Row::of(&part.to_string(), tensors.map(|(_, info)| Bytes::new(info.bytes())).sum()));
    }
    let shards: BTreeSet<usize> = manifest.shards_of(|name| Part::of(name).is_some_and(|part| wanted(&part)));
    let all: Bytes = shards.iter().map(|&index| Bytes::new(manifest.shards[index].bytes)).sum();
    let parts: Bytes = rows.iter().map(|row| row.bytes).sum();
    // Gaps between tensors, and what else lies in a shard.
    rows.push(Row::of("rest of the shards", Bytes::new(all.get().saturating_sub(parts.get()))));
    if text != TextWeights::Absent {
        rows.push(Row::of("tokenizer", Bytes::new(manifest.text_encoder.tokenizer.bytes)));
    }
    if let Some(pack) = &manifest.prompt_pack {
        rows.push(Row::of("prompt pack", Bytes::new(pack.bytes)));
    }
    rows.retain(|row| row.bytes.get() > 0);
    rows
}
