//! Names of modules in files that others publish, for packing and for LoRA files.
//!
//! The Wan transformer has those of diffusers' `transformer_wan.py` (ours), of Wan's own `wan/modules/model.py` (also
//! rCM's and every causal distillation's), or of FastVideo's MLX blocks (`fastvideo/mlx_runtime/fastwan.py`).

/// Outside the blocks: Wan's name, ours.
const OUTER: [(&str, &str); 7] = [
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("patch_embedding", "patch_embedding"),
    ("head.head", "proj_out"),
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

/// Our name of a module of the Wan transformer; `None` where the file has ours or one that is not known.
pub(crate) fn wan_module(theirs: &str) -> Option<String> {
    if let Some((block, inner)) = in_block(theirs) {
        let (_, ours) = INNER.iter().chain(&FASTVIDEO).find(|(theirs, _)| *theirs == inner)?;
        return Some(format!("{block}.{ours}"));
    }
    OUTER.iter().find(|(name, _)| *name == theirs).map(|(_, ours)| (*ours).to_owned())
}

/// `blocks.N` and what follows.
pub(crate) fn in_block(name: &str) -> Option<(&str, &str)> {
    let rest = name.strip_prefix("blocks.")?;
    let (number, inner) = rest.split_once('.')?;
    number.bytes().all(|byte| byte.is_ascii_digit()).then(|| (&name[.."blocks.".len() + number.len()], inner))
}

/// Modules that a LoRA of kohya's trainers may name with underscores for dots: Wan's and diffusers' names of our
/// module, each with dots replaced. `ours` is a module's name, without `.weight`.
pub(crate) fn wan_underscored(ours: &str) -> Vec<String> {
    let mut names = vec![ours.replace('.', "_")];
    let mut add = |name: String| names.push(name.replace('.', "_"));
    if let Some((block, inner)) = in_block(ours) {
        INNER.iter().filter(|(_, module)| *module == inner).for_each(|(theirs, _)| add(format!("{block}.{theirs}")));
    } else {
        OUTER.iter().filter(|(_, module)| *module == ours).for_each(|(theirs, _)| add((*theirs).into()));
    }
    names
}

/// Wrappers around a module that leave their names within the names of its tensors.
const WITHIN: [&str; 3] = ["_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod."];
/// What training code and other programs put in front of the names, outermost first.
const BEFORE: [&str; 8] =
    ["module.", "generator.", "student.", "net.", "base_model.", "model.", "diffusion_model.", "transformer."];

/// A name without what wrappers added. `prefix` is the part's own, which some files have.
pub(crate) fn clean(name: &str, prefix: &str) -> String {
    let mut name = name.to_owned();
    for within in WITHIN {
        name = name.replace(within, "");
    }
    let mut rest = name.as_str();
    while let Some(shorter) = BEFORE.iter().chain([&prefix]).find_map(|before| rest.strip_prefix(before)) {
        rest = shorter;
    }
    rest.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_are_taken_off_in_any_order() {
        for name in [
            "blocks.0.ffn.0.weight",
            "model.blocks.0.ffn.0.weight",
            "module.model._fsdp_wrapped_module.blocks.0.ffn.0.weight",
            "model.diffusion_model.blocks.0._checkpoint_wrapped_module.ffn.0.weight",
            "net.blocks.0.ffn.0.weight",
            "transformer.blocks.0.ffn.0.weight",
        ] {
            assert_eq!(clean(name, "transformer."), "blocks.0.ffn.0.weight");
        }
        assert_eq!(clean("encoder.block.0.x", "text_encoder."), "encoder.block.0.x");
    }

    #[test]
    fn underscores_stand_for_dots() {
        assert!(wan_underscored("blocks.0.attn1.to_q").contains(&"blocks_0_self_attn_q".into()));
        assert!(wan_underscored("blocks.0.ffn.net.2").contains(&"blocks_0_ffn_2".into()));
        assert!(wan_underscored("proj_out").contains(&"head_head".into()));
    }
}
