//! Names of the UMT5 encoder: transformers' `modeling_umt5.py` (ours), Wan's `wan/modules/t5.py`, and ggml's as in
//! llama.cpp `gguf-py/gguf/constants.py` (`MODEL_ARCH.T5ENCODER`).

use super::Meaning;

/// Within a block: Wan's name, ggml's name, ours below `encoder.block.N.`.
const INNER: [(&str, &str, &str); 10] = [
    ("norm1", "attn_norm", "layer.0.layer_norm"),
    ("attn.q", "attn_q", "layer.0.SelfAttention.q"),
    ("attn.k", "attn_k", "layer.0.SelfAttention.k"),
    ("attn.v", "attn_v", "layer.0.SelfAttention.v"),
    ("attn.o", "attn_o", "layer.0.SelfAttention.o"),
    ("pos_embedding.embedding", "attn_rel_b", "layer.0.SelfAttention.relative_attention_bias"),
    ("norm2", "ffn_norm", "layer.1.layer_norm"),
    // The gate is what goes through the GELU.
    ("ffn.gate.0", "ffn_gate", "layer.1.DenseReluDense.wi_0"),
    ("ffn.fc1", "ffn_up", "layer.1.DenseReluDense.wi_1"),
    ("ffn.fc2", "ffn_down", "layer.1.DenseReluDense.wo"),
];

/// What a name stands for.
pub(super) fn meaning(name: &str) -> Meaning {
    match name {
        "token_embedding.weight" | "token_embd.weight" => return Meaning::Ours("shared.weight".into()),
        // transformers ties it to `shared.weight`, and a file may have either or both.
        "encoder.embed_tokens.weight" => return Meaning::Copy("shared.weight".into()),
        "norm.weight" | "enc.output_norm.weight" => return Meaning::Ours("encoder.final_layer_norm.weight".into()),
        // The tokenizer that ComfyUI's files carry, and the half of a whole UMT5 that only writes text.
        "spiece_model" | "lm_head.weight" => return Meaning::Unused,
        _ if name.starts_with("decoder.") || name.starts_with("dec.") => return Meaning::Unused,
        _ => {}
    }
    let block = |rest: &str, pick: fn(&(&str, &str, &'static str)) -> (String, &'static str)| {
        let (number, inner) = rest.split_once('.')?;
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let module = inner.strip_suffix(".weight").filter(|_| digits)?;
        let (_, ours) = INNER.iter().map(pick).find(|(theirs, _)| theirs == module)?;
        Some(Meaning::Ours(format!("encoder.block.{number}.{ours}.weight")))
    };
    let found = if let Some(rest) = name.strip_prefix("blocks.") {
        block(rest, |&(wan, _, ours)| (wan.into(), ours))
    } else if let Some(rest) = name.strip_prefix("enc.blk.") {
        block(rest, |&(_, ggml, ours)| (ggml.into(), ours))
    } else if name == "shared.weight" || name.starts_with("encoder.") {
        Some(Meaning::Ours(name.into()))
    } else {
        None
    };
    found.unwrap_or(Meaning::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_all_three_origins_are_ours() {
        for (theirs, ours) in [
            ("blocks.7.attn.q.weight", "encoder.block.7.layer.0.SelfAttention.q.weight"),
            ("blocks.7.ffn.gate.0.weight", "encoder.block.7.layer.1.DenseReluDense.wi_0.weight"),
            ("blocks.7.ffn.fc1.weight", "encoder.block.7.layer.1.DenseReluDense.wi_1.weight"),
            (
                "blocks.7.pos_embedding.embedding.weight",
                "encoder.block.7.layer.0.SelfAttention.relative_attention_bias.weight",
            ),
            ("enc.blk.7.ffn_gate.weight", "encoder.block.7.layer.1.DenseReluDense.wi_0.weight"),
            ("enc.blk.7.ffn_up.weight", "encoder.block.7.layer.1.DenseReluDense.wi_1.weight"),
            ("enc.blk.7.attn_o.weight", "encoder.block.7.layer.0.SelfAttention.o.weight"),
            ("enc.output_norm.weight", "encoder.final_layer_norm.weight"),
            ("token_embd.weight", "shared.weight"),
            ("shared.weight", "shared.weight"),
        ] {
            assert_eq!(meaning(theirs), Meaning::Ours(ours.into()), "{theirs}");
        }
        assert_eq!(meaning("encoder.embed_tokens.weight"), Meaning::Copy("shared.weight".into()));
        assert_eq!(meaning("decoder.block.0.layer.0.layer_norm.weight"), Meaning::Unused);
        for unknown in ["blocks.x.norm1.weight", "blocks.1.norm9.weight", "enc.blk.1.attn_q.bias"] {
            assert_eq!(meaning(unknown), Meaning::Unknown, "{unknown}");
        }
    }
}
