"""Small tokenizers as those of Llama, Phi-3 and Gemma are converted to `tokenizer.json`: BPE over characters, bytes as a last resort.

Two layouts are in circulation and split differently after a special token. `legacy` puts the space mark in front of every
piece of text between special tokens (a normalizer); the newer one only in front of the first (a pre-tokenizer).
"""

import json
import random

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors, trainers

from byte_level_bpe import corpus

MARK = "▁"


def _train(pieces: int) -> tuple[list[str], list]:
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tok.pre_tokenizer = pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=pieces, special_tokens=["<unk>"], show_progress=False, initial_alphabet=[MARK])
    tok.train_from_iterator((line for line in corpus() if line.isascii()), trainer)
    model = json.loads(tok.to_str())["model"]
    return [t for t in sorted(model["vocab"], key=model["vocab"].get) if t != "<unk>"], [tuple(m) for m in model["merges"]]


def _layout(legacy: bool) -> dict:
    undo = [
        {"type": "Replace", "pattern": {"String": MARK}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]  # fmt: skip
    mark = [{"type": "Prepend", "prepend": MARK}, {"type": "Replace", "pattern": {"String": " "}, "content": MARK}]
    return {
        "normalizer": {"type": "Sequence", "normalizers": mark} if legacy else None,
        "pre_tokenizer": None if legacy else {"type": "Metaspace", "replacement": MARK, "prepend_scheme": "first", "split": False},
        "decoder": {"type": "Sequence", "decoders": undo},
    }  # fmt: skip


def llama(pieces: int, extra: list[str | AddedToken], seed: int, legacy: bool) -> Tokenizer:
    """`<unk>`, `<s>`, `</s>` are 0, 1, 2 as always; `extra` special tokens follow, then bytes and pieces, shuffled."""
    names, merges = _train(pieces)
    plain = [AddedToken(t, special=True, normalized=False) if isinstance(t, str) else t for t in ["<unk>", "<s>", "</s>", *extra]]
    rest = [f"<0x{i:02X}>" for i in range(256)] + names
    random.Random(seed).shuffle(rest)
    vocab = {t: i for i, t in enumerate([t.content for t in plain] + rest)}
    tok = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tok.add_special_tokens(plain)
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", vocab["<s>"])])
    return Tokenizer.from_str(json.dumps(json.loads(tok.to_str()) | _layout(legacy)))


def gemma(pieces: int, seed: int) -> Tokenizer:
    """`<pad>`, `<eos>`, `<bos>`, `<unk>` are 0 to 3; runs of newlines are tokens, and no space is put in front."""
    names, merges = _train(pieces)
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    plain = [AddedToken(t, special=True, normalized=False) for t in special]
    plain += [AddedToken("\n" * n, special=False, normalized=False) for n in range(1, 5)]
    rest = [f"<0x{i:02X}>" for i in range(256)] + names
    random.Random(seed).shuffle(rest)
    vocab = {t: i for i, t in enumerate([t.content for t in plain] + rest)}
    tok = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tok.add_tokens(plain)
    tok.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    parts = {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": MARK},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        "decoder": {"type": "Sequence", "decoders": _layout(True)["decoder"]["decoders"][:3]},
    }
    return Tokenizer.from_str(json.dumps(json.loads(tok.to_str()) | parts))
