"""Runs large multimodal models (images, video and sound in, text out) on small devices.

```
from edge_lmm import Engine, convert

convert("Qwen2-VL-2B-Instruct", "qwen2-vl-2b.bpk")
engine = Engine("qwen2-vl-2b.bpk")
for text in engine.stream("What is this?", images=["cat.jpg"]):
    print(text, end="", flush=True)
```

[edge_lmm.profiler] profiles an engine or a PyTorch model.
"""

from ._engine import Answer, AnswerStream, Chat, Engine, Settings, Stage, Timing
from ._errors import (
    DeviceError,
    Error,
    InputError,
    OutOfMemoryError,
    PromptTooLongError,
    RecordError,
)
from ._media import Audio, Video
from ._native import set_threads
from ._records import compare, convert, inspect

__all__ = [
    "Answer",
    "AnswerStream",
    "Audio",
    "Chat",
    "DeviceError",
    "Engine",
    "Error",
    "InputError",
    "OutOfMemoryError",
    "PromptTooLongError",
    "RecordError",
    "Settings",
    "Stage",
    "Timing",
    "Video",
    "compare",
    "convert",
    "inspect",
    "set_threads",
]
