"""The text-to-video model: transformers' UMT5EncoderModel and diffusers' WanTransformer3DModel.

Training does not call the Wan module's own forward pass but `velocity` below,
which computes the same from the module's weights and saves work: one set of
modulations per latent frame instead of per token, and one key for all of the
identical zero rows that pad the text (`python -m training.model` checks that
both agree).
"""

import math

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from . import presets

TIMESTEP_SCALE = 1000.0


def text_config(vocab_size):
    o = presets.TEXT_ENCODER
    return UMT5Config(
        vocab_size=vocab_size, d_model=o["d_model"], d_kv=o["d_kv"], d_ff=o["d_ff"], num_heads=o["num_heads"],
        num_layers=o["num_layers"], num_decoder_layers=o["num_layers"], dropout_rate=0.0,
        relative_attention_num_buckets=o["relative_attention_num_buckets"],
        relative_attention_max_distance=o["relative_attention_max_distance"],
        layer_norm_epsilon=o["layer_norm_epsilon"], feed_forward_proj="gated-gelu",
        pad_token_id=0, eos_token_id=1, use_cache=False)


# what the heads of the first layer begin with, and those of the others
LOOKS = ("previous", "next", "near", "before"), ("before", "before", "near", "free")


def look_beside(bias, layer):
    """Starts heads of a relative attention bias [buckets, heads] as looks at the words beside (`LOOKS`).

    Left to itself the encoder stays at the bag of words, in which "the camera pans left, a ball rolls right" is the
    same as its opposite: no word of such a caption tells anything alone, so nothing pulls at the biases. With these
    heads it reads such captions without a mistake after 13,000 of them. Which object is the first to be named is for all
    the words before to tell; from the second layer on two heads look at those.
    """
    after = bias.shape[0] // 2  # buckets from here on are of words to the right; the first few of each side are exact
    for head in range(bias.shape[1]):
        kind = LOOKS[min(layer, 1)][head % 4]
        if kind == "previous":
            bias[1, head] += 4
        elif kind == "next":
            bias[after + 1, head] += 4
        elif kind == "near":
            bias[1:4, head] += 2
            bias[after + 1:after + 4, head] += 1
        elif kind == "before":
            bias[after:, head] -= 4
        if kind != "free":
            bias[0, head] -= 2


class TextToVideo(torch.nn.Module):
    """Both networks, named as they are exported: text_encoder.* and transformer.*"""

    def __init__(self, vocab_size, transformer=None):
        super().__init__()
        self.text_encoder = UMT5EncoderModel(text_config(vocab_size))
        config = dict(transformer or presets.TRANSFORMER)
        config["patch_size"] = tuple(config["patch_size"])
        self.transformer = WanTransformer3DModel(qk_norm="rms_norm_across_heads", **config)
        self.max_tokens = presets.TEXT_ENCODER["max_tokens"]
        self.run_block = run_block
        with torch.no_grad():
            # residual branches and the output start small, embeddings at unit scale
            self.text_encoder.shared.weight.normal_(0, 1)
            for layer, block in enumerate(self.text_encoder.encoder.block):
                look_beside(block.layer[0].SelfAttention.relative_attention_bias.weight, layer)
            for block in self.transformer.blocks:
                for layer in (block.attn1.to_out[0], block.attn2.to_out[0], block.ffn.net[2]):
                    layer.weight *= 0.5
                # gates of attention and feed-forward open a little from the start
                block.scale_shift_table[:, [2, 5]] += 0.3
            self.transformer.proj_out.weight.zero_()
            self.transformer.proj_out.bias.zero_()

    def compiled(self):
        """Itself, with blocks that torch.compile makes faster: one compilation serves all of them."""
        self.run_block = torch.compile(run_block, dynamic=False)
        return self

    def encode_text(self, ids):
        """Embeddings [B, L, D] of ids [B, L] padded with 0, zero on the padding, and the lengths [B]."""
        mask = ids != 0
        states = self.text_encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return states * mask[..., None], mask.sum(1)

    def forward(self, latents, sigmas, ids, tap=None):
        """Velocity of latents [B, C, F, H, W] at sigmas [B, 1] or [B, F] for token ids [B, L].

        With `tap`, also the hidden states [B, tokens, D] after that block.
        """
        text, lengths = self.encode_text(ids)
        return velocity(self.transformer, latents, sigmas, text, lengths, self.max_tokens, tap, self.run_block)


def _attend(attn, x, context, rotary=None, bias=None):
    q = attn.norm_q(attn.to_q(x)).unflatten(2, (attn.heads, -1))
    k = attn.norm_k(attn.to_k(context)).unflatten(2, (attn.heads, -1))
    v = attn.to_v(context).unflatten(2, (attn.heads, -1))
    if rotary is not None:
        q, k = _rotate(q, *rotary), _rotate(k, *rotary)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return attn.to_out[0](out.transpose(1, 2).flatten(2))


def _rotate(x, cos, sin):
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(3)


def spread(m):
    """[B, S, D] with S = 1 or frames -> broadcastable over [B, F, tokens of a frame, D]"""
    return m[:, :, None]


