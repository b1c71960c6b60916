"""Stage 2: a Unigram tokenizer in the manner of UMT5's, with the words of generated captions.

    python -m training.tokenizer

Ids: <pad> 0, </s> 1, <unk> 2. Text is lower-cased, Metaspace splits words, and
</s> is appended. Writes tokenizer.json and vocabulary.json into the work folder.
"""

import json
import math
import random
import re
from collections import Counter

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from . import presets, worlds


def train(samples=20000, seed=11):
    """Whole caption words by frequency, then word beginnings and letters, so that any word can be spelt."""
    rng = random.Random(seed)
    counts = Counter()
    for _ in range(samples):
        text = worlds.caption(worlds.random_scene(rng), rng)
        counts.update(re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*|[,:]", text.lower()))
    counts.update({word: 1 for word in worlds.vocabulary()})
    total = sum(counts.values())
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        pieces.append((word if word in ",:" else "\u2581" + word, math.log(count / total)))
    known = {piece for piece, _ in pieces}
    # letters cost more than any word, so a known word is always one piece
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.-'!?\u2581"
    pieces += [(letter, -24.0) for letter in letters if letter not in known]
    pieces += [("\u2581" + letter, -26.0) for letter in letters[:26] if "\u2581" + letter not in known]

    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(" {2,}"), " "),
        normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def load(work):
    return Tokenizer.from_file(str(work / "tokenizer.json"))


def main():
    args = presets.arguments("tokenizer", __doc__).parse_args()
    work = presets.work_dir(args.work)
    tokenizer = train()
    assert [tokenizer.token_to_id(t) for t in ("<pad>", "</s>", "<unk>")] == [0, 1, 2]
    tokenizer.save(str(work / "tokenizer.json"))
    (work / "vocabulary.json").write_text(json.dumps(worlds.vocabulary()))
    for text in worlds.EXAMPLES[:3]:
        print(tokenizer.encode(text).tokens)
    print(tokenizer.get_vocab_size(), "pieces")


if __name__ == "__main__":
    main()
