"""Records the calls of the modules of a PyTorch model by hooks."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any, Iterator

from ._meters import Meter


class Call:
    """A call of a module."""

    __slots__ = (
        "module", "parent", "start", "end", "rows", "length", "macs", "bytes", "held", "peak",
    )

    def __init__(self, module: int, parent: int | None, start: Any, held: int) -> None:
        self.module = module
        """Index of the module."""
        self.parent = parent
        """Index of the call that made this one."""
        self.start = start
        self.end: Any = None
        self.rows = 0
        """Rows of the output."""
        self.length = 0
        """Tokens of a sequence in the output, of shape [batch, tokens, width]."""
        self.macs = 0
        self.bytes = 0
        self.held = held
        """Bytes in use at the start."""
        self.peak = held
        """Most bytes in use."""


class Module:
    """What is known of a module before it runs."""

    def __init__(self, path: str, module: Any) -> None:
        self.path = path
        self.class_name = type(module).__name__
        parameters = {id(p): p for p in _parameters(module)}
        self.parameters = {key: p.numel() * p.element_size() for key, p in parameters.items()}
        self.leaf = not any(True for _ in module.children())
        self._per_row, self._per_value = _macs(module)

    @property
    def weight_bytes(self) -> int:
        return sum(self.parameters.values())

    def work(self, inputs: Any, output: Any, rows: int) -> tuple[int, int]:
        """Returns multiply-accumulates of products with weights, and bytes moved."""
        values = output.numel()
        moved = values * output.element_size()
        if "Embedding" in self.class_name:
            return 0, 2 * moved
        read = sum(t.numel() * t.element_size() for t in _tensors(inputs))
        return self._per_row * rows + self._per_value * values, self.weight_bytes + read + moved


class Recorder:
    """Hooks on every module of a model."""

    def __init__(self, model: Any, meter: Meter) -> None:
        named = list(model.named_modules())
        self.modules = [Module(path, module) for path, module in named]
        self.calls: list[Call] = []
        self._meter = meter
        self._thread = threading.local()
        self._hooks = []
        for index, (_, module) in enumerate(named):
            self._hooks.append(module.register_forward_pre_hook(partial(self._enter, index)))
            self._hooks.append(module.register_forward_hook(partial(self._leave, index)))

    def finish(self) -> list[Call]:
        """Removes the hooks and returns the calls that ended, with times in seconds."""
        for hook in self._hooks:
            hook.remove()
        calls = self.calls
        ended = [call for call in calls if call.end is not None]
        marks = [mark for call in ended for mark in (call.start, call.end)]
        times = iter(self._meter.seconds(marks))
        for call in ended:
            call.start, call.end = next(times), next(times)
        return _without_unfinished(calls)

    def _stack(self) -> list[int]:
        if not hasattr(self._thread, "stack"):
            self._thread.stack = []
        return self._thread.stack

    def _enter(self, module: int, _module: Any, _inputs: Any) -> None:
        stack = self._stack()
        # A call that raised an exception was left behind with those inside it.
        self._unwind(stack, module)
        used, most = self._meter.memory()
        parent = stack[-1] if stack else None
        if parent is not None:
            self.calls[parent].peak = max(self.calls[parent].peak, most)
        call = Call(module, parent, None, used)
        stack.append(len(self.calls))
        self.calls.append(call)
        # The last thing, so that the hook is not measured.
        call.start = self._meter.now()

    def _leave(self, module: int, _module: Any, inputs: Any, output: Any) -> None:
        end = self._meter.now()
        stack = self._stack()
        call = self._unwind(stack, module)
        if call is None:
            return
        call.end = end
        _, most = self._meter.memory()
        call.peak = max(call.peak, most)
        if stack:
            parent = self.calls[stack[-1]]
            parent.peak = max(parent.peak, call.peak)
        tensor = next(_tensors(output), None)
        if tensor is None or tensor.dim() < 1:
            return
        width = tensor.shape[-1]
        call.rows = tensor.numel() // width if width else 0
        call.length = tensor.shape[1] if tensor.dim() == 3 else 0
        info = self.modules[module]
        if info.leaf:
            call.macs, call.bytes = info.work(inputs, tensor, call.rows)

    def _unwind(self, stack: list[int], module: int) -> Call | None:
        """Ends the call of a module and those inside it; returns None if it does not run."""
        for place, call in enumerate(stack):
            if self.calls[call].module == module:
                del stack[place:]
                return self.calls[call]
        return None


def _without_unfinished(calls: list[Call]) -> list[Call]:
    """Drops calls without an end; their callers take their place as parents."""
    places: dict[int, int] = {}
    kept: list[Call] = []
    for index, call in enumerate(calls):
        parent = call.parent
        while parent is not None and parent not in places:
            parent = calls[parent].parent
        call.parent = None if parent is None else places[parent]
        if call.end is not None:
            places[index] = len(kept)
            kept.append(call)
    return kept


def _parameters(module: Any) -> Iterator[Any]:
    parameters = getattr(module, "parameters", None)
    return iter(parameters()) if parameters is not None else iter(())


def _macs(module: Any) -> tuple[int, int]:
    """Returns multiply-accumulates for each row and for each value of the output."""
    weight = getattr(module, "weight", None)
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return module.in_features * module.out_features, 0
    if hasattr(module, "out_channels") and weight is not None:
        return 0, weight.numel() // module.out_channels
    return 0, 0


def _tensors(value: Any) -> Iterator[Any]:
    """Yields the tensors in the inputs or the output of a module."""
    if hasattr(value, "element_size") and hasattr(value, "numel"):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
