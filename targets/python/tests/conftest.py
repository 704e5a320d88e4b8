"""Prepares the tests.

Tests of the engine need the native module: `pip install` the package first. Without it, only the
profiler of PyTorch modules is tested, from the source folder. Tests with PyTorch need `torch`, those
with models `transformers`.
"""

import importlib.util
import sys
import types
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "python" / "edge_lmm"
ROOT = Path(__file__).parents[3]


def _native_module():
    try:
        import edge_lmm._native  # noqa: F401
    except ImportError:
        return False
    return True


NATIVE = _native_module()
if not NATIVE:
    for name in [name for name in sys.modules if name.split(".")[0] == "edge_lmm"]:
        del sys.modules[name]
    package = types.ModuleType("edge_lmm")
    package.__path__ = [str(PACKAGE)]
    sys.modules["edge_lmm"] = package


def _has(name):
    return importlib.util.find_spec(name) is not None


def pytest_report_header():
    parts = {
        "engine": NATIVE,
        "profiler": True,
        "PyTorch": _has("torch"),
        "transformers": _has("torch") and _has("transformers"),
    }
    run = [name for name, there in parts.items() if there]
    left = [name for name, there in parts.items() if not there]
    return f"tested: {', '.join(run)}; not installed: {', '.join(left) or 'nothing'}"


def pytest_ignore_collect(collection_path, config):
    return True if collection_path.name == "test_engine.py" and not NATIVE else None


@pytest.fixture(scope="session")
def schema():
    jsonschema = pytest.importorskip("jsonschema")
    import json

    text = (ROOT / "docs/schema/profile.schema.json").read_text()
    return jsonschema.Draft202012Validator(json.loads(text))
