"""Write texts with a model of a run, or with a server's: from prompts of a file, from those of a part of the data, or
from none.

A text follows from its prompt, the options and its own seed alone, so a run that was stopped goes on where it was, and
the file comes out as it would have.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np

from reticent.asked import trained_models
from reticent.data.prompts import Prompt, read_prompts
from reticent.errors import PrivacyError, RecipeError, RunError
from reticent.progress import SILENT, Progress
from reticent.run import RecordPart, Run
from reticent.stages.continuing import (
    Beginning,
    Endings,
    Finish,
    Said,
    before,
    beginnings,
    chosen_model,
    context,
)
from reticent.stages.inputs import AnyModel, open_model
from reticent.stages.texts import Format, Place, Texts

if TYPE_CHECKING:
    from reticent.models.generation import Decoding
    from reticent.models.server import Server

_MOST = 10_000_000  # texts


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to write.

    ``model``: None is the private one, or the twin where there is no other. ``prompts``: a file; ``split``: a part of
    the run's data, of which each record's prompt is taken; neither: the model begins by itself. ``limit``: at most this
    many prompts, the first ones. ``copies``: texts of each prompt, times the count that a file says. ``out``: None is a
    place in the run's data, named after all that is asked. ``format``: "jsonl", or "text", a line "Generated:" before
    each text. ``stop``: a text ends before the first of these. ``batch``: texts, or requests, at once. ``server``: the
    address of another model, ``server_model`` its name there.
    """

    model: AnyModel | None = None
    prompts: Path | None = None
    split: str | None = None
    limit: int | None = None
    copies: int = 1
    out: Path | None = None
    format: Format = "jsonl"
    max_new_tokens: int = 256
    min_new_tokens: int = 0
    greedy: bool = False
    temperature: float = 1.0
    top_k: int | None = 50
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    batch: int = 16
    server: str | None = None
    server_model: str | None = None


class _Source(NamedTuple):
    """Prompts, where they are from ("prompts", "held_out", ...), and whether they are private."""

    name: str
    prompts: list[Prompt]
    private: bool


def generate(run: Run, asked: Asked, progress: Progress = SILENT) -> Path:
    """Write the texts that are not in their file yet; where they are.

    Raises:
        RecipeError: An option is out of its bounds, or two contradict each other.
        DataError: The file of prompts is broken.
        PrivacyError: Private prompts would be sent to another machine.
        RunError: The run has no such model or part, or the file holds something else.
        ModelError: The model or the server fails.
    """
    check(asked)
    source = _source(run, asked)
    total = sum(one.count for one in source.prompts) * asked.copies
    if total > _MOST:
        raise RecipeError(f"{total:,} texts are asked for, and at most {_MOST:,} go into one file; ask for fewer")
    server = None
    if asked.server is not None:
        server = _server(run, asked.server, asked.server_model, source)
        name = server.model
    else:
        name = chosen_model(run, asked.model)
    identity = _identity(run, asked, source, name, server)
    path = asked.out or _default_path(run, source, identity, asked.format)
    _caution(run, path, source, name, progress)
    asks = [
        Place(number, copy) for number, one in enumerate(source.prompts) for copy in range(one.count * asked.copies)
    ]
    with Texts.open(run, path, identity, asked.format) as texts:
        todo = [ask for ask in asks if ask not in texts]
        if todo:
            seeds = [seed_of(asked.seed, *ask) for ask in todo]
            said = (
                _served(run, asked, server, source.prompts, todo, seeds)
                if server is not None
                else _own(run, asked, chosen_model(run, asked.model), source.prompts, todo, seeds, progress)
            )
            with progress.task("generating", total=len(todo)) as task:
                for at, (text, finish) in said:
                    texts.append(todo[at], _line(source, todo[at], text, finish, seeds[at], name))
                    task.advance()
    return path


def example(run: Run, *, tokens: int = 64) -> str | None:
    """What the private model writes by itself, to look at; None without a promise: it could be private text."""
    if not run.recipe.promises or not _promises(run, "private"):
        return None
    asked = Asked(model="private", max_new_tokens=tokens)
    name = chosen_model(run, asked.model)
    [(_, said)] = _own(run, asked, name, [Prompt("")], [Place(0, 0)], [seed_of(0, 0, 0)], SILENT)
    return said.text


