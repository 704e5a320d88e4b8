"""Engines, conversations and answers."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Iterator, Sequence, TypedDict

from . import _media, _native
from ._errors import Error
from ._media import Audio, ImageLike, Video

if TYPE_CHECKING:
    from typing_extensions import Unpack


_DEFAULTS = {"max_tokens": 256}


class Settings(TypedDict, total=False):
    """Settings of a request; all have the defaults of the command line."""

    max_tokens: int
    """Largest number of tokens to generate, 256 by default."""
    ignore_eos: bool
    """Continues after an end-of-sequence token."""
    temperature: float
    """Sampling temperature; 0, the default, always selects the most likely token."""
    top_k: int
    """Samples from the most likely tokens only; 0 from all."""
    top_p: float
    """Samples from the most likely tokens with this total probability."""
    min_p: float
    """Samples from tokens of at least this share of the best token's probability."""
    seed: int
    """Start of the random sequence."""
    repetition_penalty: float
    """Penalizes tokens that occurred before; by default that of the checkpoint, 1 is off."""
    presence_penalty: float
    """Amount subtracted from the logits of tokens that the answer contains."""
    frequency_penalty: float
    """Amount subtracted for each time that the answer contains a token."""
    ignore_generation_config: bool
    """Ignores the checkpoint's generation_config.json, except for its end-of-sequence tokens."""
    stop: "list[str]"
    """Strings that end the answer."""
    parse_special: bool
    """Lets control tokens in messages take effect."""
    image_tokens: "tuple[int, int]"
    """Smallest and largest number of tokens of an image, for families that resize images."""
    reduce: str
    """Methods that reduce visual tokens, as for `--reduce`: `merge:0.5`."""
    pad_audio: bool
    """Pads sounds to the 30 seconds that encoders were trained on."""
    speculate: str
    """Tokens to draft and verify together in each step: `auto`, the default on CPUs, a number, or
    `off`, the default on GPUs and while a profiler runs. Answers stay the same on CPUs."""
    timing: bool
    """Measures the stages of the answer, see [Answer.timing]."""


@dataclass(frozen=True)
class Stage:
    """Cost of a stage (`vision`), or of a module inside one (`vision.blocks.7.mlp`)."""

    name: str
    stage: str
    """Enclosing stage; equal to `name` for a stage."""
    ms: float
    """Wall time of all calls in milliseconds."""
    calls: int
    peak_bytes: int
    """Peak heap use during the calls."""
    launches: int
    """GPU kernels launched."""
    hidden_ms: float = 0.0
    """Part of the time that other stages hid, as they ran at the same time."""

    @property
    def is_top(self) -> bool:
        """True for a stage, False for a module."""
        return self.name == self.stage


@dataclass(frozen=True)
class Timing:
    """Stages and modules of an answer, in the order in which they were first entered."""

    stages: "tuple[Stage, ...]"

    @property
    def total_ms(self) -> float:
        """Milliseconds of all stages; time in which two ran at once counts once."""
        return sum(stage.ms - stage.hidden_ms for stage in self.stages if stage.is_top)

    def stage(self, name: str) -> "Stage | None":
        """Returns the stage of that name."""
        return next((s for s in self.stages if s.is_top and s.name == name), None)

    def rows(self) -> "list[dict[str, Any]]":
        """Returns one row for each stage and module, for `pandas.DataFrame`."""
        return [dict(vars(stage)) for stage in self.stages]


@dataclass(frozen=True)
class Answer:
    """An answer."""

    text: str
    tokens: "tuple[int, ...]"
    """Generated ids, including an end-of-sequence token."""
    prompt_tokens: int
    visual_tokens: int
    """Tokens of the prompt that stand for media."""
    reused_tokens: int
    """Tokens of the prompt that were not computed again."""
    finish_reason: str
    """`stop`, `length`, `context` or `canceled`."""
    first_token_ms: float
    tokens_per_second: "float | None"
    """Speed of decoding; None if it was not measured."""
    peak_resident_bytes: "int | None"
    """Peak resident memory of the process, including mapped weights."""
    timing: Timing
    """Stages, if the request asked for them (`timing=True`) or a profiler runs."""

    def __str__(self) -> str:
        return self.text

    @classmethod
    def _of(cls, report: str) -> "Answer":
        values = json.loads(report)
        return cls(
            text=values["text"],
            tokens=tuple(values["tokens"]),
            prompt_tokens=values["prompt_tokens"],
            visual_tokens=values["visual_tokens"],
            reused_tokens=values["reused_tokens"],
            finish_reason=values["finish_reason"],
            first_token_ms=values["first_token_ms"],
            tokens_per_second=values["tokens_per_second"],
            peak_resident_bytes=values["peak_resident_bytes"],
            timing=Timing(tuple(Stage(**stage) for stage in values["stages"])),
        )


class AnswerStream(Iterator[str]):
    """The text of an answer, piece by piece, as it is computed.

    A loop that ends early cancels the answer; [close] does it at once, as does the end of a `with`.
    """

    def __init__(self, stream: _native.Stream, completed: "Callable[[Answer], None]") -> None:
        self._stream = stream
        self._completed = completed
        self._answer: "Answer | None" = None

    def __iter__(self) -> "AnswerStream":
        return self

    def __next__(self) -> str:
        for text in self._stream:
            return text
        self._end()
        raise StopIteration

    def answer(self) -> Answer:
        """Reads the stream to its end and returns the whole answer."""
        for _ in self:
            pass
        return self._end()

    def close(self) -> None:
        """Cancels the answer, unless it is complete."""
        self._stream.close()

    def __enter__(self) -> "AnswerStream":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _end(self) -> Answer:
        if self._answer is None:
            report = self._stream.report()
            if report is None:
                raise Error("there is no answer: the request failed")
            self._answer = Answer._of(report)
            if self._answer.finish_reason != "canceled":
                self._completed(self._answer)
        return self._answer


