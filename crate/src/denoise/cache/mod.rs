//! Keys and values of frames that are finished, for models that make a clip chunk by chunk.
//!
//! As in Self-Forcing `pipeline/causal_inference.py` and LongLive: after a chunk its clean latents pass the denoiser
//! once more, and what its frames offered to self-attention is kept, rotated to their absolute positions. Later chunks
//! attend to the first `sink` frames and to the last `window` ones, so memory does not grow with the clip.
//!
//! What is kept may be stored in fewer bits than f32. A block's keys and values are stored as soon as they have been
//! made and widened when its attention runs, so that only one block's are in f32 at any moment. A chunk's own enter its
//! attention as they are.

mod rows;

use burn::tensor::Tensor;

use crate::compute::Compute;
use crate::error::Result;
use crate::model::cache::CacheLayout;
use crate::model::manifest::{CausalConfig, TransformerConfig};
pub(crate) use rows::Rows;

/// Key and value of one block, `[tokens, dim]` each.
pub type KeyValue = (Tensor<2>, Tensor<2>);

/// The same, as stored.
pub(crate) type Kept = (Rows, Rows);

/// What a chunk may look back at.
pub struct KvCache {
    blocks: Vec<Option<Kept>>,
    layout: CacheLayout,
    /// Tokens of a frame.
    rows: usize,
    sink: usize,
    window: usize,
    /// Frames that are held.
    held: usize,
    /// Frames that were ever added; the position of the next one.
    frames: usize,
}

impl KvCache {
    /// An empty cache for a transformer and frames of `rows` tokens.
    pub fn new(config: &CausalConfig, transformer: &TransformerConfig, rows: usize) -> Self {
        Self {
            blocks: vec![None; transformer.num_layers],
            layout: CacheLayout::new(config.cache, transformer.num_attention_heads, transformer.attention_head_dim),
            rows,
            sink: config.sink_frames,
            window: config.window_frames,
            held: 0,
            frames: 0,
        }
    }

    /// Position of the next frame, counted from the start of the clip.
    pub fn position(&self) -> usize {
        self.frames
    }

    /// Frames that are held.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Bytes that the keys and values of all blocks take up between two steps.
    pub fn bytes(&self) -> u64 {
        self.blocks.iter().flatten().map(|(k, v)| k.bytes() + v.bytes()).sum()
    }

    /// Past keys and values, widened, in front of a chunk's own.
    pub(crate) fn joined(&self, block: usize, own: &KeyValue) -> KeyValue {
        match &self.blocks[block] {
            None => own.clone(),
            Some((k, v)) => (k.before(self.layout, own.0.clone()), v.before(self.layout, own.1.clone())),
        }
    }

    /// A finished chunk's keys and values of one block, for [`add`](Self::add).
    ///
    /// # Errors
    /// What reading from the device can give.
    pub(crate) async fn keep(&self, compute: &Compute, (k, v): KeyValue) -> Result<Kept> {
        Ok((Rows::store(compute, self.layout, k).await?, Rows::store(compute, self.layout, v).await?))
    }

    /// Takes a chunk of finished frames, one entry a block, and lets go of what has left the window.
    pub(crate) fn add(&mut self, chunk: Vec<Kept>, frames: usize) {
        let held = self.held + frames;
        let keep = held.min(self.sink + self.window);
        let gone = self.sink * self.rows..(self.sink + held - keep) * self.rows;
        // Nothing has gone yet: the sink may be longer than what there is.
        let gone = if keep == held { 0..0 } else { gone };
        for (block, own) in self.blocks.iter_mut().zip(chunk) {
            let (k, v) = block.take().unzip();
            let put = |past, own| Rows::pushed(past, own, self.layout, gone.clone());
            *block = Some((put(k, own.0), put(v, own.1)));
        }
        self.held = keep;
        self.frames += frames;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::wait;
    use crate::model::cache::CacheFormat;

    /// Frames that are held by a cache of one block after four chunks of two frames whose values are their number.
    fn held(format: CacheFormat, sink: usize, window: usize) -> (Vec<f32>, u64) {
        let compute = Compute::cpu();
        let width = 64;
        let mut cache = KvCache {
            blocks: vec![None],
            layout: CacheLayout::new(format, 2, width / 2),
            rows: 3,
            sink,
            window,
            held: 0,
            frames: 0,
        };
        for chunk in 0..4 {
            let values = (0..2 * 3 * width).map(|index| (2 * chunk + index / (3 * width)) as f32).collect();
            let x: Tensor<2> = compute.tensor(values, [2 * 3, width]);
            let kept = wait(cache.keep(&compute, (x.clone(), -x))).expect("stored");
            cache.add(vec![kept], 2);
        }
        assert_eq!((cache.held(), cache.position()), (8.min(sink + window), 8));
        let own: Tensor<2> = compute.tensor(vec![9.0; width], [1, width]);
        let (k, v) = cache.joined(0, &(own.clone(), -own));
        assert_eq!(k.dims(), [3 * cache.held() + 1, width]);
        let read = |x: Tensor<2>| wait(compute.read(x)).expect("f32");
        let (k, v) = (read(k), read(v));
        assert!(k.iter().zip(&v).all(|(k, v)| *k == -v));
        // A frame's values are all the same, so one of each token tells.
        assert!(k.chunks(width).all(|token| token.iter().all(|value| *value == token[0])));
        (k.into_iter().step_by(3 * width).collect(), cache.bytes())
    }

    #[test]
    fn the_first_and_the_last_frames_stay_in_every_format() {
        for (sink, window, frames) in [
            (1, 3, vec![0.0, 5.0, 6.0, 7.0, 9.0]),
            (0, 2, vec![6.0, 7.0, 9.0]),
            (3, 2, vec![0.0, 1.0, 2.0, 6.0, 7.0, 9.0]),
        ] {
            let (exact, bytes) = held(CacheFormat::F32, sink, window);
            assert_eq!(exact, frames);
            assert_eq!(held(CacheFormat::F16, sink, window), (frames.clone(), bytes / 2));
            let (near, least) = held(CacheFormat::Q8, sink, window);
            assert!(
                near.len() == frames.len() && near.iter().zip(&frames).all(|(a, b)| (a - b).abs() < 1e-5),
                "{near:?}"
            );
            assert_eq!(least, bytes * 9 / 32);
        }
    }
}
