"""The model with chosen probabilities, for the tests of attacks."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def table_model() -> ModuleType:
    """The module tests/attacks/table_model.py."""
    spec = importlib.util.spec_from_file_location("table_model", Path(__file__).parent / "table_model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
