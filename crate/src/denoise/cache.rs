//! Keys and values of frames that are finished, for models that make a clip chunk by chunk.
//!
//! As in Self-Forcing `pipeline/causal_inference.py` and LongLive: after a chunk its clean latents pass the denoiser
//! once more, and what its frames offered to self-attention is kept, rotated to their absolute positions. Later chunks
//! attend to the first `sink` frames and to the last `window` ones, so memory does not grow with the clip.

use burn::tensor::Tensor;

use crate::model::manifest::CausalConfig;

/// Key and value of one block, `[tokens, dim]` each.
pub type KeyValue = (Tensor<2>, Tensor<2>);

/// What a chunk may look back at.
pub struct KvCache {
    blocks: Vec<Option<KeyValue>>,
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
    /// An empty cache for a transformer of `blocks` blocks and frames of `rows` tokens.
    pub fn new(config: &CausalConfig, blocks: usize, rows: usize) -> Self {
        Self {
            blocks: vec![None; blocks],
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

    /// Past keys and values in front of a chunk's own.
    pub(crate) fn joined(&self, block: usize, own: &KeyValue) -> KeyValue {
        match &self.blocks[block] {
            None => own.clone(),
            Some((k, v)) => {
                (Tensor::cat(vec![k.clone(), own.0.clone()], 0), Tensor::cat(vec![v.clone(), own.1.clone()], 0))
            }
        }
    }

    /// Takes a chunk of finished frames, one entry a block, and lets go of what has left the window.
    pub(crate) fn add(&mut self, chunk: Vec<KeyValue>, frames: usize) {
        let held = self.held + frames;
        let keep = held.min(self.sink + self.window);
        for (index, own) in chunk.into_iter().enumerate() {
            let (k, v) = self.joined(index, &own);
            self.blocks[index] = Some((self.trimmed(k, held, keep), self.trimmed(v, held, keep)));
        }
        self.held = keep;
        self.frames += frames;
    }

    fn trimmed(&self, x: Tensor<2>, held: usize, keep: usize) -> Tensor<2> {
        if keep == held {
            return x;
        }
        let rows = self.rows;
        let recent = x.clone().slice([(held - self.window) * rows..held * rows]);
        if self.sink == 0 { recent } else { Tensor::cat(vec![x.slice([0..self.sink * rows]), recent], 0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::Compute;

    #[test]
    fn the_first_and_the_last_frames_stay() {
        let compute = Compute::cpu();
        let config = CausalConfig { chunk_frames: 2, sink_frames: 1, window_frames: 3, ..CausalConfig::default() };
        let mut cache = KvCache::new(&config, 1, 2);
        for chunk in 0..4 {
            // Two frames of two tokens whose values are their frame's number.
            let values: Vec<f32> = (0..4).map(|token| (2 * chunk + token / 2) as f32).collect();
            let x: Tensor<2> = compute.tensor(values, [4, 1]);
            cache.add(vec![(x.clone(), x)], 2);
        }
        let (k, v) = cache.blocks[0].clone().expect("there is something");
        let held: Vec<f32> = k.into_data().try_into_vec().expect("f32");
        assert_eq!(held, [0.0, 0.0, 5.0, 5.0, 6.0, 6.0, 7.0, 7.0]);
        assert_eq!(v.dims(), [8, 1]);
        assert_eq!((cache.held(), cache.position()), (4, 8));
    }
}
