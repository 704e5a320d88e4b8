"""Small byte-level BPE tokenizers in the file layout of the hub.

The ids are laid out unlike those of any published model: some special tokens come first (id 0 is a real token), the
pieces follow in an order of their own, the other special tokens stand last. Merges keep their order, which alone
decides how text is split.
"""

import json
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

# The split of the Qwen2 family. A published constant: a port recognizes it, or compiles it.
QWEN2_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# That of Llama 3.
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")

_NOUNS = "picture frame video sound circle square cat house river number colour corner edge shadow window letter".split()
_VERBS = "shows holds crosses follows touches hides counts describes compares begins moves ends".split()
_QUALITIES = "red green bright dark small large left right upper lower first second last same other wide".split()


def corpus(sentences: int = 1500) -> list[str]:
    """Made-up sentences with the words that questions use; fixed by a seed."""
    rng = random.Random(11)
    lines = ["system\n", "user\n", "assistant\n", "How many are there? ", "What does the picture show? ", "Größe: 12 cm, naïve"]
    lines *= 30
    for _ in range(sentences):
        a, b = rng.sample(_NOUNS, 2)
        line = f"The {rng.choice(_QUALITIES)} {a} {rng.choice(_VERBS)} the {rng.choice(_QUALITIES)} {b}"
        lines.append(line + rng.choice([".", "?", ", and it's there.", " again;", "\n"]))
    return lines


def _train(tok: Tokenizer, pieces: int) -> tuple[dict, list]:
    trainer = trainers.BpeTrainer(
        vocab_size=pieces, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), special_tokens=[], show_progress=False
    )
    tok.train_from_iterator(corpus(), trainer)
    model = json.loads(tok.to_str())["model"]
    return model["vocab"], [tuple(m) for m in model["merges"]]


def _rebuild(tok: Tokenizer, pieces: int, first: list[str], last: list[str], seed: int) -> Tokenizer:
    """Trains, deals the ids anew and returns the tokenizer with `first` and `last` as special tokens."""
    vocab, merges = _train(tok, pieces)
    names = sorted(vocab, key=vocab.get)
    random.Random(seed).shuffle(names)
    tok.model = models.BPE({t: i for i, t in enumerate(first + names + last)}, merges)
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in first + last])
    for i, t in enumerate(first + names + last):
        assert tok.token_to_id(t) == i, (t, i, tok.token_to_id(t))
    return tok


def qwen2(pieces: int, first: list[str], last: list[str], seed: int) -> Tokenizer:
    """Qwen2 layout: NFC, the regular expression above, then bytes; no token is added in front."""
    tok = Tokenizer(models.BPE(byte_fallback=False, fuse_unk=False))
    tok.normalizer = normalizers.NFC()
    byte_level = dict(add_prefix_space=False, trim_offsets=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated")
    tok.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(**byte_level)])
    tok.decoder = decoders.ByteLevel(**byte_level)
    tok.post_processor = processors.ByteLevel(**byte_level)
    return _rebuild(tok, pieces, first, last, seed)


def llama3(pieces: int, last: list[str], seed: int) -> Tokenizer:
    """Llama 3 layout: no normalization, whole pieces before merges, the first of `last` in front of every text."""
    tok = Tokenizer(models.BPE(ignore_merges=True))
    byte_level = dict(add_prefix_space=False, trim_offsets=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")
    tok.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(**byte_level)])
    tok.decoder = decoders.ByteLevel(**byte_level)
    tok = _rebuild(tok, pieces, [], last, seed)
    tok.model.ignore_merges = True
    begin = processors.TemplateProcessing(
        single=f"{last[0]} $A", pair=f"{last[0]} $A {last[0]} $B", special_tokens=[(last[0], tok.token_to_id(last[0]))]
    )
    tok.post_processor = processors.Sequence([processors.ByteLevel(**byte_level), begin])
    return tok


def gpt2(pieces: int, first: list[str], last: list[str], seed: int, bos: str) -> Tokenizer:
    """GPT-2 layout as OPT uses it: the byte-level split alone, `bos` in front of every text."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True)
    tok = _rebuild(tok, pieces, first, last, seed)
    tok.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tok.token_to_id(bos))]
    )
    return tok


def write(tok: Tokenizer, folder, config: dict) -> None:
    """`tokenizer.json` and `tokenizer_config.json`, the latter with the list of added tokens."""
    tok.save(str(folder / "tokenizer.json"), pretty=False)
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    config = config | {"added_tokens_decoder": {str(a["id"]): {k: a[k] for k in flags} for a in added}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")
