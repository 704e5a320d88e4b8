"""Reports in the schema of `edge-lmm profile` from the calls of modules."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any, Mapping, Sequence

from ._names import MODEL, TEXT, Name, full_name
from ._recorder import Call, Module

Key = "tuple[str, str]"
"""Stage and path within it; the path of a stage is empty."""

_SAMPLES = 1000


@dataclass
class Cost:
    """Calls of a module, or of a stage, in one run."""

    parent: Any = None
    ms: float = 0.0
    own_ms: float = 0.0
    calls: int = 0
    tokens: int = 0
    macs: int = 0
    bytes: int = 0
    peak: int = 0
    held: int = 0
    parameters: dict[int, int] = field(default_factory=dict)
    class_name: str = ""

    def add_peak(self, call: Call) -> None:
        """Keeps the call that needed the most memory."""
        if self.calls == 0 or call.peak - call.held > self.peak:
            self.peak, self.held = call.peak - call.held, call.held
        self.calls += 1


@dataclass
class Run:
    """What was measured between a start and a stop."""

    costs: dict[Any, Cost]
    outside_ms: float
    first_token_ms: float
    prompt: int
    steps: int
    visual: int
    media: int
    memory: list[tuple[float, int]]

    @property
    def total_ms(self) -> float:
        return sum(cost.ms for (_, path), cost in self.costs.items() if not path)

    @property
    def tokens_per_second(self) -> float | None:
        decode = self.costs.get(("decode", ""))
        return self.steps / decode.ms * 1e3 if decode and decode.ms > 0 else None


class _Pass:
    """A run of the language model over the tokens of a prompt, or over one token."""

    def __init__(self) -> None:
        self.length = 0
        self.stage = "prefill"


def run(
    modules: Sequence[Module], names: Mapping[str, Name], calls: Sequence[Call], outside: float
) -> Run:
    """Adds up the calls of a run, which took `outside` seconds."""
    placed = [names[modules[call.module].path] for call in calls]
    stages, passes = _stages(calls, placed)
    costs = _costs(modules, calls, placed, stages)
    start = min((call.start for call in calls), default=0.0)
    tops = [index for index, call in enumerate(calls) if _is_top(calls, stages, index)]
    firsts = [
        call.end for call, of in zip(calls, passes) if of is not None and of.stage == "prefill"
    ]
    end = max((call.end for call in calls), default=0.0)
    prefills = {id(p): p.length for p in passes if p is not None and p.stage == "prefill"}
    return Run(
        costs=costs,
        outside_ms=outside * 1e3,
        # The decoder ends the pass over the prompt with the scores of the first token.
        first_token_ms=((max(firsts) if firsts else end) - start) * 1e3,
        prompt=sum(prefills.values()),
        steps=len({id(p) for p in passes if p is not None and p.stage == "decode"}),
        visual=sum(calls[i].rows for i in tops if stages[i] == "projector"),
        media=sum(stages[i] in ("vision", "audio") for i in tops),
        memory=_memory(calls, tops, start),
    )


def _stages(
    calls: Sequence[Call], placed: Sequence[Name]
) -> tuple[list[str], list[_Pass | None]]:
    """Returns the stage of every call, and the pass of the language model that it is part of."""
    kinds: list[str] = []
    passes: list[_Pass | None] = []
    every: list[_Pass] = []
    for call, name in zip(calls, placed):
        of = None if call.parent is None else passes[call.parent]
        kind = name.stage or (MODEL if call.parent is None else kinds[call.parent])
        if kind == TEXT:
            if of is None:
                of = _Pass()
                every.append(of)
            of.length = max(of.length, call.length)
        kinds.append(kind)
        passes.append(of)
    for place, of in enumerate(every):
        of.stage = "prefill" if of.length > 1 or place == 0 else "decode"
    stages = [
        of.stage if kind == TEXT and of is not None else kind for kind, of in zip(kinds, passes)
    ]
    return stages, passes


def _is_top(calls: Sequence[Call], stages: Sequence[str], index: int) -> bool:
    parent = calls[index].parent
    return parent is None or stages[parent] != stages[index]


def _costs(
    modules: Sequence[Module],
    calls: Sequence[Call],
    placed: Sequence[Name],
    stages: Sequence[str],
) -> dict[Any, Cost]:
    inside = [0.0] * len(calls)
    foreign = [0.0] * len(calls)
    work = [(call.macs, call.bytes) for call in calls]
    for index in range(len(calls) - 1, -1, -1):
        call, parent = calls[index], calls[index].parent
        if parent is None:
            continue
        time = call.end - call.start
        inside[parent] += time
        if stages[parent] == stages[index]:
            foreign[parent] += foreign[index]
            (macs, moved), (more_macs, more_moved) = work[parent], work[index]
            work[parent] = macs + more_macs, moved + more_moved
        else:
            foreign[parent] += time
    costs: dict[Any, Cost] = {}
    for index, (call, name, stage) in enumerate(zip(calls, placed, stages)):
        time = (call.end - call.start) * 1e3
        own = max(time - inside[index] * 1e3, 0.0)
        whole = max(time - foreign[index] * 1e3, 0.0)
        module = modules[call.module]
        top = costs.setdefault((stage, ""), Cost())
        top.parameters.update(module.parameters)
        if _is_top(calls, stages, index):
            top.add_peak(call)
            top.ms += whole
            top.tokens += call.rows
            top.macs += work[index][0]
            top.bytes += work[index][1]
        if not name.path:
            top.own_ms += own
            continue
        cost = costs.get((stage, name.path))
        if cost is None:
            parent = _parent(calls, placed, stages, index)
            cost = costs[stage, name.path] = Cost(parent, class_name=module.class_name)
            cost.parameters = module.parameters
        cost.add_peak(call)
        cost.ms += whole
        cost.own_ms += own
        cost.tokens += call.rows
        cost.macs += work[index][0]
        cost.bytes += work[index][1]
    return costs


def _parent(
    calls: Sequence[Call], placed: Sequence[Name], stages: Sequence[str], index: int
) -> Any:
    """Returns the key of the nearest caller in the stage that is not the stage itself."""
    stage, parent = stages[index], calls[index].parent
    while parent is not None and stages[parent] == stage:
        if placed[parent].path:
            return stage, placed[parent].path
        parent = calls[parent].parent
    return stage, ""


def _memory(calls: Sequence[Call], tops: Sequence[int], start: float) -> list[tuple[float, int]]:
    """Returns milliseconds and bytes at the starts and the peaks of stages."""
    samples = [((calls[i].start - start) * 1e3, calls[i].held) for i in tops]
    samples += [((calls[i].end - start) * 1e3, calls[i].peak) for i in tops]
    samples.sort()
    step = math.ceil(len(samples) / _SAMPLES) or 1
    return samples[::step]


def profile_run(runs: Sequence[Run], parameters: Mapping[str, Any], resident: int | None) -> Any:
    """Returns the entry `runs` of a report."""
    last = runs[-1]
    speeds = [one.tokens_per_second for one in runs]
    generated = last.steps + 1 if last.prompt else 0
    return {
        "parameters": {
            "image_size": None,
            "frames": None,
            "audio_seconds": None,
            "turn": 1,
            "prompt": "",
            "media": [],
            "max_tokens": generated,
            "reduce": "",
            **parameters,
        },
        "warmup": 0,
        "cold": None,
        "total_ms": summary([one.total_ms for one in runs]),
        "outside_ms": summary([one.outside_ms for one in runs]),
        "first_token_ms": summary([one.first_token_ms for one in runs]),
        "tokens_per_second": None if None in speeds else summary(speeds),
        "modules": modules(runs),
        "tokens": {
            "prompt": last.prompt,
            "reused": 0,
            "computed": last.prompt,
            "generated": generated,
            "visual_before": last.visual,
            "visual": last.visual,
            "reductions": [],
            "useful_frames": 0,
            "padded_frames": 0,
            "encoder_hits": 0,
            "encoder_misses": last.media,
        },
        "memory": [{"ms": ms, "bytes": used} for ms, used in last.memory],
        "peak_resident_bytes": resident,
        "energy_joules": None,
        "answer": "",
        "finish_reason": "length",
    }


def modules(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Returns stages and modules, those of the last run with the times of all runs."""
    costs = runs[-1].costs
    # A stage first, then its modules in the order of their first calls: callers come first.
    stages = dict.fromkeys(stage for stage, _ in costs)
    paths = {stage: [path for other, path in costs if other == stage] for stage in stages}
    order = [(stage, path) for stage in stages for path in sorted(paths[stage], key=bool)]
    places = {key: place for place, key in enumerate(order)}
    return [_module_cost(key, runs, places) for key in order]


