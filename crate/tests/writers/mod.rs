//! Writers of the published formats, as small as tests need them; and the names that published files use.
#![allow(dead_code)] // every test file uses a part of it

pub mod zip64;

use std::collections::BTreeMap;

use half::f16;
use safetensors::tensor::{Dtype, TensorView, serialize};

/// Number format of a written tensor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    F32,
    F16,
    Bf16,
    I64,
    Q8_0,
    Q4_0,
    /// Bytes of any other ggml type.
    Raw(u32),
}

/// One tensor as it will lie in a file.
pub struct Stored {
    pub kind: Kind,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

pub type File = BTreeMap<String, Stored>;

pub fn stored(kind: Kind, shape: &[usize], values: &[f32]) -> Stored {
    Stored { kind, shape: shape.to_vec(), bytes: encode(kind, values) }
}

pub fn encode(kind: Kind, values: &[f32]) -> Vec<u8> {
    match kind {
        Kind::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Kind::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
        Kind::Bf16 => values.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect(),
        Kind::I64 => values.iter().flat_map(|&value| (value as i64).to_le_bytes()).collect(),
        Kind::Q8_0 => values.chunks(32).flat_map(|block| q8_0(block).0).collect(),
        Kind::Q4_0 => values.chunks(32).flat_map(|block| q4_0(block).0).collect(),
        Kind::Raw(_) => unreachable!("raw bytes are given"),
    }
}

/// What a reader must give back.
pub fn rounded(kind: Kind, values: &[f32]) -> Vec<f32> {
    match kind {
        Kind::F16 => values.iter().map(|&value| f16::from_f32(value).to_f32()).collect(),
        Kind::Bf16 => values.iter().map(|&value| half::bf16::from_f32(value).to_f32()).collect(),
        Kind::Q8_0 => values.chunks(32).flat_map(|block| q8_0(block).1).collect(),
        Kind::Q4_0 => values.chunks(32).flat_map(|block| q4_0(block).1).collect(),
        _ => values.to_vec(),
    }
}

fn scale(block: &[f32], steps: f32) -> f16 {
    f16::from_f32(block.iter().fold(0.0f32, |largest, value| largest.max(value.abs())) / steps)
}

/// A block of Q8_0, and its values.
fn q8_0(block: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let scale = scale(block, 127.0);
    let steps: Vec<i8> = block.iter().map(|value| (value / scale.to_f32()).round() as i8).collect();
    let mut bytes = scale.to_le_bytes().to_vec();
    bytes.extend(steps.iter().map(|&step| step as u8));
    (bytes, steps.iter().map(|&step| f32::from(step) * scale.to_f32()).collect())
}

/// A block of Q4_0, and its values: the first half in the low nibbles, the second half in the high ones.
fn q4_0(block: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let scale = scale(block, 7.0);
    let steps: Vec<u8> = block.iter().map(|value| ((value / scale.to_f32()).round() + 8.0) as u8).collect();
    let mut bytes = scale.to_le_bytes().to_vec();
    bytes.extend((0..16).map(|index| steps[index] | (steps[index + 16] << 4)));
    (bytes, steps.iter().map(|&step| (f32::from(step) - 8.0) * scale.to_f32()).collect())
}

pub fn safetensors(file: &File) -> Vec<u8> {
    let dtype = |kind| match kind {
        Kind::F32 => Dtype::F32,
        Kind::F16 => Dtype::F16,
        Kind::Bf16 => Dtype::BF16,
        Kind::I64 => Dtype::I64,
        Kind::Raw(32) => Dtype::U32,
        _ => unreachable!("not a type of safetensors"),
    };
    let views = file.iter().map(|(name, tensor)| {
        (name, TensorView::new(dtype(tensor.kind), tensor.shape.clone(), &tensor.bytes).unwrap())
    });
    serialize(views, None).unwrap()
}

pub fn gguf(file: &File, version: u32) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut out = b"GGUF".to_vec();
    out.extend(version.to_le_bytes());
    out.extend((file.len() as u64).to_le_bytes());
    let deep: Vec<_> = file.iter().filter(|(_, tensor)| tensor.shape.len() > 4).collect();
    out.extend((3 + deep.len() as u64).to_le_bytes());
    // ggml has four axes; ComfyUI-GGUF keeps the shape of what has more as metadata.
    for (name, tensor) in &deep {
        out.extend([text(&format!("comfy.gguf.orig_shape.{name}")), 9u32.to_le_bytes().to_vec()].concat());
        out.extend([5u32.to_le_bytes().to_vec(), (tensor.shape.len() as u64).to_le_bytes().to_vec()].concat());
        tensor.shape.iter().for_each(|&dim| out.extend((dim as i32).to_le_bytes()));
    }
    // A text, a list of texts as a vocabulary is, and the alignment.
    out.extend([text("general.architecture"), 8u32.to_le_bytes().to_vec(), text("t5encoder")].concat());
    out.extend([text("tokenizer.ggml.tokens"), 9u32.to_le_bytes().to_vec(), 8u32.to_le_bytes().to_vec()].concat());
    out.extend([2u64.to_le_bytes().to_vec(), text("<pad>"), text("a")].concat());
    out.extend([text("general.alignment"), 4u32.to_le_bytes().to_vec(), 64u32.to_le_bytes().to_vec()].concat());
    let mut data = Vec::new();
    for (name, tensor) in file {
        data.resize(data.len().next_multiple_of(64), 0);
        out.extend(text(name));
        let flat = [tensor.shape[0], tensor.shape[1..].iter().product()];
        let shape = if tensor.shape.len() > 4 { &flat[..] } else { &tensor.shape };
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&dim| out.extend((dim as u64).to_le_bytes()));
        let kind: u32 = match tensor.kind {
            Kind::F32 => 0,
            Kind::F16 => 1,
            Kind::Bf16 => 30,
            Kind::Q4_0 => 2,
            Kind::Q8_0 => 8,
            Kind::Raw(kind) => kind,
            Kind::I64 => 27,
        };
        out.extend(kind.to_le_bytes());
        out.extend((data.len() as u64).to_le_bytes());
        data.extend(&tensor.bytes);
    }
    out.resize(out.len().next_multiple_of(64), 0);
    out.extend(data);
    out
}

