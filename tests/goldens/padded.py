"""Writes padded.safetensors: the tiny model's prompts encoded the way Wan's pipelines do it, padded and masked.

    python tests/goldens/padded.py          # torch, transformers, tokenizers, safetensors

Diffusers pads every prompt to the encoder's length, computes all of it under an attention mask, and then cuts the
padding off. The engine computes the real tokens only, which has to give the same.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import models

HERE = Path(__file__).parent


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    config = json.loads((HERE / "tiny/model.json").read_text())
    encoder = models.build(config, load_file(HERE / "tiny/weights.safetensors"))["text_encoder"]
    words = Tokenizer.from_file(str(HERE / "tiny/tokenizer.json"))
    length = config["text_encoder"]["max_tokens"]
    pairs = {}
    for index, case in enumerate(json.loads((HERE / "tokens.json").read_text())):
        ids = words.encode(case["prompt"]).ids
        padded = torch.tensor([ids + [0] * (length - len(ids))])
        mask = (torch.arange(length) < len(ids)).long()[None]
        hidden = encoder(input_ids=padded, attention_mask=mask).last_hidden_state[0]
        pairs[f"{index}.input_ids"] = torch.tensor(ids, dtype=torch.int32)
        pairs[f"{index}.embeddings"] = hidden[: len(ids)].contiguous()
    save_file(pairs, HERE / "padded.safetensors")
    print(", ".join(f"{name} {list(value.shape)}" for name, value in pairs.items()))


if __name__ == "__main__":
    main()