def modulated(x, scale, shift, frames, eps):
    """Layer norm of tokens [B, L, D], scaled and shifted by what belongs to their latent frame [B, S, D]."""
    y = F.layer_norm(x, x.shape[-1:], eps=eps).unflatten(1, (frames, -1))
    return (y * (1 + spread(scale)) + spread(shift)).flatten(1, 2)


def gated(x, y, gate, frames):
    return x + (y.unflatten(1, (frames, -1)) * spread(gate)).flatten(1, 2)


def run_block(block, x, modulation, rotary, context, bias, frames, eps):
    """WanTransformerBlock.forward on tokens [B, L, D] with modulations [B, S, 6, D]."""
    shift1, scale1, gate1, shift2, scale2, gate2 = (block.scale_shift_table[:, None] + modulation).unbind(2)
    y = modulated(x, scale1, shift1, frames, eps)
    x = gated(x, _attend(block.attn1, y, y, rotary), gate1, frames)
    y = F.layer_norm(x, x.shape[-1:], block.norm2.weight, block.norm2.bias, eps)
    x = x + _attend(block.attn2, y, context, bias=bias)
    y = block.ffn.net[0].proj(modulated(x, scale2, shift2, frames, eps))
    return gated(x, block.ffn.net[2](F.gelu(y, approximate="tanh")), gate2, frames)


def velocity(model, latents, sigmas, text, lengths, max_tokens, tap=None, run=run_block):
    """WanTransformer3DModel.forward with a sigma per latent frame ([B, 1]: the same for all) and text [B, L, D]."""
    batch, _, frames, height, width = latents.shape
    rows, columns = height // 2, width // 2
    per_frame = rows * columns
    cos, sin = model.rope(latents)
    cos, sin = cos[..., 0::2].float(), sin[..., 1::2].float()

    embed = model.condition_embedder
    time = embed.timesteps_proj((sigmas * TIMESTEP_SCALE).flatten())
    time = embed.time_embedder(time).view(batch, sigmas.shape[1], -1)
    modulation = embed.time_proj(F.silu(time)).unflatten(2, (6, -1))

    # all padded rows are equal: one key stands for them, its weight counted by a bias
    context = embed.text_embedder(torch.cat([text, torch.zeros_like(text[:, :1])], 1))
    position = torch.arange(text.shape[1], device=text.device)
    bias = torch.zeros(batch, text.shape[1] + 1, device=text.device)
    bias[:, :-1].masked_fill_(position[None] >= lengths[:, None], -math.inf)
    bias[:, -1] = torch.log((max_tokens - lengths).clamp_min(0).float())
    bias = bias[:, None, None]

    # the patch embedding as a matrix product over the (channel, row, column) of each patch
    patches = latents.view(batch, -1, frames, rows, 2, columns, 2).permute(0, 2, 3, 5, 1, 4, 6)
    patches = patches.reshape(batch, frames * per_frame, -1)
    x = F.linear(patches, model.patch_embedding.weight.flatten(1), model.patch_embedding.bias)
    eps, tapped = model.config.eps, None
    for index, block in enumerate(model.blocks):
        x = run(block, x, modulation, (cos, sin), context, bias, frames, eps)
        if index == tap:
            tapped = x

    shift, scale = (model.scale_shift_table[:, None] + time[:, :, None]).unbind(2)
    x = model.proj_out(modulated(x, scale, shift, frames, eps))
    x = x.view(batch, frames, rows, columns, 2, 2, -1).permute(0, 6, 1, 2, 4, 3, 5)
    x = x.reshape(batch, -1, frames, height, width)
    return x if tap is None else (x, tapped)


@torch.no_grad()
def reference_velocity(model, latents, sigmas, text, max_tokens):
    """The same through diffusers' own forward pass, with a timestep per token."""
    batch, _, frames, height, width = latents.shape
    steps = (sigmas * TIMESTEP_SCALE).expand(batch, frames).repeat_interleave(height * width // 4, 1)
    padded = F.pad(text, (0, 0, 0, max_tokens - text.shape[1]))
    return model(latents, steps, padded, return_dict=False)[0]


def check():
    torch.manual_seed(0)
    model = TextToVideo(300, dict(presets.TRANSFORMER, num_layers=2)).eval()
    torch.nn.init.normal_(model.transformer.proj_out.weight, std=0.05)
    ids = torch.tensor([[5, 6, 7, 1, 0, 0], [9, 1, 0, 0, 0, 0]])
    latents, sigmas = torch.randn(2, presets.TRANSFORMER["in_channels"], 5, 6, 10), torch.rand(2, 5)
    with torch.no_grad():
        text, lengths = model.encode_text(ids)
        alone = model.text_encoder(input_ids=ids[1:, :2]).last_hidden_state[0]
        for s in (sigmas, sigmas[:, :1]):
            ours = velocity(model.transformer, latents, s, text, lengths, model.max_tokens)
            theirs = reference_velocity(model.transformer, latents, s, text, model.max_tokens)
            error = (ours - theirs).abs().max().item()
            assert error < 2e-5, error
    assert (alone - text[1, :2]).abs().max() < 1e-5
    assert text[1, 2:].abs().max() == 0
    return error


if __name__ == "__main__":
    print(f"model: agrees with diffusers within {check():.1e}")
