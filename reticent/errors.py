"""What a user can be told to mend. The tree::

    ReticentError
    ├── RecipeError     a setting is unknown, missing or out of its bounds
    ├── DataError       the text to train on cannot be read or used
    ├── ModelError      a model cannot be found, loaded or trained exactly
    ├── PrivacyError    a promise could not be kept, so nothing goes on
    ├── RunError        the run folder cannot be written or belongs to another recipe
    ├── AuditError      an attack found what the user said must not be found, or cannot be made
    └── FederationError a message, a site or the link between sites is not what it must be

Each message names the thing, the bound and the value, and says what to do next. The command line shows it without
a traceback and exits with 1. A broken invariant of our own is an ``assert`` instead. No message may carry the text
of a record.
"""


class ReticentError(Exception):
    """A mistake or a limit that the user can act on."""


class RecipeError(ReticentError):
    """A setting is unknown, missing or out of its bounds."""


class DataError(ReticentError):
    """The text to train on cannot be read or used."""


class ModelError(ReticentError):
    """A model cannot be found, loaded or trained exactly."""


class PrivacyError(ReticentError):
    """A privacy promise could not be kept; nothing goes on."""


class RunError(ReticentError):
    """The run folder cannot be written, or belongs to another recipe."""


class AuditError(ReticentError):
    """An attack found what the user said must not be found, or it cannot be made with these data."""


class FederationError(ReticentError):
    """A message, a site or the link between sites is not what it must be."""
