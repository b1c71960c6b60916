//! LoRA files: every style of keys, the right numbers, and every stranger by name.

mod parts;
mod toy;
mod writers;

use std::collections::BTreeMap;

use kinora::model::manifest::DType;
use kinora::pack::{Lora, Published};
use parts::{open, options, pack, packed_values, published};
use toy::{Folder, files};
use writers::{File, Kind, rounded, stored};

/// A LoRA file for two weights: our module, and the name under which the file has it.
fn lora(names: [&str; 2], keys: [&str; 3], alpha: Option<f32>) -> (File, BTreeMap<String, Vec<f32>>) {
    let (mut file, mut deltas) = (File::new(), BTreeMap::new());
    let rank = 4;
    for (module, (rows, columns)) in names.iter().zip([(32usize, 32usize), (48, 32)]) {
        let value = |index: usize, salt: usize| ((index * 13 + salt) % 17) as f32 / 8.0 - 1.0;
        let down: Vec<f32> = (0..rank * columns).map(|index| value(index, rows)).collect();
        let up: Vec<f32> = (0..rows * rank).map(|index| value(index, columns + 1)).collect();
        file.insert(format!("{module}{}", keys[0]), stored(Kind::F32, &[rank, columns], &down));
        file.insert(format!("{module}{}", keys[1]), stored(Kind::Bf16, &[rows, rank], &up));
        if let Some(alpha) = alpha {
            file.insert(format!("{module}{}", keys[2]), stored(Kind::F32, &[], &[alpha]));
        }
        let up = rounded(Kind::Bf16, &up);
        let product = |index: usize| {
            let (row, column) = (index / columns, index % columns);
            (0..rank).map(|inner| up[row * rank + inner] * down[inner * columns + column]).sum::<f32>()
        };
        deltas.insert((*module).to_owned(), (0..rows * columns).map(product).collect());
    }
    (file, deltas)
}

#[test]
fn loras_of_every_key_style_are_merged() {
    let ours = ["transformer.blocks.2.attn1.to_q.weight", "transformer.blocks.2.ffn.net.0.proj.weight"];
    let plain = toy::weights(&toy::model());
    for (names, keys, alpha, scale) in [
        (
            ["transformer.blocks.2.attn1.to_q", "transformer.blocks.2.ffn.net.0.proj"],
            [".lora_A.weight", ".lora_B.weight", ""],
            None,
            1.0,
        ),
        (
            ["base_model.model.blocks.2.self_attn.q", "base_model.model.blocks.2.ffn.0"],
            [".lora_A.default.weight", ".lora_B.default.weight", ""],
            None,
            0.5,
        ),
        (
            ["diffusion_model.blocks.2.self_attn.q", "diffusion_model.blocks.2.ffn.0"],
            [".lora_down.weight", ".lora_up.weight", ".alpha"],
            Some(2.0),
            1.0,
        ),
        (
            ["lora_unet__blocks_2_self_attn_q", "lora_unet__blocks_2_ffn_0"],
            [".lora_down.weight", ".lora_up.weight", ".alpha"],
            Some(8.0),
            -0.25,
        ),
    ] {
        let (file, deltas) = lora(names, keys, alpha);
        let factor = scale * alpha.unwrap_or(4.0) / 4.0;
        for bytes in [writers::safetensors(&file), writers::torch(&file, Some("generator_lora"))] {
            let source = open(bytes);
            let found = packed_values(Published { loras: vec![Lora { source, scale }], ..published() });
            for (name, (_, values)) in &plain {
                let delta = ours.iter().position(|ours| ours == name).map(|index| &deltas[names[index]]);
                for (index, value) in values.iter().enumerate() {
                    let wanted = value + delta.map_or(0.0, |delta| factor * delta[index]);
                    let error = (found[name][index] - wanted).abs();
                    assert!(error <= 1e-5 && (delta.is_some() || error == 0.0), "{names:?} {name} {index}");
                }
            }
        }
    }
}

#[test]
fn two_loras_add_up_and_strangers_are_listed() {
    let names = ["blocks.2.self_attn.q", "blocks.2.ffn.0"];
    let (file, deltas) = lora(names, [".lora_A.weight", ".lora_B.weight", ""], None);
    let with = |scale: f32| Lora { source: open(writers::safetensors(&file)), scale };
    let found = packed_values(Published { loras: vec![with(1.0), with(0.5)], ..published() });
    let name = "transformer.blocks.2.attn1.to_q.weight";
    let value = toy::weights(&toy::model())[name].1[7] + 1.5 * deltas[names[0]][7];
    assert!((found[name][7] - value).abs() < 1e-5);

    let mut wrong = file;
    wrong.insert("blocks.99.self_attn.q.lora_A.weight".into(), stored(Kind::F32, &[1], &[0.0]));
    wrong.insert("lora_te_text_model.lora_down.weight".into(), stored(Kind::F32, &[1], &[0.0]));
    wrong.insert("blocks.3.self_attn.k.lora_A.weight".into(), stored(Kind::F32, &[4, 32], &[0.0; 128]));
    wrong.insert("blocks.4.self_attn.k.lora_A.weight".into(), stored(Kind::F32, &[4, 30], &[0.0; 120]));
    wrong.insert("blocks.4.self_attn.k.lora_B.weight".into(), stored(Kind::F32, &[32, 4], &[0.0; 128]));
    let loras = vec![Lora { source: open(writers::safetensors(&wrong)), scale: 1.0 }];
    let folder = Folder::new();
    let error = pack(Published { loras, ..published() }, &folder.0, &options(DType::Q4)).unwrap_err().to_string();
    for says in [
        "4 keys amiss",
        "blocks.99.self_attn.q.lora_A.weight matches no weight",
        "lora_te_text_model.lora_down.weight matches no weight",
        "blocks.3.attn1.to_k has only one of its two matrices",
        "blocks.4.attn1.to_k has [32, 4] times [4, 30] for a weight [32, 32]",
    ] {
        assert!(error.contains(says), "{error}");
    }
    assert_eq!(files(&folder.0), Vec::<String>::new());
}
