//! Tensors of the Wan transformer; its modules are named in [`crate::model::names`].

use super::Meaning;
use crate::model::names::{in_block, wan_module};

/// What a name stands for. Ours are not checked here: the list of expected tensors has the say.
pub(super) fn meaning(name: &str) -> Meaning {
    // Tables that are computed, what NVIDIA's layers save besides weights, and rCM's counters of the training.
    if name == "freqs" || name.ends_with("_extra_state") || name.starts_with("accum_") {
        return Meaning::Unused;
    }
    // FastVideo's gate of its sparse attention; with dense attention there is nothing to gate.
    if name.contains(".to_gate_compress.") {
        return Meaning::Unused;
    }
    match name {
        "head.modulation" => return Meaning::Ours("scale_shift_table".into()),
        "scale_shift_table" => return Meaning::Ours(name.into()),
        _ => {}
    }
    let Some((module, kind)) = name.rsplit_once('.') else { return Meaning::Unknown };
    if let Some((block, inner)) = in_block(name).filter(|(_, inner)| !inner.contains('.')) {
        // A tensor of the block itself and not of a module within it.
        return Meaning::Ours(if inner == "modulation" { format!("{block}.scale_shift_table") } else { name.into() });
    }
    match wan_module(module) {
        Some(ours) => Meaning::Ours(format!("{ours}.{kind}")),
        None if module != "head" && (kind == "weight" || kind == "bias") => Meaning::Ours(name.into()),
        None => Meaning::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_all_three_origins_are_ours() {
        for (theirs, ours) in [
            ("blocks.3.self_attn.q.weight", "blocks.3.attn1.to_q.weight"),
            ("blocks.3.cross_attn.o.bias", "blocks.3.attn2.to_out.0.bias"),
            ("blocks.3.cross_attn.norm_k.weight", "blocks.3.attn2.norm_k.weight"),
            ("blocks.3.norm3.bias", "blocks.3.norm2.bias"),
            ("blocks.3.ffn.0.weight", "blocks.3.ffn.net.0.proj.weight"),
            ("blocks.3.ffn.2.weight", "blocks.3.ffn.net.2.weight"),
            ("blocks.3.modulation", "blocks.3.scale_shift_table"),
            ("time_projection.1.bias", "condition_embedder.time_proj.bias"),
            ("head.head.weight", "proj_out.weight"),
            ("head.modulation", "scale_shift_table"),
            ("blocks.3.to_out.weight", "blocks.3.attn1.to_out.0.weight"),
            ("blocks.3.attn2.to_out.weight", "blocks.3.attn2.to_out.0.weight"),
            ("blocks.3.attn2.to_q.weight", "blocks.3.attn2.to_q.weight"),
            ("blocks.3.self_attn_residual_norm.norm.weight", "blocks.3.norm2.weight"),
            ("blocks.3.ffn.fc_out.bias", "blocks.3.ffn.net.2.bias"),
            ("blocks.3.attn1.to_out.0.weight", "blocks.3.attn1.to_out.0.weight"),
            ("blocks.3.scale_shift_table", "blocks.3.scale_shift_table"),
        ] {
            assert_eq!(meaning(theirs), Meaning::Ours(ours.into()), "{theirs}");
        }
        // TurboDiffusion's linear attention is part of what was trained: such weights are refused, not computed without.
        assert_eq!(
            meaning("blocks.0.self_attn.attn_op.local_attn.proj_l.weight"),
            Meaning::Ours("blocks.0.self_attn.attn_op.local_attn.proj_l.weight".into())
        );
        for unused in ["freqs", "accum_video_sample_counter", "blocks.0.attn1.to_gate_compress.weight"] {
            assert_eq!(meaning(unused), Meaning::Unused, "{unused}");
        }
        assert_eq!(meaning("head.weight"), Meaning::Unknown);
    }
}
