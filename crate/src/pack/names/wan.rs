//! Names of the Wan transformer: diffusers' `transformer_wan.py` (ours), Wan's own `wan/modules/model.py` (also rCM's
//! and every causal distillation's), and FastVideo's MLX blocks (`fastvideo/mlx_runtime/fastwan.py`).

use super::Meaning;

/// Outside the blocks: Wan's name, ours.
const OUTER: [(&str, &str); 8] = [
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("patch_embedding", "patch_embedding"),
    ("head.head", "proj_out"),
    ("head", ""),
];

/// Within a block: Wan's name, ours. The norm before the cross attention is `norm3` there and `norm2` here; their
/// `norm1` and `norm2` have no weights.
const INNER: [(&str, &str); 15] = [
    ("self_attn.q", "attn1.to_q"),
    ("self_attn.k", "attn1.to_k"),
    ("self_attn.v", "attn1.to_v"),
    ("self_attn.o", "attn1.to_out.0"),
    ("self_attn.norm_q", "attn1.norm_q"),
    ("self_attn.norm_k", "attn1.norm_k"),
    ("cross_attn.q", "attn2.to_q"),
    ("cross_attn.k", "attn2.to_k"),
    ("cross_attn.v", "attn2.to_v"),
    ("cross_attn.o", "attn2.to_out.0"),
    ("cross_attn.norm_q", "attn2.norm_q"),
    ("cross_attn.norm_k", "attn2.norm_k"),
    ("norm3", "norm2"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
];

/// Within a block: FastVideo's name, ours.
const FASTVIDEO: [(&str, &str); 10] = [
    ("to_q", "attn1.to_q"),
    ("to_k", "attn1.to_k"),
    ("to_v", "attn1.to_v"),
    ("to_out", "attn1.to_out.0"),
    ("norm_q", "attn1.norm_q"),
    ("norm_k", "attn1.norm_k"),
    ("attn2.to_out", "attn2.to_out.0"),
    ("self_attn_residual_norm.norm", "norm2"),
    ("ffn.fc_in", "ffn.net.0.proj"),
    ("ffn.fc_out", "ffn.net.2"),
];

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
    let ours = |module: String| Meaning::Ours(format!("{module}.{kind}"));
    if let Some((block, inner)) = in_block(name) {
        if inner == "modulation" {
            return Meaning::Ours(format!("{block}.scale_shift_table"));
        }
        let Some((module, kind)) = inner.rsplit_once('.') else { return Meaning::Ours(name.into()) };
        let tables = INNER.iter().chain(&FASTVIDEO);
        return match tables.into_iter().find(|(theirs, _)| *theirs == module) {
            Some((_, ours)) => Meaning::Ours(format!("{block}.{ours}.{kind}")),
            None if kind == "weight" || kind == "bias" => Meaning::Ours(name.into()),
            None => Meaning::Unknown,
        };
    }
    match OUTER.iter().find(|(theirs, _)| *theirs == module) {
        Some((_, "")) => Meaning::Unknown,
        Some((_, module)) => ours((*module).into()),
        None if kind == "weight" || kind == "bias" => Meaning::Ours(name.into()),
        None => Meaning::Unknown,
    }
}

/// `blocks.N` and what follows.
fn in_block(name: &str) -> Option<(&str, &str)> {
    let rest = name.strip_prefix("blocks.")?;
    let (number, inner) = rest.split_once('.')?;
    number.bytes().all(|byte| byte.is_ascii_digit()).then(|| (&name[.."blocks.".len() + number.len()], inner))
}

/// Modules that a LoRA of kohya's trainers may name with underscores for dots: Wan's and diffusers' names of our
/// module, each with dots replaced. `ours` is a module's name, without `.weight`.
pub(in crate::pack) fn underscored(ours: &str) -> Vec<String> {
    let mut names = vec![ours.replace('.', "_")];
    let mut add = |name: String| names.push(name.replace('.', "_"));
    if let Some((block, inner)) = in_block(ours) {
        INNER.iter().filter(|(_, module)| *module == inner).for_each(|(theirs, _)| add(format!("{block}.{theirs}")));
    } else {
        OUTER.iter().filter(|(_, module)| *module == ours).for_each(|(theirs, _)| add((*theirs).into()));
    }
    names
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
        for unused in ["freqs", "accum_video_sample_counter", "blocks.0.attn1.to_gate_compress.weight"] {
            assert_eq!(meaning(unused), Meaning::Unused, "{unused}");
        }
        assert_eq!(meaning("head.weight"), Meaning::Unknown);
    }

    #[test]
    fn underscores_stand_for_dots() {
        assert!(underscored("blocks.0.attn1.to_q").contains(&"blocks_0_self_attn_q".into()));
        assert!(underscored("blocks.0.ffn.net.2").contains(&"blocks_0_ffn_2".into()));
        assert!(underscored("proj_out").contains(&"head_head".into()));
    }
}