/// A PyTorch file: `{key: OrderedDict(tensors)}`, or the dictionary itself without a key.
pub fn torch(file: &File, key: Option<&str>) -> Vec<u8> {
    zip(&torch_entries(file, key))
}

/// The entries of a PyTorch file's archive: the pickle, then the storages.
pub fn torch_entries(file: &File, key: Option<&str>) -> Vec<(String, Vec<u8>)> {
    let mut entries: Vec<(String, Vec<u8>)> = vec![("archive/data.pkl".into(), pickle(file, key))];
    for (index, tensor) in file.values().enumerate() {
        entries.push((format!("archive/data/{index}"), tensor.bytes.clone()));
    }
    entries
}

pub fn pickle(file: &File, key: Option<&str>) -> Vec<u8> {
    let text = |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let number = |number: usize| [&b"J"[..], &(number as i32).to_le_bytes()].concat();
    let tuple = |items: &[usize]| [b"(".to_vec(), items.iter().flat_map(|&item| number(item)).collect(), b"t".to_vec()];
    let mut out = vec![0x80, 2];
    if let Some(key) = key {
        out.extend(b"}");
        out.extend(text(key));
    }
    out.extend(b"ccollections\nOrderedDict\n)R(");
    for (index, (name, tensor)) in file.iter().enumerate() {
        let class = match tensor.kind {
            Kind::F32 => "FloatStorage",
            Kind::F16 => "HalfStorage",
            Kind::Bf16 => "BFloat16Storage",
            _ => "LongStorage",
        };
        let values: usize = tensor.shape.iter().product();
        let strides: Vec<usize> =
            (0..tensor.shape.len()).map(|axis| tensor.shape[axis + 1..].iter().product()).collect();
        out.extend(text(name));
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        out.extend([text("storage"), format!("ctorch\n{class}\n").into_bytes()].concat());
        out.extend([text(&index.to_string()), text("cpu"), number(values), b"tQ".to_vec(), number(0)].concat());
        out.extend(tuple(&tensor.shape).concat());
        out.extend(tuple(&strides).concat());
        out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u");
    if key.is_some() {
        out.extend(b"s");
    }
    out.extend(b".");
    out
}

/// A zip archive of stored entries. Nobody checks the sums, so they are 0.
pub fn zip(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let offset = out.len() as u32;
        let length = (bytes.len() as u32).to_le_bytes();
        let names = [(name.len() as u16).to_le_bytes(), [0, 0]].concat();
        // Version, flags, method, time, date, sum.
        let common = [&[20, 0][..], &[0; 12], &length, &length, &names].concat();
        out.extend([b"PK\x03\x04", &common[..], name.as_bytes(), bytes].concat());
        directory
            .extend([b"PK\x01\x02", &[20, 0][..], &common, &[0; 10], &offset.to_le_bytes(), name.as_bytes()].concat());
    }
    let (count, start) = ((entries.len() as u16).to_le_bytes(), (out.len() as u32).to_le_bytes());
    let length = (directory.len() as u32).to_le_bytes();
    out.extend(&directory);
    out.extend([b"PK\x05\x06", &[0; 4][..], &count, &count, &length, &start, &[0, 0]].concat());
    out
}

