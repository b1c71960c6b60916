//! The stages of a clip in their order, and what is in memory in each.

use crate::model::layout::Part;
use crate::model::manifest::Manifest;
use crate::model::plan::autoencoder::Decoding;
use crate::model::plan::bytes::Bytes;
use crate::model::plan::denoiser::Denoising;
use crate::model::plan::text::Encoding;
use crate::model::plan::weights::Weights;
use crate::model::plan::{
    Both, GPU_RUNTIME, GPU_SELF_TEST, Item, MANIFEST_ENTRY, PlanRequest, Residency, Stage, Target,
};

/// What a clip takes besides the weights.
pub(super) struct Work<'a> {
    /// `None` where the prompt needs no encoder.
    pub(super) encoding: Option<&'a Encoding>,
    pub(super) denoising: &'a Denoising,
    pub(super) decoding: &'a Decoding,
    /// Pages of a GPU after the stages `text`, `prompt`, `denoise` and `decode`.
    pub(super) pages: [Bytes; 4],
}

/// Stages as they are collected.
pub(super) struct Stages<'a> {
    manifest: &'a Manifest,
    request: &'a PlanRequest,
    weights: &'a Weights<'a>,
    /// What is there in every stage.
    resident: &'a [Item],
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
        let mut stages = Self { manifest, request, weights, resident, stages: Vec::new() };
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
        let Work { denoising, decoding, pages: [text, prompt, denoise, decode], .. } = work;
        self.load(self.weights.loading());
        self.self_test(self.resident.to_vec());
        self.text(work, *text);
        self.add("prompt", *prompt, vec![self.embeddings(), self.on("denoiser at work", denoising.text_work)]);
        let [keys, cache, latents] = denoising.staying(self.request.target).map(|(what, bytes)| Item::of(what, bytes));
        let between = if denoising.chunked { decoding.state } else { Bytes::default() };
        let state = self.on("decoder between chunks", between);
        let working = self.on("denoiser at work", denoising.work);
        // Between chunks the decoder's pages are there as well.
        let most = if denoising.chunked { decode } else { denoise };
        self.add("denoise", *most, vec![keys.clone(), cache.clone(), latents.clone(), state.clone(), working]);
        self.add("decode", *decode, vec![keys, cache, latents, state, Item::of("decoder at work", decoding.work)]);
    }

    /// Follows `parts.rs`: each part is read once the one before it has gone.
    fn turns(&mut self, work: &Work<'_>) {
        let Work { denoising, decoding, pages: [text, prompt, denoise, decode], .. } = work;
        // Shards are looked at and kept outside; nothing of them stays.
        self.load(Both::host(self.weights.longest_shard()));
        self.self_test(self.resident.to_vec());
        self.text(work, *text);
        let none = Bytes::default();
        let reading = Item::of("denoiser on its way", self.weights.loading_of(|part| part == Part::Transformer));
        self.add("read denoiser", none, vec![self.embeddings(), reading]);
        let there = self.beside(&[Part::Transformer]);
        let working = self.on("denoiser at work", denoising.text_work);
        self.with("prompt", there.clone(), *prompt, vec![self.embeddings(), working]);
        let [keys, cache, latents] = denoising.staying(self.request.target).map(|(what, bytes)| Item::of(what, bytes));
        let whole = Item::of("latents that wait", Both::host(denoising.waiting));
        let working = self.on("denoiser at work", denoising.work);
        self.with("denoise", there, *denoise, vec![keys, cache, latents.clone(), whole.clone(), working]);
        let of_autoencoder = |part| matches!(part, Part::Decoder | Part::Encoder);
        let reading = Item::of("decoder on its way", self.weights.loading_of(of_autoencoder));
        self.add("read decoder", none, vec![latents.clone(), whole.clone(), reading]);
        let there = self.beside(&[Part::Decoder, Part::Encoder]);
        self.with("decode", there, *decode, vec![latents, whole, Item::of("decoder at work", decoding.work)]);
    }

    /// What stays, and the parts whose turn it is.
    fn beside(&self, parts: &[Part]) -> Vec<Item> {
        self.resident.iter().cloned().chain(parts.iter().map(|&part| self.weights.item(part))).collect()
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

    /// A page has the device prove itself before the first clip, and gives back what that took.
    fn self_test(&mut self, items: Vec<Item>) {
        if self.request.target == Target::Gpu {
            self.with("self-test", items, Bytes::new(GPU_SELF_TEST), Vec::new());
        }
    }

    fn text(&mut self, work: &Work<'_>, pages: Bytes) {
        if let Some(encoding) = work.encoding {
            let layers = Item::of("layers of the text encoder", encoding.layers);
            self.add("text", pages, vec![layers, Item::of("text encoder at work", encoding.values)]);
        }
    }

    /// A stage with what is resident and something more, which on a GPU lies in so many bytes of pages.
    fn add(&mut self, name: &'static str, pages: Bytes, more: Vec<Item>) {
        self.with(name, self.resident.to_vec(), pages, more);
    }

    fn with(&mut self, name: &'static str, mut items: Vec<Item>, pages: Bytes, more: Vec<Item>) {
        let own: Bytes = more.iter().map(|item| item.bytes.gpu).sum();
        // An eighth more: which page a tensor gets depends on more than its length.
        let pages = pages.get().saturating_add(pages.get() / 8);
        let kept = Bytes::new(pages.saturating_sub(own.get()));
        items.extend(more);
        items.push(self.on_gpu("pages that are kept", kept));
        self.push(name, items);
    }

    fn on_gpu(&self, what: &str, bytes: Bytes) -> Item {
        Item::of(what, Both { host: Bytes::default(), gpu: bytes })
    }

    fn push(&mut self, name: &'static str, mut items: Vec<Item>) {
        if self.request.target == Target::Gpu {
            items.push(self.on_gpu("the runtime's buffers", Bytes::new(GPU_RUNTIME)));
        }
        items.retain(|item| item.bytes != Both::default());
        self.stages.push(Stage { name, peak: items.iter().map(|item| item.bytes).sum(), items });
    }
}
