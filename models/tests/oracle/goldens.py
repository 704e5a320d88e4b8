"""Runs the reference on samples and writes what a port has to reproduce, stage by stage."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

import media

NEW_TOKENS = 16
MIN_MARGIN = 0.02  # logits; a smaller lead of the chosen token would make greedy text a matter of rounding


@dataclass
class Sample:
    """One question. `media` holds images, the frames of one video, or int16 sound samples."""

    kind: str  # image, images, video, audio, audios, text
    question: str
    media: list = field(default_factory=list)


@dataclass
class Run:
    """What a family's `run` returns: tensors by golden name, and the greedy continuation."""

    tensors: dict
    greedy: list[int]
    margins: list[float]
    notes: dict = field(default_factory=dict)


class Recorder:
    """Keeps the first output (or input) of chosen modules, in f32."""

    def __init__(self):
        self.kept, self._hooks = {}, []

    def watch(self, module, key: str, of_input: bool = False):
        def hook(_, args, kwargs, out):
            if key in self.kept:
                return
            value = (args[0] if args else next(iter(kwargs.values()))) if of_input else out
            value = getattr(value, "last_hidden_state", value)
            value = value[0] if isinstance(value, tuple) else value
            self.kept[key] = value.detach().float().clone()

        self._hooks.append(module.register_forward_hook(hook, with_kwargs=True))

    def close(self):
        for hook in self._hooks:
            hook.remove()


def last_position(hidden_states) -> torch.Tensor:
    """Hidden states of the last position: layers + 1 rows."""
    return torch.stack([h[0, -1] for h in hidden_states]).float()


@torch.no_grad()
def greedy(model, inputs: dict, **kwargs) -> tuple[list[int], list[float]]:
    """Greedy ids, end tokens ignored, and by how many logits each leads the runner-up."""
    out = model.generate(
        **inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, temperature=None, top_p=None,
        top_k=None, eos_token_id=-1, output_logits=True, return_dict_in_generate=True, **kwargs,
    )  # fmt: skip
    ids = out.sequences[0, -NEW_TOKENS:].tolist()
    best = [step[0].topk(2).values for step in out.logits]
    return ids, [float(b[0] - b[1]) for b in best]


def statistics(t: torch.Tensor) -> dict:
    t = t.double()
    return {"shape": list(t.shape), "sum": t.sum().item(), "abs_sum": t.abs().sum().item(), "min": t.min().item(), "max": t.max().item()}


def _store_media(sample: Sample, folder: Path, k: int) -> list[str]:
    """Writes the media and puts the values that a reader of the files gets back into the sample."""
    if sample.kind in ("audio", "audios"):
        names = [f"sample_{k}{f'_p{i}' if len(sample.media) > 1 else ''}.wav" for i in range(len(sample.media))]
        for samples, name in zip(sample.media, names):
            media.write_wav(folder / name, samples)
        return names
    if len(sample.media) == 1:
        names = [f"sample_{k}.png"]
    else:
        names = [f"sample_{k}_{'f' if sample.kind == 'video' else 'p'}{i}.png" for i in range(len(sample.media))]
    for image, name in zip(sample.media, names):
        image.save(folder / name, optimize=True)
    sample.media = [Image.open(folder / n).copy() for n in names]
    return names


def write(family, folder: Path) -> list[dict]:
    """Goldens of `family` (one `sample_k.safetensors` per question and `index.json`) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for k, sample in enumerate(family.samples()):
        names = _store_media(sample, folder, k)
        run = family.run(sample)
        ints = (torch.int64, torch.int32)
        tensors = {n: (t.int() if t.dtype in ints else t.float()).contiguous() for n, t in run.tensors.items()}
        if "patch_embed" in tensors:
            tensors["patch_embed"] = tensors["patch_embed"].flatten(0, -2)
        logits = tensors["logits_first"]
        tensors["greedy16"] = torch.tensor(run.greedy, dtype=torch.int32)
        assert int(logits.argmax()) == run.greedy[0], (k, int(logits.argmax()), run.greedy)
        ends = family.end_tokens()
        text = family.decode(next((run.greedy[:i] for i, t in enumerate(run.greedy) if t in ends), run.greedy))
        top = logits.topk(3)
        record = {"id": k, "kind": sample.kind, "media": names, "question": sample.question} | run.notes
        record |= {n: statistics(t) for n, t in tensors.items() if t.dtype == torch.float32}
        record |= {"n_input": len(tensors["input_ids"]), "greedy16": run.greedy, "smallest_lead": min(run.margins), "text": text}
        record["top3"] = [[int(i), float(v)] for i, v in zip(top.indices, top.values)]
        save_file(tensors, folder / f"sample_{k}.safetensors")
        records.append(record)
    head = {"model": family.name, "dtype": f"f32 compute on weights stored as {str(family.dtype).removeprefix('torch.')}"}
    (folder / "index.json").write_text(json.dumps(head | {"samples": records}, indent=1, ensure_ascii=False) + "\n")
    return records


def check(records: list[dict]) -> None:
    """Refuses goldens that would not catch a wrong port: near ties, or the same tokens whatever is asked."""
    near = [(r["id"], r["smallest_lead"]) for r in records if r["smallest_lead"] < MIN_MARGIN]
    dull = [(r["id"], r["greedy16"]) for r in records if len(set(r["greedy16"])) < 6]
    same = len({tuple(r["greedy16"]) for r in records}) < len(records)
    if near or dull or same:
        raise SystemExit(f"try another seed: near ties {near}, monotonous text {dull}, equal answers {same}")
