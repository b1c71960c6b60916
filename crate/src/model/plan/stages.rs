//! The stages of a clip in their order, and what is in memory in each.

use crate::model::layout::Part;
use crate::model::manifest::Manifest;
use crate::model::plan::autoencoder::Decoding;
use crate::model::plan::bytes::Bytes;
use crate::model::plan::denoiser::Denoising;
use crate::model::plan::text::Encoding;
use crate::model::plan::weights::Weights;
use crate::model::plan::{Both, GPU_PAGES_EIGHTHS, Item, MANIFEST_ENTRY, PlanRequest, Residency, Stage};

/// What a clip takes besides the weights.
pub(super) struct Work<'a> {
    /// `None` where the prompt needs no encoder.
    pub(super) encoding: Option<&'a Encoding>,
    pub(super) denoising: &'a Denoising,
    pub(super) decoding: &'a Decoding,
}

/// Stages as they are collected.
pub(super) struct Stages<'a> {
    manifest: &'a Manifest,
    request: &'a PlanRequest,
    weights: &'a Weights<'a>,
    /// What is there in every stage.
    resident: &'a [Item],
    /// GPU memory beside the resident that the allocator has by now.
    gpu: Bytes,
    stages: Vec<Stage>,
}

impl<'a> Stages<'a> {
    /// All stages of a clip.
    pub(super) fn of(
        manifest: &'a Manifest,
        request: &'a PlanRequest,
        weights: &'a Weights<'a>,
        resident: &'a [Item],
        work: &Work<'_>,
    ) -> Vec<Stage> {
        let mut stages = Self { manifest, request, weights, resident, gpu: Bytes::default(), stages: Vec::new() };
        match request.residency {
            Residency::Together => stages.together(work),
            Residency::Turns => stages.turns(work),
        }
        stages.stages
    }

    fn on(&self, what: &str, bytes: Bytes) -> Item {
        Item::of(what, Both::on(self.request.target, bytes))
    }

    /// The embeddings of the prompt, and of the negative one, as they are given and filled up.
    fn embeddings(&self) -> Item {
        let text = &self.manifest.text_encoder;
        let rows = 2 * (self.manifest.guided() as u64 + 1);
        Item::of("embeddings", Both::host(Bytes::f32s(&[rows, text.max_tokens as u64, text.d_model as u64])))
    }

    fn together(&mut self, work: &Work<'_>) {
        let Work { denoising, decoding, .. } = work;
        self.load(self.weights.loading());
        self.text(work);
        self.add("prompt", vec![self.embeddings(), self.on("denoiser at work", denoising.text_work)]);
        let [prompt, cache, latents] =
            denoising.staying(self.request.target).map(|(what, bytes)| Item::of(what, bytes));
        let between = if denoising.chunked { decoding.state } else { Bytes::default() };
        let state = self.on("decoder between chunks", between);
        let working = self.on("denoiser at work", denoising.work);
        self.add("denoise", vec![prompt.clone(), cache.clone(), latents.clone(), state.clone(), working]);
        self.add("decode", vec![prompt, cache, latents, state, Item::of("decoder at work", decoding.work)]);
    }

    /// Follows `parts.rs`: each part is read once the one before it has gone.
    fn turns(&mut self, work: &Work<'_>) {
        let Work { denoising, decoding, .. } = work;
        // Shards are looked at and kept outside; nothing of them stays.
        self.load(Both::host(self.weights.longest_shard()));
        self.text(work);
        self.forget();
        let denoiser = self.weights.item(Part::Transformer);
        let reading = Item::of("denoiser on its way", self.weights.loading_of(|part| part == Part::Transformer));
        self.add("read denoiser", vec![self.embeddings(), reading]);
        self.forget();
        let prompt_work = self.on("denoiser at work", denoising.text_work);
        self.add("prompt", vec![denoiser.clone(), self.embeddings(), prompt_work]);
        let [prompt, cache, latents] =
            denoising.staying(self.request.target).map(|(what, bytes)| Item::of(what, bytes));
        let whole = Item::of("latents that wait", Both::host(denoising.waiting));
        let working = self.on("denoiser at work", denoising.work);
        self.add("denoise", vec![denoiser, prompt, cache, latents.clone(), whole.clone(), working]);
        self.forget();
        let of_autoencoder = |part| matches!(part, Part::Decoder | Part::Encoder);
        let reading = Item::of("decoder on its way", self.weights.loading_of(of_autoencoder));
        self.add("read decoder", vec![latents.clone(), whole.clone(), reading]);
        self.forget();
        let parts = [Part::Decoder, Part::Encoder].map(|part| self.weights.item(part));
        let working = [latents, whole, Item::of("decoder at work", decoding.work)];
        self.add("decode", parts.into_iter().chain(working).collect());
    }

    /// Shards arrive, the models are built, and LoRA files are put beside them.
    fn load(&mut self, weights: Both) {
        let files = self.resident.last().cloned();
        // The manifest's text, and the lists of what is missing, which go with the last shard.
        let lists = Bytes::new(self.weights.entries()) * (2 * MANIFEST_ENTRY);
        let mut items = vec![Item::of("weights on their way", weights + Both::host(lists))];
        items.extend(files);
        items.push(Item::of("LoRA on its way", Both::host(Bytes::new(self.request.lora_bytes) * 4)));
        self.push("load", items);
    }

    fn text(&mut self, work: &Work<'_>) {
        if let Some(encoding) = work.encoding {
            let layers = Item::of("layers of the text encoder", encoding.layers);
            self.add("text", vec![layers, Item::of("text encoder at work", encoding.values)]);
        }
    }

    /// The allocator gives back what it keeps.
    fn forget(&mut self) {
        self.gpu = Bytes::default();
    }

    /// A stage with the resident weights and something more.
    fn add(&mut self, name: &'static str, more: Vec<Item>) {
        let own: Bytes = more.iter().map(|item| item.bytes.gpu).sum();
        let kept = Bytes::new(self.gpu.get().saturating_sub(own.get()));
        self.gpu = self.gpu.max(own);
        let mut items = self.resident.to_vec();
        items.extend(more);
        items.push(Item::of("kept by the GPU's allocator", Both { host: Bytes::default(), gpu: kept }));
        self.push(name, items);
    }

    fn push(&mut self, name: &'static str, mut items: Vec<Item>) {
        let gpu: u64 = items.iter().map(|item| item.bytes.gpu.get()).sum();
        let pages = Bytes::new(gpu / 8 * GPU_PAGES_EIGHTHS);
        items.push(Item::of("rounding up to the GPU's pages", Both { host: Bytes::default(), gpu: pages }));
        items.retain(|item| item.bytes != Both::default());
        self.stages.push(Stage { name, peak: items.iter().map(|item| item.bytes).sum(), items });
    }
}
