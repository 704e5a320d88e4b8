"""The profiler with a tree of modules that needs no PyTorch."""

import json
import subprocess
import sys

import pytest
from conftest import PACKAGE
from edge_lmm.profiler import ModelProfiler, _meters, _names, _table
from modules import Linear, Model, Module, Tensor, clock


@pytest.fixture(autouse=True)
def virtual_time(monkeypatch):
    monkeypatch.setattr("time.perf_counter", clock)


@pytest.fixture
def profiler():
    model = Model()
    profiler = ModelProfiler(model, prompt="what?", media=["cat.png"])
    profiler.start()
    model.generate(steps=3)
    profiler.stop()
    return profiler


def modules(profiler):
    return profiler.report()["runs"][0]["modules"]


def named(profiler, stage, name):
    return next(m for m in modules(profiler) if (m["stage"], m["name"]) == (stage, name))


def test_five_lines_print_the_table(capsys):
    model = Model()
    profiler = ModelProfiler(model)
    profiler.start()
    model.generate(steps=3)
    profiler.stop()
    profiler.print_summary()
    lines = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == [
        "Layer Type",
        "Time (ms)",
        "% Total",
    ]
    # The projections of the MLP take longest.
    assert lines[2].startswith("| MLP <- bottleneck ")
    assert sum("bottleneck" in line for line in lines) == 1
    assert lines[-1].split("|")[1].strip() == "Total"
    assert lines[-1].split("|")[3].strip() == "100.0"
    assert len({len(line) for line in lines}) == 1


def test_names_are_those_of_this_runtime(profiler):
    found = {(m["stage"], m["name"]) for m in modules(profiler)}
    for module in [
        ("vision", "vision.blocks.0.attention.qkv"),
        ("projector", "projector.norm"),
        ("prefill", "prefill.embedding"),
        ("prefill", "text.layers.1.attention.norm"),
        ("prefill", "text.layers.0.attention.out"),
        ("decode", "text.layers.0.mlp"),
        ("decode", "text.head"),
    ]:
        assert module in found


def test_stages_interrupt_each_other_and_add_up(profiler):
    run = profiler.report()["runs"][0]
    stages = [m for m in run["modules"] if m["parent"] is None]
    assert {m["name"] for m in stages} == {"vision", "projector", "prefill", "decode"}
    total = sum(m["ms"]["median"] for m in stages)
    assert total == pytest.approx(run["total_ms"]["median"])
    assert total == pytest.approx(sum(m["own_ms"] for m in run["modules"]))
    assert total == pytest.approx(run["outside_ms"]["median"])
    # 1 ms for each module, 2 ms for the projection.
    assert named(profiler, "projector", "projector")["ms"]["median"] == pytest.approx(4.0)
    assert named(profiler, "vision", "vision")["ms"]["median"] == pytest.approx(5.0)
    assert named(profiler, "vision", "vision.blocks.0")["own_ms"] == pytest.approx(1.0)


def test_parents_enclose_their_children(profiler):
    all_modules = modules(profiler)
    for place, module in enumerate(all_modules):
        if module["parent"] is None:
            assert module["name"] == module["stage"]
            continue
        assert module["parent"] < place
        parent = all_modules[module["parent"]]
        assert parent["stage"] == module["stage"]
        assert module["ms"]["median"] <= parent["ms"]["median"] + 1e-6
        assert module["own_ms"] + module["child_ms"] == pytest.approx(module["ms"]["median"])


def test_tokens_calls_and_work_are_counted(profiler):
    run = profiler.report()["runs"][0]
    counts = run["tokens"]
    assert (counts["prompt"], counts["generated"], counts["visual"]) == (6, 4, 4)
    prefill = named(profiler, "prefill", "text.layers.0.attention.q_proj")
    assert (prefill["calls"], prefill["tokens"], prefill["macs"]) == (1, 6, 6 * 8 * 8)
    decode = named(profiler, "decode", "text.layers.0.attention.q_proj")
    assert (decode["calls"], decode["tokens"], decode["macs"]) == (3, 3, 3 * 8 * 8)
    assert decode["weight_bytes"] == 8 * 8 * 4
    # Weights, inputs and outputs, three times.
    assert decode["bytes"] == 3 * (8 * 8 * 4 + 8 * 4 + 8 * 4)
    inside = named(profiler, "decode", "text.layers.0.attention")
    assert inside["macs"] == 2 * decode["macs"]
    assert named(profiler, "decode", "decode")["macs"] == 3 * (2 * (2 * 64 + 128) + 256)
    assert run["tokens_per_second"]["median"] > 0