def _module_cost(key: Any, runs: Sequence[Run], places: Mapping[Any, int]) -> dict[str, Any]:
    last = runs[-1].costs[key]
    each = [one.costs.get(key, Cost()) for one in runs]
    ms = summary([cost.ms for cost in each])
    seconds = ms["median"] / 1e3
    own = statistics.median(cost.own_ms for cost in each)
    return {
        "name": full_name(*key),
        "stage": key[0],
        "parent": None if last.parent is None else places[last.parent],
        "ms": ms,
        "own_ms": own,
        "child_ms": statistics.median(cost.ms - cost.own_ms for cost in each),
        "hidden_ms": 0.0,
        "calls": last.calls,
        "peak_bytes": last.peak,
        "held_bytes": last.held,
        "weight_bytes": sum(last.parameters.values()),
        "weight_resident_bytes": None,
        "tokens": last.tokens,
        "macs": last.macs,
        "bytes": last.bytes,
        "launches": 0,
        "gflops": 2e-9 * last.macs / seconds if last.macs and seconds > 0 else None,
        "gbs": 1e-9 * last.bytes / seconds if last.bytes and seconds > 0 else None,
        "bound": "neither",
        "roof_share": None,
        "wait_ms": 0.0,
        "energy_joules": None,
    }


def summary(values: Sequence[Any]) -> dict[str, Any]:
    """Returns the statistics of repeated measurements."""
    ordered = sorted(values)
    place = 0.95 * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return {
        "count": len(ordered),
        "min": ordered[0],
        "median": statistics.median(ordered),
        "mean": statistics.fmean(ordered),
        "p95": ordered[below] + (place - below) * (ordered[above] - ordered[below]),
        "max": ordered[-1],
        "std_dev": statistics.stdev(ordered) if len(ordered) > 1 else 0.0,
    }
