"""The engine, the commands and the profiler of an installed package."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import edge_lmm
import pytest
from conftest import ROOT
from edge_lmm import _commands
from edge_lmm.profiler import ModelProfiler, compare

RECORD = ROOT / "models/demo/qwen2vl-tiny.bpk"
IMAGE = ROOT / "models/demo/shapes.png"
COUNT = "how many shapes are there?"
LIST = "list the shapes."
SCRIPTS = Path(sys.executable).parent


def command(name, *arguments):
    """Runs a command: the script of an installed wheel, or its function."""
    script = SCRIPTS / name
    start = [script] if script.exists() else _commands.program(name)
    return subprocess.run([*start, *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def engine():
    return edge_lmm.Engine(RECORD)


def test_an_image_is_a_path_bytes_a_pil_image_or_an_array(engine):
    pil = pytest.importorskip("PIL.Image")
    numpy = pytest.importorskip("numpy")
    image = pil.open(IMAGE)
    array = numpy.asarray(image.convert("RGB"))
    # Neither contiguous nor writable.
    mirrored = array[:, ::-1][:, ::-1]
    answers = [
        engine.answer(COUNT, images=[source]).text
        for source in [IMAGE, str(IMAGE), IMAGE.read_bytes(), image, array, mirrored]
    ]
    assert answers == ["two"] * 6
    gray = numpy.zeros((56, 56), numpy.uint8)
    same = pil.fromarray(gray)
    one, other = (engine.answer(LIST, images=[source]) for source in [gray, same])
    assert one.text == other.text and one.visual_tokens == other.visual_tokens > 0


def test_a_stream_is_the_answer(engine):
    stream = engine.stream(LIST, images=[IMAGE])
    pieces = list(stream)
    answer = stream.answer()
    assert len(pieces) > 1
    assert "".join(pieces) == answer.text == str(answer)
    assert answer.finish_reason == "stop"
    assert len(answer.tokens) >= len(pieces)


def test_settings_are_those_of_the_command_line(engine):
    answer = engine.answer(LIST, images=[IMAGE], max_tokens=2)
    assert len(answer.tokens) == 2 and answer.finish_reason == "length"
    whole = engine.answer(LIST, images=[IMAGE]).text
    first = whole.split()[0]
    assert engine.answer(LIST, images=[IMAGE], stop=[whole.split()[1]]).text.strip() == first
    sampled = [
        engine.answer(LIST, images=[IMAGE], temperature=5.0, seed=7, max_tokens=8).tokens
        for _ in range(2)
    ]
    assert sampled[0] == sampled[1]
    with pytest.raises(edge_lmm.InputError, match="temperature is -1, expected 0 or more"):
        engine.answer(LIST, temperature=-1.0)
    with pytest.raises(edge_lmm.InputError, match="image_tokens"):
        engine.answer(LIST, image_tokens=(8, 4))
    with pytest.raises(edge_lmm.InputError, match="nonsense"):
        engine.answer(LIST, reduce="nonsense")
    with pytest.raises(edge_lmm.InputError, match="speculate is \"on\", expected off, auto or"):
        engine.answer(LIST, speculate="on")
    with pytest.raises(TypeError, match="unknown setting 'max_token': expected one of max_tokens"):
        engine.answer(LIST, max_token=3)
    with pytest.raises(TypeError, match="expected a list of images"):
        engine.answer(LIST, images=IMAGE)


def test_a_chat_keeps_its_turns(engine):
    chat = engine.chat(system="answer briefly.")
    first = chat.answer(COUNT, images=[IMAGE])
    second = chat.answer(LIST)
    assert second.visual_tokens == first.visual_tokens > 0
    assert second.reused_tokens > first.visual_tokens
    assert chat.messages == [
        ("system", "answer briefly."),
        ("user", COUNT),
        ("assistant", first.text),
        ("user", LIST),
        ("assistant", second.text),
    ]
    # A turn that fails or is canceled is not part of the conversation.
    with pytest.raises(edge_lmm.PromptTooLongError):
        chat.answer("shape " * 100_000)
    stream = chat.stream(LIST)
    next(stream)
    stream.close()
    with chat.stream(LIST):
        pass
    assert len(chat.messages) == 5
    chat.clear()
    assert chat.messages == [("system", "answer briefly.")]


def test_the_next_question_cancels_an_unfinished_answer(engine):
    chat = engine.chat()
    stream = chat.stream(LIST, images=[IMAGE], max_tokens=10**9, ignore_eos=True)
    next(stream)
    assert chat.answer(COUNT, images=[IMAGE]).text == "two"
    assert stream.answer().finish_reason == "canceled"
    assert [role for role, _ in chat.messages] == ["user", "assistant"]
    # The loop is left, nobody reads on.
    for _ in chat.stream(LIST, max_tokens=10**9, ignore_eos=True):
        break
    assert chat.answer(COUNT).text


def test_videos_are_files_or_frames(engine, tmp_path):
    numpy = pytest.importorskip("numpy")
    frames = [numpy.full((56, 56, 3), 60 * n, numpy.uint8) for n in range(4)]
    given = engine.answer(LIST, video=edge_lmm.Video(frames, fps=2.0))
    y4m = tmp_path / "video.y4m"
    with open(y4m, "wb") as file:
        file.write(b"YUV4MPEG2 W56 H56 F2:1 C444\n")
        for frame in frames:
            file.write(b"FRAME\n" + frame[..., 0].tobytes() + bytes([128]) * (2 * 56 * 56))
    whole = engine.answer(LIST, video=y4m)
    half = engine.answer(LIST, video=edge_lmm.Video(y4m, frames=2))
    assert whole.visual_tokens == given.visual_tokens == 2 * half.visual_tokens
    with pytest.raises(edge_lmm.InputError, match="not both"):
        engine.answer(LIST, video=edge_lmm.Video(y4m, frames=2, fps=1.0))
    with pytest.raises(edge_lmm.InputError, match="no frames"):
        engine.answer(LIST, video=[])


@pytest.fixture(scope="module")
def listener(tmp_path_factory):
    record = tmp_path_factory.mktemp("audio") / "audio.bpk"
    edge_lmm.convert(ROOT / "models/tests/data/qwen2audio-tiny", record, method="nearest")
    return edge_lmm.Engine(record)


def test_sounds_are_files_or_samples(listener):
    import wave

    numpy = pytest.importorskip("numpy")
    file = next((ROOT / "models/tests/data/questions/audio").glob("*.wav"))
    with wave.open(str(file)) as sound:
        rate = sound.getframerate()
        assert (sound.getnchannels(), sound.getsampwidth()) == (1, 2)
        samples = numpy.frombuffer(sound.readframes(sound.getnframes()), numpy.int16)
    floats = samples.astype(numpy.float32) / 32768
    sources = [
        file,
        file.read_bytes(),
        (samples, rate),
        edge_lmm.Audio(floats, rate),
        (floats.astype(numpy.float64), rate),
        (floats.tolist(), rate),
    ]
    answers = [listener.answer("what is heard?", audio=source) for source in sources]
    assert len({answer.text for answer in answers}) == 1
    assert all(answer.visual_tokens == answers[0].visual_tokens > 0 for answer in answers)
    with pytest.raises(edge_lmm.InputError, match="samples need their rate"):
        listener.answer("what?", audio=floats)
    with pytest.raises(edge_lmm.InputError, match="expected one channel"):
        listener.answer("what?", audio=(floats.reshape(1, -1), rate))


def test_unsuitable_media_are_errors(engine, tmp_path):
    numpy = pytest.importorskip("numpy")
    with pytest.raises(edge_lmm.InputError, match="missing.png"):
        engine.answer(LIST, images=[tmp_path / "missing.png"])
    with pytest.raises(edge_lmm.InputError, match="image"):
        engine.answer(LIST, images=[b"no image"])
    with pytest.raises(edge_lmm.InputError, match="expected 8-bit unsigned"):
        engine.answer(LIST, images=[numpy.zeros((4, 4, 3), numpy.float32)])
    with pytest.raises(edge_lmm.InputError, match=r"shape \[3, 4, 4\]"):
        engine.answer(LIST, images=[numpy.zeros((3, 4, 4), numpy.uint8)])
    with pytest.raises(edge_lmm.InputError, match="cannot use float: an image is a path"):
        engine.answer(LIST, images=[1.5])
    assert issubclass(edge_lmm.InputError, ValueError)


def test_errors_have_the_texts_of_the_command(tmp_path):
    missing = tmp_path / "missing.bpk"
    with pytest.raises(edge_lmm.RecordError) as error:
        edge_lmm.Engine(missing)
    run = command("edge-lmm", "run", missing, "--prompt", "x")
    assert run.returncode == 1
    assert run.stderr.strip() == f"error: {error.value}"
    with pytest.raises(edge_lmm.DeviceError, match="built without CUDA"):
        edge_lmm.Engine(RECORD, device="cuda")
    with pytest.raises(edge_lmm.InputError, match="unknown device .gpu.: expected cpu, cuda"):
        edge_lmm.Engine(RECORD, device="gpu")


def test_timings_are_rows(engine):
    answer = engine.answer(COUNT, images=[IMAGE], timing=True)
    timing = answer.timing
    prefill = timing.stage("prefill")
    assert prefill.is_top and prefill.ms > 0 and prefill.calls > 0 and prefill.peak_bytes > 0
    assert timing.total_ms == pytest.approx(
        sum(stage.ms - stage.hidden_ms for stage in timing.stages if stage.is_top)
    )
    rows = timing.rows()
    assert len(rows) == len(timing.stages)
    assert set(rows[0]) == {"name", "stage", "ms", "calls", "peak_bytes", "launches", "hidden_ms"}
    assert engine.answer(COUNT).timing.stages == ()


def test_drafts_save_steps_and_keep_the_answer(engine):
    settings = {"max_tokens": 60, "ignore_eos": True, "timing": True}
    alone, drafted = (
        engine.answer(LIST * 3, speculate=speculate, **settings) for speculate in ["off", "4"]
    )
    assert drafted.tokens == alone.tokens == engine.answer(LIST * 3, **settings).tokens
    assert drafted.timing.stage("decode").calls <= alone.timing.stage("decode").calls == 59


def test_other_threads_run_meanwhile(engine):
    ticks = []
    done = threading.Event()

    def count():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    counter = threading.Thread(target=count)
    counter.start()
    started = time.perf_counter()
    engine.answer(LIST, images=[IMAGE], max_tokens=400, ignore_eos=True)
    ended = time.perf_counter()
    done.set()
    counter.join()
    during = [tick for tick in ticks if started < tick < ended]
    assert len(during) > 10


def test_ctrl_c_cancels_an_answer():
    code = (
        "import edge_lmm, signal\n"
        # A program that a shell starts in the background ignores the signal.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"engine = edge_lmm.Engine({str(RECORD)!r})\n"
        "chat = engine.chat()\n"
        "try:\n"
        f"    for text in chat.stream({LIST!r}, max_tokens=10**9, ignore_eos=True):\n"
        "        print('.', end='', flush=True)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', chat.messages, flush=True)\n"
        f"    chat.answer({COUNT!r})\n"
        "    print('answered', flush=True)\n"
    )
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert program.stdout.read(1) == "."
    program.send_signal(signal.SIGINT)
    output, _ = program.communicate(timeout=60)
    assert output.endswith("interrupted []\nanswered\n"), output[-200:]
    assert program.returncode == 0


def test_commands_are_functions_of_the_module():
    for name in ["edge-lmm", "edge-lmm-convert"]:
        done = command(name, "--version")
        assert done.stdout.startswith(f"{name} ") and done.returncode == 0
        done = command(name, "--nonsense")
        assert done.returncode == 2 and "--nonsense" in done.stderr
    run = command("edge-lmm", "run", RECORD, "--image", IMAGE, "--prompt", COUNT)
    assert run.stdout.strip() == "two"
    module = [sys.executable, "-m", "edge_lmm", "--version"]
    assert subprocess.check_output(module, text=True).startswith("edge-lmm ")


def test_a_signal_ends_a_command():
    chat = subprocess.Popen(
        [sys.executable, "-m", "edge_lmm", "chat", RECORD, "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    chat.stdin.write("what is a circle?\n")
    chat.stdin.flush()
    assert chat.stdout.readline(), "the command runs"
    chat.send_signal(signal.SIGTERM)
    assert chat.wait(60) == -signal.SIGTERM
    chat.communicate()


def test_a_bundle_needs_a_program(tmp_path):
    bundle = tmp_path / "bundle"
    done = command("edge-lmm", "bundle", "--model", RECORD, "-o", bundle)
    assert done.returncode == 1 and "--program" in done.stderr
    assert not bundle.exists()


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    source = ROOT / "models/tests/data/qwen2vl-tiny"
    report = edge_lmm.convert(source, folder / "f32.bpk", text="f32", vision="f32")
    edge_lmm.convert(source, folder / "q4.bpk", method="nearest")
    return folder, report


def test_a_checkpoint_is_converted(records):
    folder, report = records
    assert report["file_bytes"] == (folder / "f32.bpk").stat().st_size
    description = edge_lmm.inspect(folder / "q4.bpk", verify=True, target="raspberry-pi-5")
    assert description["model_type"] == "qwen2_vl" and description["verified"]
    assert description["target"] is not None
    with pytest.raises(edge_lmm.Error, match="exists"):
        edge_lmm.convert(ROOT / "models/tests/data/qwen2vl-tiny", folder / "q4.bpk", method="nearest")
    with pytest.raises(edge_lmm.Error, match="cannot|no such|not"):
        edge_lmm.inspect(folder / "missing.bpk")


def write_adapter(folder, factor):
    """Writes a LoRA adapter of one layer, whose update is multiplied with `factor`."""
    numpy = pytest.importorskip("numpy")
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    low = numpy.linspace(-1, 1, 2 * 128, dtype=numpy.float32).reshape(2, 128)
    high = numpy.linspace(-0.5, 0.5, 128 * 2, dtype=numpy.float32).reshape(128, 2) * factor
    header, data = {}, b""
    for name, values in [("lora_A", low), ("lora_B", high.astype(numpy.float32))]:
        offsets = [len(data), len(data) + values.nbytes]
        header[f"{layer}.{name}.weight"] = {
            "dtype": "F32",
            "shape": list(values.shape),
            "data_offsets": offsets,
        }
        data += values.tobytes()
    text = json.dumps(header).encode()
    folder.mkdir()
    weights = len(text).to_bytes(8, "little") + text + data
    (folder / "adapter_model.safetensors").write_bytes(weights)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_adapters_are_merged(records, tmp_path):
    folder, _ = records
    source = ROOT / "models/tests/data/qwen2vl-tiny"
    write_adapter(tmp_path / "whole", 1.0)
    # A name that looks like one with a factor.
    write_adapter(tmp_path / "half=0.25", 0.5)

    def converted(adapters):
        record = tmp_path / "record.bpk"
        options = {"text": "f32", "vision": "f32", "adapters": adapters, "force": True}
        edge_lmm.convert(source, record, **options)
        return weights(record)

    def weights(record):
        # What comes before the weights names the files of the adapter.
        size = sum(tensor["bytes"] for tensor in edge_lmm.inspect(record)["tensors"])
        return record.read_bytes()[-size:]

    def equal(a, b):
        # The hash of what comes before them, in 8 bytes, is stored like a weight.
        return sum(x != y for x, y in zip(a, b, strict=True)) <= 8

    base = weights(folder / "f32.bpk")
    whole = converted([tmp_path / "whole"])
    half = converted([tmp_path / "half=0.25"])
    assert not equal(base, whole) and not equal(base, half) and not equal(whole, half)
    assert equal(converted({tmp_path / "whole": 0.5}), half)
    assert equal(converted({tmp_path / "whole": 0}), base)
    with pytest.raises(edge_lmm.Error, match="missing"):
        converted([tmp_path / "missing"])


def test_records_are_compared(records, tmp_path):
    folder, _ = records
    text = tmp_path / "text.txt"
    text.write_text("how many shapes are there? a red circle and a blue square. " * 8)
    report = edge_lmm.compare(
        folder / "f32.bpk", folder / "q4.bpk", text=text, window=64, html=tmp_path / "page.html"
    )
    json.dumps(report)
    assert report["format"] == "edge-lmm comparison"
    assert (tmp_path / "page.html").stat().st_size > 1000


def test_the_five_lines_profile_an_engine(engine, schema, capsys):
    profiler = ModelProfiler(engine)
    profiler.start()
    engine.answer(LIST, images=[IMAGE])
    profiler.stop()
    profiler.print_summary()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("|")[1].strip() == "Layer Type"
    assert "<- bottleneck" in lines[2]
    report = profiler.report()
    schema.validate(report)
    (run,) = report["runs"]
    assert run["parameters"]["prompt"] == LIST
    assert {m["name"] for m in run["modules"]} >= {"vision", "prefill", "text.layers.0.mlp"}
    assert report["environment"]["record"]["path"] == str(RECORD)
    assert run["tokens"]["encoder_misses"] == 1
    # An answer after the profiler has stopped is not measured.
    engine.answer(LIST, images=[IMAGE])
    assert len(profiler.report()["runs"]) == 1


def test_repeats_and_turns_of_an_engine_are_told_apart(engine):
    profiler = ModelProfiler(engine)
    for _ in range(3):
        with profiler:
            chat = engine.chat()
            chat.answer(COUNT, images=[IMAGE])
            chat.answer(LIST)
    first, second = profiler.report()["runs"]
    assert first["total_ms"]["count"] == second["total_ms"]["count"] == 3
    assert (first["parameters"]["turn"], second["parameters"]["turn"]) == (1, 2)
    assert second["tokens"]["reused"] > 0
    assert {row["run"] for row in profiler.rows()} == {0, 1}
    with profiler, pytest.raises(edge_lmm.Error, match="another profiler"):
        ModelProfiler(engine).start()


def test_both_frameworks_stand_in_one_comparison(engine, tmp_path):
    from modules import Model

    model = Model()
    torch = ModelProfiler(model)
    with torch:
        model.generate(steps=2)
    torch.to_json(tmp_path / "torch.json")
    own = ModelProfiler(engine)
    with own:
        engine.answer(COUNT, images=[IMAGE])
    own.to_json(tmp_path / "own.json")
    page = tmp_path / "page.html"
    report = compare(tmp_path / "torch.json", tmp_path / "own.json", html=page)
    (profile,) = report["profiles"]
    changes = {change["name"]: change for change in profile["runs"][0]["modules"]}
    for name in ["prefill", "vision", "text.layers.*.mlp", "text.layers.*.attention"]:
        assert changes[name]["before"] is not None and changes[name]["after"] is not None, name
    assert page.stat().st_size > 1000
    with pytest.raises(edge_lmm.Error):
        compare(tmp_path / "torch.json", __file__)