def test_report_has_the_schema(profiler, schema, tmp_path):
    schema.validate(profiler.report())
    profiler.to_json(tmp_path / "profile.json")
    assert json.loads((tmp_path / "profile.json").read_text()) == profiler.report()
    parameters = profiler.report()["runs"][0]["parameters"]
    assert (parameters["prompt"], parameters["media"]) == ("what?", ["cat.png"])


def test_runs_are_repeats():
    model = Model()
    mlp = dict(model.named_modules())["model.layers.0.mlp"]
    profiler = ModelProfiler(model)
    for _ in range(3):
        with profiler:
            model.generate(steps=1)
            mlp.seconds += 0.001
    (run,) = profiler.report()["runs"]
    assert run["total_ms"]["count"] == 3
    mlp = next(m for m in run["modules"] if m["name"] == "text.layers.0.mlp")
    assert mlp["ms"]["count"] == 3 and mlp["calls"] == 1
    # The stage `prefill` of the last run: 5, 6 and 7 ms.
    assert [mlp["ms"][name] for name in ("min", "median", "max")] == pytest.approx([5, 6, 7])
    assert mlp["ms"]["std_dev"] == pytest.approx(1.0)
    assert mlp["ms"]["p95"] == pytest.approx(6.9)


def test_rows_are_flat(profiler):
    rows = list(profiler.rows())
    assert len(rows) == len(modules(profiler))
    assert all(not isinstance(value, (dict, list)) for row in rows for value in row.values())
    assert rows[0]["run"] == 0 and rows[0]["ms"] == rows[0]["ms_median"]


def test_hooks_are_removed():
    model = Model()
    profiler = ModelProfiler(model)
    with profiler:
        model.generate(steps=0)
        assert model.hooks() == 2
    assert all(module.hooks() == 0 for _, module in model.named_modules())


def test_a_call_that_fails_leaves_no_trace():
    class Failing(Module):
        fail = True

        def forward(self, x):
            if self.fail:
                raise ValueError("out of memory")
            return super().forward(x)

    inner = Failing()
    model = Module({"first": Module({"inner": inner}), "second": Linear(8, 8)})
    profiler = ModelProfiler(model)
    profiler.start()
    with pytest.raises(ValueError):
        model(Tensor(1, 8))
    inner.fail = False
    model(Tensor(1, 8))
    profiler.stop()
    calls = {m["name"]: m["calls"] for m in modules(profiler)}
    assert calls == {"model": 1, "model.first": 1, "model.first.inner": 1, "model.second": 1}


def test_misuse_is_an_error():
    with pytest.raises(TypeError, match="cannot profile int: expected an edge_lmm.Engine"):
        ModelProfiler(3)
    profiler = ModelProfiler(Model())
    with pytest.raises(RuntimeError, match="call start"):
        profiler.stop()
    with pytest.raises(RuntimeError, match="nothing was measured"):
        profiler.report()
    profiler.start()
    with pytest.raises(RuntimeError, match="call stop"):
        profiler.start()
    with pytest.raises(RuntimeError, match="no module of the model was called"):
        profiler.stop()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("vision_tower.vision_model.encoder.layers.3.self_attn.out_proj",
         ("vision", "layers.3.attention.out")),
        ("vision_tower.vision_model.encoder.layers.3.layer_norm2", ("vision", "layers.3.mlp.norm")),
        ("multi_modal_projector.linear_1", ("projector", "linear_1")),
        ("language_model.model.layers.0.mlp.up_proj", ("text", "layers.0.mlp.up_proj")),
        ("language_model.model.decoder.layers.0.fc1", ("text", "layers.0.fc1")),
        ("language_model.lm_head", ("text", "head")),
        ("model.language_model.layers.0.self_attn", ("text", "layers.0.attention")),
        ("qformer.encoder.layer.0", ("projector", "qformer.encoder.layer.0")),
        ("audio_tower.layers.1.self_attn_layer_norm", ("audio", "layers.1.attention.norm")),
        ("model.vision_embed_tokens.img_processor.vision_model.encoder.layers.0.mlp",
         ("vision", "layers.0.mlp")),
        ("model.vision_embed_tokens.img_projection.0", ("projector", "0")),
        ("model.connector.modality_projection.proj", ("projector", "modality_projection.proj")),
    ],
)
def test_modules_of_the_supported_families(path, name):
    found = _names.names(["", "embed_tokens", path])[path]
    assert (found.stage, found.path) == name


