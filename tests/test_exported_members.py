import subprocess
import sys

import reticent

HEAVY = {"torch", "transformers", "datasets", "pandas", "matplotlib", "sklearn", "scipy", "faker", "peft"}


def test_public_is_what_all_lists():
    assert sorted(reticent.__all__) == reticent.__all__
    modules = {name.split(".")[1] for name in sys.modules if name.startswith("reticent.")}
    public = {name for name in vars(reticent) if not name.startswith("_")} - modules
    assert public | {"__version__"} == set(reticent.__all__)


def test_importing_the_command_line_loads_nothing_heavy():
    script = "import sys, reticent, reticent.cli; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert not HEAVY & set(loaded.split())
