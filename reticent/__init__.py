"""Fine-tune language models on private text so that they keep it private, and measure that they do.

The command line is `reticent.cli`; ``reticent --help`` teaches it. From Python, a `Recipe` says what is asked, a `Run`
holds what was made, and the functions of `reticent.stages` take one to the other.
"""

from reticent.errors import DataError, ModelError, PrivacyError, RecipeError, ReticentError, RunError
from reticent.measurement import Measurement
from reticent.progress import Progress
from reticent.recipe import Recipe
from reticent.run import Run

__version__ = "0.1.0"

__all__ = [
    "DataError",
    "Measurement",
    "ModelError",
    "PrivacyError",
    "Progress",
    "Recipe",
    "RecipeError",
    "ReticentError",
    "Run",
    "RunError",
    "__version__",
]