class Engine:
    """A loaded model. It may be used by several threads; each answer computes on all cores."""

    def __init__(
        self,
        record: "str | os.PathLike[str]",
        *,
        device: str = "cpu",
        ignore_memory: bool = False,
    ) -> None:
        """Loads the record written by [convert]. `device` is `cpu`, `cuda`, `cuda:N`, `vulkan`, or a
        list such as `cuda,cpu` of which the first one that is available is used. `ignore_memory`
        loads a model, and answers requests, for which memory seems too small.

        Raises:
            RecordError: the record is missing or damaged.
            DeviceError: the device is missing.
            OutOfMemoryError: the model does not fit.
        """
        self.record = os.fspath(record)
        self._native = _native.Engine(record, device, ignore_memory)

    @property
    def device(self) -> str:
        """Device of the model."""
        return self._native.device

    def answer(
        self,
        prompt: str,
        *,
        images: "Sequence[ImageLike]" = (),
        video: "Video | Any | None" = None,
        audio: "Audio | Any | None" = None,
        system: "str | None" = None,
        **settings: "Unpack[Settings]",
    ) -> Answer:
        """Answers one question.

        `images` are paths, bytes, PIL images or arrays; `video` is a path, bytes, a sequence of
        frames or a [Video]; `audio` is a path, bytes, `(samples, sample_rate)` or an [Audio].

        Raises:
            InputError: a medium or a setting cannot be used.
            PromptTooLongError: the request is longer than the context of the model.
            OutOfMemoryError: the request does not fit into memory.
        """
        stream = self.stream(
            prompt, images=images, video=video, audio=audio, system=system, **settings
        )
        return stream.answer()

    def stream(
        self,
        prompt: str,
        *,
        images: "Sequence[ImageLike]" = (),
        video: "Video | Any | None" = None,
        audio: "Audio | Any | None" = None,
        system: "str | None" = None,
        **settings: "Unpack[Settings]",
    ) -> AnswerStream:
        """Answers like [answer], piece by piece."""
        return self.chat(system).stream(
            prompt, images=images, video=video, audio=audio, **settings
        )

    def chat(self, system: "str | None" = None) -> "Chat":
        """Starts a conversation."""
        return Chat(self, system)

    def _profile(self) -> Any:
        return _EngineProfile(self._native)


class Chat:
    """A conversation. The state of earlier turns and encoded media is kept.

    A turn that fails or is canceled is not part of the conversation.
    """

    def __init__(self, engine: Engine, system: "str | None" = None) -> None:
        self._session = engine._native.session()
        self._system: "list[Any]" = [] if system is None else [("system", [system])]
        self._messages: "list[Any]" = list(self._system)

    @property
    def messages(self) -> "list[tuple[str, str]]":
        """The texts of the conversation with their roles."""
        return [
            (role, "".join(part for part in parts if isinstance(part, str)))
            for role, parts in self._messages
        ]

    def clear(self) -> None:
        """Forgets all turns but the system message."""
        self._messages = list(self._system)

    def answer(
        self,
        prompt: str,
        *,
        images: "Sequence[ImageLike]" = (),
        video: "Video | Any | None" = None,
        audio: "Audio | Any | None" = None,
        **settings: "Unpack[Settings]",
    ) -> Answer:
        """Answers the next question, as [Engine.answer] does."""
        stream = self.stream(prompt, images=images, video=video, audio=audio, **settings)
        return stream.answer()

    def stream(
        self,
        prompt: str,
        *,
        images: "Sequence[ImageLike]" = (),
        video: "Video | Any | None" = None,
        audio: "Audio | Any | None" = None,
        **settings: "Unpack[Settings]",
    ) -> AnswerStream:
        """Answers the next question piece by piece. The turn is part of the conversation once the
        stream was read to its end. Another question before that cancels the answer."""
        unknown = sorted(settings.keys() - Settings.__annotations__.keys())
        if unknown:
            known = ", ".join(Settings.__annotations__)
            raise TypeError(f"unknown setting {unknown[0]!r}: expected one of {known}")
        if isinstance(images, (str, bytes, os.PathLike)):
            raise TypeError("images is one image, expected a list of images")
        parts: "list[Any]" = [_media.image(image) for image in images]
        if video is not None:
            parts.append(_media.video(video))
        if audio is not None:
            parts.append(_media.audio(audio))
        question = ("user", [*parts, prompt])
        stream = self._session.start([*self._messages, question], {**_DEFAULTS, **settings})
        turn = partial(self._answered, question)
        return AnswerStream(stream, turn)

    def _answered(self, question: Any, answer: Answer) -> None:
        self._messages += [question, ("assistant", [answer.text])]


class _EngineProfile:
    """Measurements of an engine, for [profiler.ModelProfiler]."""

    def __init__(self, engine: _native.Engine) -> None:
        self._native = _native.Profile(engine)

    def start(self) -> None:
        self._native.start()

    def stop(self) -> None:
        self._native.stop()

    def report(self, parameters: Any) -> "dict[str, Any]":
        return json.loads(self._native.report())

    def layers(self) -> "list[tuple[str, float, float]]":
        from .profiler import _table

        runs = self.report(None)["runs"]
        return _table.layers([module for run in runs for module in run["modules"]])
