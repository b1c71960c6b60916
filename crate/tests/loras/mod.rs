//! LoRA files for the tiny model of the goldens.
#![allow(dead_code)] // every test file uses a part of it

use crate::writers::{self, File, Kind, stored};

/// Layers of the tiny model of every sort: Wan's name, rows, columns.
pub const LAYERS: [(&str, usize, usize); 8] = [
    ("blocks.0.self_attn.q", 64, 64),
    ("blocks.1.cross_attn.v", 64, 64),
    ("blocks.0.ffn.0", 160, 64),
    ("blocks.1.ffn.2", 64, 160),
    ("patch_embedding", 64, 32),
    ("time_projection.1", 384, 64),
    ("text_embedding.0", 64, 64),
    ("head.head", 32, 64),
];

/// Values from -0.1 to 0.1 that look like nothing in particular.
fn values(count: usize, salt: usize) -> Vec<f32> {
    let value = |index: usize| ((index * 7919 + salt * 104_729) % 1009) as f32 / 5045.0 - 0.1;
    (0..count).map(value).collect()
}

/// A LoRA of a rank that is no multiple of four, with an alpha, in three number formats and the keys of ComfyUI.
pub fn first() -> File {
    let (mut file, rank) = (File::new(), 3);
    for (index, (name, rows, columns)) in LAYERS.into_iter().enumerate() {
        // The patch embedding is a convolution, and so are its LoRA's matrices.
        let (down, up) = match name {
            "patch_embedding" => (vec![rank, 8, 1, 2, 2], vec![rows, rank, 1, 1, 1]),
            _ => (vec![rank, columns], vec![rows, rank]),
        };
        let kind = [Kind::F32, Kind::F16, Kind::Bf16][index % 3];
        let key = |half: &str| format!("diffusion_model.{name}.{half}");
        file.insert(key("lora_down.weight"), stored(kind, &down, &values(rank * columns, index)));
        file.insert(key("lora_up.weight"), stored(Kind::F16, &up, &values(rows * rank, 50 + index)));
        file.insert(key("alpha"), stored(Kind::F32, &[], &[2.0]));
    }
    file
}

/// Another one, with the keys of kohya's trainers and no alpha, for some layers of the first and one of its own.
pub fn second() -> File {
    let (mut file, rank) = (File::new(), 4);
    let own = ("blocks.1.self_attn.o", 64, 64);
    for (index, (name, rows, columns)) in LAYERS.into_iter().take(4).chain([own]).enumerate() {
        let key = |half: &str| format!("lora_unet_{}.{half}.weight", name.replace('.', "_"));
        file.insert(key("lora_down"), stored(Kind::F32, &[rank, columns], &values(rank * columns, 100 + index)));
        file.insert(key("lora_up"), stored(Kind::F32, &[rows, rank], &values(rows * rank, 150 + index)));
    }
    file
}

/// The bytes of a file.
pub fn bytes(file: &File) -> Vec<u8> {
    writers::safetensors(file)
}
