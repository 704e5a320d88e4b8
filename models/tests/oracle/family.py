"""What every family shares: configuration in files, random weights, loading, and the recording of one run."""

import json
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

import weights
from goldens import Recorder, Run, Sample, greedy, last_position

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


class Family:
    """A checkpoint in `folder`. Subclasses say what is in its files and which modules are the stages."""

    name: str
    architecture: str
    dtype = torch.float16
    seed = 0
    shards = 1
    fixed: tuple[str, ...] = ()  # parameters that keep the values of the constructor
    generation: dict = {}  # further arguments of `generate`

    def __init__(self, folder: Path):
        self.folder = folder

    def write_json(self, **files: dict) -> None:
        for stem, value in files.items():
            (self.folder / f"{stem}.json").write_text(json.dumps(value, indent=1) + "\n")

    def read_json(self, stem: str) -> dict:
        return json.loads((self.folder / f"{stem}.json").read_text())

    def stored_dtype(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def write_weights(self) -> None:
        """Draws the weights for the written `config.json` and stores them under the names that the hub uses."""
        config = transformers.AutoConfig.from_pretrained(self.folder)
        model = getattr(transformers, self.architecture)(config).float()
        weights.fill(model, self.seed, self.dtype, self.fixed)
        self.adjust(model)
        weights.write_shards(hub_names(model), self.folder, self.dtype, self.shards)

    def adjust(self, model) -> None:
        """Changes to single tensors after the drawing."""

    def load(self) -> None:
        cls = getattr(transformers, self.architecture)
        self.model = cls.from_pretrained(self.folder, dtype=torch.float32, attn_implementation="eager").eval()
        self.load_processor()

    def run(self, sample: Sample) -> Run:
        inputs, recorder = self.inputs(sample), Recorder()
        tensors = {"input_ids": inputs["input_ids"][0]} | self.before(inputs)
        self.watch(recorder)
        with torch.no_grad():
            out = self.model(**inputs, output_hidden_states=True)
        recorder.close()
        tensors |= self.after(inputs, recorder.kept)
        logits, hidden = self.text_output(out)
        tensors["logits_first"] = logits[0, -1]
        tensors["logits_argmax_all"] = logits[0].argmax(-1)
        tensors["lm_hidden_last"] = last_position(hidden)
        ids, leads = greedy(self.model, self.generation_inputs(inputs), pad_token_id=self.pad_token(), **self.generation)
        return Run(tensors, ids, leads, {"prompt": self.prompt(sample)} | self.notes(inputs))

    def before(self, inputs: dict) -> dict:
        """Tensors that are known before the model runs."""
        return {}

    def after(self, inputs: dict, kept: dict) -> dict:
        """The recorded stages; a subclass may cut or reorder them."""
        return kept

    def generation_inputs(self, inputs: dict) -> dict:
        return inputs

    def text_output(self, out):
        return out.logits, out.hidden_states

    def notes(self, inputs: dict) -> dict:
        return {}

    def pad_token(self) -> int:
        return self.end_tokens()[-1]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def hub_names(model) -> dict[str, torch.Tensor]:
    """Parameters under the names that published checkpoints use; transformers reverses its renaming when it saves."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size="1GB")
        return load_file(Path(folder) / "model.safetensors")