def test_an_unknown_model_is_one_stage():
    names = _names.names(["", "encoder", "encoder.0"])
    assert names["encoder.0"] == _names.Name("model", "encoder.0")


def test_two_modules_never_share_a_name():
    names = _names.names(["lm_head", "layers.0.self_attn", "layers.0.attn"])
    assert len({name.path for name in names.values()}) == 3


def test_types_of_layers():
    def kind(name, class_name=None):
        return _table.layer_type({"name": name, "stage": "decode", "parent": 0}, class_name)

    assert kind("text.layers.0.attention") == "Attention, other"
    assert kind("text.layers.0.attention", "Qwen2Attention") == "Attention scores and values"
    assert kind("text.layers.0.attention.q_proj", "Linear") == "Attention projections"
    assert kind("text.layers.0.attention.q_norm", "RMSNorm") == "Norm"
    assert kind("model.2", "Conv2d") == "Convolution"
    assert kind("text.layers.0", "DecoderLayer") == "Other (decode)"


class Event:
    """A CUDA event that knows when it was recorded."""

    def __init__(self, clock):
        self._clock = clock

    def record(self, stream):
        self.at = next(self._clock)

    def elapsed_time(self, other):
        return other.at - self.at


class Cuda:
    """The functions of `torch.cuda` that the profiler calls."""

    def __init__(self):
        self._clock = iter(range(0, 10_000, 5))
        self.used = self.most = 0
        self.synchronized = False

    def Event(self, enable_timing):
        assert enable_timing
        return Event(self._clock)

    def current_stream(self, device):
        return None

    def memory_allocated(self, device):
        return self.used

    def max_memory_allocated(self, device):
        return self.most

    def reset_peak_memory_stats(self, device):
        self.most = self.used

    def synchronize(self, device):
        self.synchronized = True


def test_cuda_events_and_peaks_are_those_of_each_module(monkeypatch):
    cuda = Cuda()

    class Allocating(Module):
        def __init__(self, peak, kept):
            super().__init__()
            self._peak, self._kept = peak, kept

        def forward(self, x):
            cuda.most = max(cuda.most, cuda.used + self._peak)
            cuda.used += self._kept
            return super().forward(x)

    torch = type("torch", (), {"cuda": cuda})
    model = Module({"a": Allocating(100, 30), "b": Allocating(50, 0)})
    monkeypatch.setattr(
        "edge_lmm.profiler._torch.TorchProfile._meter",
        lambda self: _meters.CudaMeter(torch, "cuda:0"),
    )
    profiler = ModelProfiler(model)
    with profiler:
        model(Tensor(1, 8))
    assert cuda.synchronized
    found = {m["name"]: m for m in modules(profiler)}
    assert found["model.a"]["peak_bytes"] == 100 and found["model.a"]["held_bytes"] == 0
    assert found["model.b"]["peak_bytes"] == 50 and found["model.b"]["held_bytes"] == 30
    assert found["model"]["peak_bytes"] == 100
    # Events are 5 ms apart: start, a, a, b, b, end.
    assert found["model"]["ms"]["median"] == pytest.approx(25)
    assert found["model"]["own_ms"] == pytest.approx(15)


def test_torch_is_not_imported():
    code = (
        "import sys, types; package = types.ModuleType('edge_lmm');"
        f"package.__path__ = [{str(PACKAGE)!r}]; sys.modules['edge_lmm'] = package;"
        f"sys.path.insert(0, {str(PACKAGE.parents[1] / 'tests')!r});"
        "from modules import Model; from edge_lmm.profiler import ModelProfiler;"
        "model = Model(); profiler = ModelProfiler(model);"
        "profiler.start(); model.generate(1); profiler.stop(); profiler.summary();"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
