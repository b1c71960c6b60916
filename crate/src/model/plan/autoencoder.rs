//! The autoencoder at work, one frame at a time: `decode/taehv.rs`, and the frames that `generation.rs` makes of it.

use std::rc::Rc;

use crate::model::manifest::{AutoencoderConfig, ClipSize, Manifest};
use crate::model::plan::bytes::{Bytes, Held, Machine, Walk};
use crate::model::plan::ops::{Conv, Frame};
use crate::model::plan::{Both, Target};

enum Layer {
    Clamp,
    Conv(Conv),
    Memory(Conv),
    Grow { conv: Conv, factor: u64 },
}

type Shared = Rc<Held>;

fn layers(config: &AutoencoderConfig) -> Vec<Layer> {
    let three = |out: usize, upsample| Conv { out: out as u64, kernel: 3, stride: 1, upsample };
    let widths = config.decoder_channels;
    let mut layers = vec![Layer::Clamp, Layer::Conv(three(widths[0], false))];
    for stage in 0..3 {
        layers.extend((0..3).map(|_| Layer::Memory(three(widths[stage], false))));
        let factor = if config.decoder_time_upscale[stage] { 2 } else { 1 };
        let out = widths[stage] as u64 * factor;
        layers.push(Layer::Grow { conv: Conv { out, kernel: 1, stride: 1, upsample: false }, factor });
        layers.push(Layer::Conv(three(widths[stage + 1], config.decoder_space_upscale[stage])));
    }
    layers.push(Layer::Conv(three(config.image_channels * config.patch_size * config.patch_size, false)));
    layers
}

/// What a clip takes in the decoder.
pub(super) struct Decoding {
    /// The most while one latent frame is decoded and its frames become pictures.
    pub(super) work: Both,
    /// The longest single tensor.
    pub(super) largest: Bytes,
    /// What the layers remember between latent frames.
    pub(super) state: Bytes,
    /// As tensors that are held.
    _memory: Vec<Option<Shared>>,
}

pub(super) fn decoding(manifest: &Manifest, size: ClipSize, machine: &Machine) -> Decoding {
    let [channels, frames, height, width] =
        manifest.latent_shape(size.width, size.height, size.frames).map(|n| n as u64);
    let layers = layers(&manifest.autoencoder);
    let walk = Walk::new(machine, false);
    let mut memory: Vec<Option<Shared>> = layers.iter().map(|_| None).collect();
    let (mut frame, mut count) = (Bytes::default(), 0);
    // The first latent frame finds no memory, every later one what the one before it left.
    for _ in 0..frames.min(2) {
        (frame, count) = run(&walk, &layers, &mut memory, Frame { channels, height, width });
    }
    // Frames are read back one after the other, as values and in order; then each is cut to size and turned into bytes.
    let shown = Bytes::new(u64::from(size.width)) * u64::from(size.height);
    let (ordering, turning) = (frame * (count + 2), frame * count + shown * (12 + 4 * count));
    let (peak, state, largest) = (walk.peak(), walk.now(), walk.largest());
    let work = if machine.target == Target::Gpu {
        Both { host: ordering.max(turning), gpu: peak }
    } else {
        // What made the frames is gone by the time that they are read back; a frame is moved, not copied.
        Both::host(peak.max(state + ordering.max(turning)))
    };
    Decoding { work, state, largest, _memory: memory }
}

/// `run`: depth first through all layers. Gives the size of a finished frame and their number.
fn run(walk: &Walk, layers: &[Layer], memory: &mut [Option<Shared>], latent: Frame) -> (Bytes, u64) {
    let mut queue = vec![(0, latent, Rc::new(walk.hold(latent.bytes())))];
    let mut done = Vec::new();
    let mut size = Bytes::default();
    while let Some((index, frame, x)) = queue.pop() {
        let Some(layer) = layers.get(index) else {
            size = frame.bytes();
            done.push(x);
            continue;
        };
        match layer {
            Layer::Clamp => queue.push((index + 1, frame, x)),
            Layer::Conv(conv) => {
                let (frame, y) = walk.conv(*conv, frame, x, None);
                queue.push((index + 1, frame, Rc::new(y)));
            }
            Layer::Memory(conv) => {
                let previous = memory[index].take().unwrap_or_else(|| Rc::new(walk.hold(frame.bytes())));
                memory[index] = Some(x.clone());
                let (_, h) = walk.conv(*conv, frame, x.clone(), Some(previous));
                let (_, h) = walk.conv(*conv, frame, h, None);
                let (_, y) = walk.conv(*conv, frame, (h, x), None);
                queue.push((index + 1, frame, Rc::new(y)));
            }
            Layer::Grow { conv, factor } => {
                let (grown, y) = walk.conv(*conv, frame, x, None);
                let part = Frame { channels: grown.channels / factor, ..grown };
                // A slice is a view on the CPU and a copy on a GPU. The last one pushed is the first one taken.
                let y = Rc::new(y);
                for _ in 0..*factor {
                    let slice = if walk.on_gpu() { Rc::new(walk.hold(part.bytes())) } else { y.clone() };
                    queue.push((index + 1, part, slice));
                }
            }
        }
    }
    let count = done.len() as u64;
    (size, count)
}