/// A matrix in MLX's affine quantization: `q` of `bits` bits each, a scale and a bias for each group.
pub struct Affine<'a> {
    pub bits: usize,
    pub rows: usize,
    pub q: &'a [u32],
    /// Number format of scales and biases.
    pub kind: Kind,
    pub scales: &'a [f32],
    pub biases: &'a [f32],
}

/// MLX's three tensors for a matrix, under the names of MLX or of FastVideo.
pub fn mlx(file: &mut File, stem: &str, fastvideo: bool, matrix: &Affine<'_>) {
    let Affine { bits, rows, q, kind, scales, biases } = *matrix;
    let per_word = 32 / bits;
    let words = q.chunks(per_word).map(|chunk| chunk.iter().rev().fold(0u32, |word, &q| (word << bits) | q));
    let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
    let (weight, prefix) = (format!("{stem}.weight"), if fastvideo { format!("{stem}.weight") } else { stem.into() });
    file.insert(weight, Stored { kind: Kind::Raw(32), shape: vec![rows, q.len() / rows / per_word], bytes });
    let groups = [rows, scales.len() / rows];
    file.insert(format!("{prefix}.scales"), stored(kind, &groups, scales));
    file.insert(format!("{prefix}.biases"), stored(kind, &groups, biases));
}

/// Wan's own name of a tensor of diffusers' transformer.
pub fn wan_name(ours: &str) -> String {
    let pairs = [
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("proj_out", "head.head"),
        ("norm2", "norm3"),
        ("attn1.to_out.0", "self_attn.o"),
        ("attn2.to_out.0", "cross_attn.o"),
        ("attn1.to_", "self_attn."),
        ("attn2.to_", "cross_attn."),
        ("attn1.", "self_attn."),
        ("attn2.", "cross_attn."),
        ("ffn.net.0.proj", "ffn.0"),
        ("ffn.net.2", "ffn.2"),
    ];
    if ours == "scale_shift_table" {
        return "head.modulation".into();
    }
    pairs.iter().fold(ours.replace(".scale_shift_table", ".modulation"), |name, (ours, wan)| name.replace(ours, wan))
}

/// FastVideo's name of a tensor of diffusers' transformer.
pub fn fastvideo_name(ours: &str) -> String {
    let pairs = [
        ("attn1.to_out.0", "to_out"),
        ("attn2.to_out.0", "attn2.to_out"),
        ("attn1.", ""),
        (".norm2.", ".self_attn_residual_norm.norm."),
        ("ffn.net.0.proj", "ffn.fc_in"),
        ("ffn.net.2", "ffn.fc_out"),
    ];
    pairs.iter().fold(ours.to_owned(), |name, (ours, theirs)| name.replace(ours, theirs))
}

/// Wan's own name (index 0) or ggml's (index 1) of a tensor of transformers' UMT5 encoder.
pub fn umt5_name(ours: &str, index: usize) -> String {
    let pairs: [(&str, [&str; 2]); 13] = [
        ("shared", ["token_embedding", "token_embd"]),
        ("encoder.final_layer_norm", ["norm", "enc.output_norm"]),
        ("encoder.block", ["blocks", "enc.blk"]),
        ("layer.0.layer_norm", ["norm1", "attn_norm"]),
        ("layer.1.layer_norm", ["norm2", "ffn_norm"]),
        ("layer.0.SelfAttention.relative_attention_bias", ["pos_embedding.embedding", "attn_rel_b"]),
        ("layer.0.SelfAttention.q", ["attn.q", "attn_q"]),
        ("layer.0.SelfAttention.k", ["attn.k", "attn_k"]),
        ("layer.0.SelfAttention.v", ["attn.v", "attn_v"]),
        ("layer.0.SelfAttention.o", ["attn.o", "attn_o"]),
        ("layer.1.DenseReluDense.wi_0", ["ffn.gate.0", "ffn_gate"]),
        ("layer.1.DenseReluDense.wi_1", ["ffn.fc1", "ffn_up"]),
        ("layer.1.DenseReluDense.wo", ["ffn.fc2", "ffn_down"]),
    ];
    pairs.iter().fold(ours.to_owned(), |name, (ours, theirs)| name.replace(ours, theirs[index]))
}
