"""Saves the test checkpoints with the installed version of transformers.

    python save_layouts.py MODELS OUT

MODELS is the folder of test checkpoints (models/tests/data), OUT gets VERSION/CHECKPOINT/*.json.
Only the small files are kept. A tokenizer.json that is equal to the checkpoint's own is omitted,
and so are the weights, which every version stores under the checkpoint's own names (this is
checked); it drops those of parts that it does not have. Needs torch, torchvision, pillow and
num2words.
"""
import json
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import torch
import transformers
from safetensors.torch import load_file

CLASSES = {
    "qwen2vl-tiny": "Qwen2VLForConditionalGeneration",
    "qwen25vl-tiny": "Qwen2_5_VLForConditionalGeneration",
    "llava-tiny": "LlavaForConditionalGeneration",
    "blip2-tiny": "Blip2ForConditionalGeneration",
    "blip2-t5-odd": "Blip2ForConditionalGeneration",
    "qwen2audio-tiny": "Qwen2AudioForConditionalGeneration",
    "llama3-odd": "LlamaForCausalLM",
    "qwen2-odd": "Qwen2ForCausalLM",
    "phi3-odd": "Phi3ForCausalLM",
    "gemma3text-odd": "Gemma3ForCausalLM",
    "gemma3-odd": "Gemma3ForConditionalGeneration",
    "smolvlm2-odd": "SmolVLMForConditionalGeneration",
    "qwen25omni-odd": "Qwen2_5OmniForConditionalGeneration",
    "qwen3vl-odd": "Qwen3VLForConditionalGeneration",
    "lfm2vl-odd": "Lfm2VlForConditionalGeneration",
    "qwen35-odd": "Qwen3_5ForConditionalGeneration",
}
TEXT = ("llama3-odd", "qwen2-odd", "phi3-odd", "gemma3text-odd")
# Weights of parts that no class reads, and of speech, which is switched off.
UNUSED = ("mtp.", "talker.", "token2wav.")


def processor(source, name):
    """Returns the processor, or its parts if it cannot be created."""
    if name not in TEXT:
        try:
            return [transformers.AutoProcessor.from_pretrained(source)]
        except Exception as error:
            print(f"  {name}: no processor ({type(error).__name__}: {str(error)[:120]}), its parts instead")
            auto = "AutoFeatureExtractor" if "audio" in name else "AutoImageProcessor"
            parts = [getattr(transformers, auto).from_pretrained(source)]
    else:
        parts = []
    return parts + [transformers.AutoTokenizer.from_pretrained(source)]


def check_names(source, saved):
    """Checks that this version stores the weights under the checkpoint's own names."""
    old = set(load_file(source / "model.safetensors"))
    new = set(load_file(saved / "model.safetensors"))
    old = {name for name in old if not name.startswith(UNUSED)}
    assert new == old, f"other names of weights: {sorted(new ^ old)[:4]}"


def save(models, name, out):
    cls = getattr(transformers, CLASSES[name], None)
    if cls is None:
        print(f"  {name}: no class")
        return
    source = models / name
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "saved"
        options = {"dtype": "auto"} if transformers.__version__ >= "5" else {"torch_dtype": "auto"}
        if "omni" in name:
            options["enable_audio_output"] = False
            # The class wants the voices even then.
            source = Path(folder) / "voices" / name
            shutil.copytree(models / name, source)
            torch.save({}, source / "spk_dict.pt")
        model = cls.from_pretrained(source, **options)
        model.save_pretrained(saved)
        for part in processor(source, name):
            part.save_pretrained(saved)
        target = out / transformers.__version__ / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        check_names(source, saved)
        for file in sorted(saved.iterdir()):
            own = source / file.name
            if file.suffix == ".safetensors" or file.name in ("vocab.json", "merges.txt"):
                continue
            if file.name == "tokenizer.json" and json.loads(own.read_text()) == json.loads(file.read_text()):
                continue
            shutil.copy(file, target)
        print(f"  {name}: {sorted(file.name for file in target.iterdir())}")


print(transformers.__version__)
for name in CLASSES:
    try:
        save(Path(sys.argv[1]), name, Path(sys.argv[2]))
    except Exception as error:
        print(f"  {name}: {type(error).__name__}: {str(error)[:300]}")