def seed_of(seed: int, number: int, copy: int) -> int:
    """The seed of one text, 63 bits: every text has its own, whatever else is written."""
    return int(np.random.SeedSequence([seed, number, copy]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def decoding_of(asked: Asked) -> "Decoding":
    """The options of decoding, as `reticent.models.generation` takes them."""
    from reticent.models.generation import Decoding
    from reticent.models.language_model import Sampling

    return Decoding(
        max_new_tokens=asked.max_new_tokens,
        sampling=None if asked.greedy else Sampling(asked.temperature, asked.top_k, asked.top_p),
        min_new_tokens=asked.min_new_tokens,
        repetition_penalty=asked.repetition_penalty,
    )


def check(asked: Asked) -> None:
    """Raises a RecipeError for an option that is out of its bounds, or contradicts another."""
    for name in ("max_new_tokens", "copies", "batch", "limit", "top_k"):
        value = getattr(asked, name)
        if value is not None and value < 1:
            raise RecipeError(f"{name} must be at least 1, got {value}")
    if not 0 <= asked.min_new_tokens <= asked.max_new_tokens:
        raise RecipeError(
            f"min_new_tokens must be from 0 to max_new_tokens ({asked.max_new_tokens}), got {asked.min_new_tokens}"
        )
    if not 0 < asked.temperature < float("inf"):
        raise RecipeError(f"temperature must be above 0, got {asked.temperature}; for the likeliest text say greedy")
    if asked.top_p is not None and not 0 < asked.top_p <= 1:
        raise RecipeError(f"top_p must be above 0 and at most 1, got {asked.top_p}")
    if not 0 < asked.repetition_penalty < float("inf"):
        raise RecipeError(f"repetition_penalty must be above 0 (1: none), got {asked.repetition_penalty}")
    if asked.seed < 0:
        raise RecipeError(f"seed must be at least 0, got {asked.seed}")
    if asked.prompts is not None and asked.split is not None:
        raise RecipeError("prompts come from a file or from a part of the data; name one of them")
    if not all(asked.stop):
        raise RecipeError("a stop string is empty; leave it out")
    if asked.server is None and asked.server_model is not None:
        raise RecipeError("a model's name on a server needs the address of the server")
    if asked.server is not None and asked.model is not None:
        raise RecipeError(f"the server's model writes, not the run's model {asked.model}; leave one of them out")


# ------------------------------------------------------------------------------------------------------- what is asked


def _source(run: Run, asked: Asked) -> _Source:
    if asked.prompts is not None:
        return _Source("prompts", read_prompts(asked.prompts)[: asked.limit], private=False)
    if asked.split is None:
        return _Source("start", [Prompt("")], private=False)
    parts = get_args(RecordPart)
    if asked.split not in parts:
        raise RunError(f"the data have no part {asked.split!r}; take one of {', '.join(parts)}")
    if not run.finished("prepare"):
        raise RunError(f"{run.folder} has no data yet; prepare them with: reticent prepare {run.folder}")
    keep = None if asked.limit is None else range(asked.limit)
    prompts = [Prompt(record.prompt) for record, _ in run.read_records(asked.split, keep)]  # type: ignore[arg-type]  # one of its words
    if not prompts:
        raise RunError(f"the part {asked.split} of the data in {run.folder} is empty; take another one")
    return _Source(asked.split, prompts, private=any(one.text for one in prompts))


def _server(run: Run, url: str, model: str | None, source: _Source) -> "Server":
    from reticent.models.server import Server, is_local

    if source.private and not is_local(url):
        raise PrivacyError(
            f"the prompts of {source.name} are private and would be sent to another machine; use a server on this one "
            "(http://localhost:PORT), or prompts from a file"
        )
    server = Server(url, model=model, chat=run.recipe.data.template == "chat")
    if server.chat and any(not one.text for one in source.prompts):
        raise RecipeError(
            "without a prompt a model begins by itself only through completions; give the server's address with its "
            "route, as in http://localhost:8000/v1/completions"
        )
    return server


def _identity(run: Run, asked: Asked, source: _Source, name: str, server: "Server | None") -> dict[str, Any]:
    """All that the texts follow from."""
    prompts = json.dumps([(one.text, one.count, one.label) for one in source.prompts])
    options = asdict(asked)
    for key in ("model", "prompts", "split", "out", "batch", "server", "server_model"):
        del options[key]
    return {
        "model": name,
        "weights": _weights(run, name) if server is None else f"server, {'chat' if server.chat else 'completions'}",
        "source": source.name,
        "prompts": hashlib.sha256(prompts.encode()).hexdigest(),
        **options,
        "stop": list(asked.stop),
    }


def _weights(run: Run, name: str) -> str:
    """Which weights: those of two trainings differ."""
    if name == "base":
        return run.recipe.model.base
    whole = hashlib.sha256()
    for path in sorted(run.model_folder(name).glob("*.safetensors")):
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def _default_path(run: Run, source: _Source, identity: dict[str, Any], form: Format) -> Path:
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    model = "".join(
        letter if letter.isalnum() or letter in "-_." else "-" for letter in str(identity["model"]).split("/")[-1]
    )
    return run.generated_folder / f"{model}-{source.name}-{digest}.{'jsonl' if form == 'jsonl' else 'txt'}"


def _promises(run: Run, name: str) -> bool:
    """Whether the model came out as it promised; then its text is no private text."""
    from reticent.stages.report import broken

    return name == "private" and not broken(run)


def _caution(run: Run, path: Path, source: _Source, name: str, progress: Progress) -> None:
    private = source.private or (name in trained_models(run.recipe) and not _promises(run, name))
    if private and run.generated_folder.parent.resolve() not in path.resolve().parents:
        what = f"prompts of {source.name}" if source.private else "text of a model that promises nothing"
        progress.say(f"{path} will hold {what}: it is as private as the data")


def _line(source: _Source, ask: Place, text: str, finish: Finish, seed: int, model: str) -> dict[str, Any]:
    prompt = source.prompts[ask.number]
    return {
        "id": f"{source.name}:{ask.number + 1}",  # `Texts` reads the number from it
        "prompt": prompt.text,
        **({} if prompt.label is None else {"label": prompt.label}),
        "copy": ask.copy,
        "text": text,
        "finish": finish,
        "seed": seed,
        "model": model,
    }


# ------------------------------------------------------------------------------------------------------- who writes


def _own(
    run: Run,
    asked: Asked,
    name: AnyModel,
    prompts: Sequence[Prompt],
    todo: Sequence[Place],
    seeds: Sequence[int],
    progress: Progress,
) -> Iterator[tuple[int, Said]]:
    """Each number in ``todo`` and its text, as they are finished, by a model of the run."""
    from reticent.models.generation import stream
    from reticent.models.load import load_tokenizer

    tokenizer = load_tokenizer(run.recipe.model.base)
    begins = beginnings([one.text for one in prompts], tokenizer, run.recipe.data.template)
    model = open_model(run, name)
    most = context(model)
    if most is not None:
        begins = _fitting(begins, most - asked.max_new_tokens, most, progress)
    rows = [begins[place.number] for place in todo]
    endings = Endings([one.end for one in rows], asked.stop, tokenizer)
    found = stream(
        model,
        [one.ids for one in rows],
        decoding_of(asked),
        seeds=seeds,
        end_of_text=endings.token,
        stop=endings,
        batch=asked.batch,
    )
    for at, (ids, finish) in found:
        yield at, endings.cut(at, ids, finish)


def _fitting(begins: list[Beginning], room: int, most: int, progress: Progress) -> list[Beginning]:
    """The ends of prompts that are longer than ``room``."""
    if room < 1:
        raise RecipeError(f"max_new_tokens must leave room for a prompt: the model reads {most} tokens")
    if long := sum(len(one.ids) > room for one in begins):
        progress.say(f"{long} prompts are longer than {room} tokens; the model is given their ends")
    return [one._replace(ids=one.ids[-room:]) for one in begins]


def _served(
    run: Run, asked: Asked, server: "Server", prompts: Sequence[Prompt], todo: Sequence[Place], seeds: Sequence[int]
) -> Iterator[tuple[int, Said]]:
    """As `_own`, by a server."""
    from reticent.models.server import Ask, request_settings

    texts = [one.text for one in prompts] if server.chat else _as_text(run, prompts)
    asks = [Ask(texts[ask.number], seed) for ask, seed in zip(todo, seeds, strict=True)]
    for at, (text, finish) in server.answers(
        asks, request_settings(decoding_of(asked), asked.stop), workers=asked.batch
    ):
        kept = before(text, asked.stop)
        yield at, Said(text, finish) if kept is None else Said(kept, "stop")


def _as_text(run: Run, prompts: Sequence[Prompt]) -> list[str]:
    """What the model goes on from, as text, without the start that a server's tokenizer sets before it by itself."""
    from reticent.models.load import load_tokenizer

    tokenizer = load_tokenizer(run.recipe.model.base)
    own = tokenizer.encode("", add_special_tokens=True)[:1]
    begins = beginnings([one.text for one in prompts], tokenizer, run.recipe.data.template)
    bare = [one.ids[1:] if own and own[0] == tokenizer.bos_token_id == one.ids[0] else one.ids for one in begins]
    return [str(tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)) for ids in bare]
