"""The command line: each verb loads the recipe, calls the stage and shows the result. Only this and `console` print.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 stopped by an error or by Ctrl-C, 2 usage.
Of the processes that torchrun or accelerate start, the first does the work; the others only help it to train.
"""

import errno
import os
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import click
import typer
import typer.core
from typer.core import TyperGroup

from reticent import __version__, recipe
from reticent.console import MODELS, RichProgress, columns, measured, print_table
from reticent.errors import AuditError, PrivacyError, RecipeError, ReticentError, RunError
from reticent.progress import Progress
from reticent.recipe import Recipe
from reticent.run import STAGES, Run, default_folder, is_run

if TYPE_CHECKING:
    from reticent.reports.comparison import Cell

typer.core.HAS_RICH = False  # Help is plain text here; else the brackets of defaults are escaped for HTML.

_RESUME = "reticent.resume"  # Where a verb leaves what Ctrl-C should say, in click's context.


class _Group(TyperGroup):
    """Turns exceptions of every verb into one message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb. No message holds the text of an unexpected exception: it could be that of a record."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except KeyboardInterrupt:
            if _is_first():
                typer.echo(f"stopped; the same command {ctx.meta.get(_RESUME, '')}resumes", err=True)
        except Exception as error:
            if os.environ.get("RETICENT_TRACEBACK") == "1" or getattr(error, "errno", None) == errno.EPIPE:
                raise
            typer.echo(("" if _is_first() else f"process {os.environ['RANK']}: ") + _sentence(error), err=True)
        raise typer.Exit(1)


def _sentence(error: Exception) -> str:
    if isinstance(error, ReticentError):
        return f"error: {error}"
    if isinstance(error, OSError) and error.strerror and isinstance(error.filename, str | None):
        return f"error: {error.strerror}{f': {error.filename}' if error.filename else ''}"
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(__file__).parent in Path(frame.filename).parents]
    place = (ours or frames)[-1]
    return (
        f"unexpected error: {type(error).__name__} in {Path(place.filename).name}:{place.lineno}\n"
        "RETICENT_TRACEBACK=1 before the command shows all of it; that may hold private text"
    )


app = typer.Typer(
    name="reticent",
    cls=_Group,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    suggest_commands=False,  # click does it too.
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

# Hidden: the usage line shows them, and each verb's text says what they are.
_Target = Annotated[Path, typer.Argument(metavar="TARGET", hidden=True)]
_Sets = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change a setting; may be given again.")
]
_Folder = Annotated[
    Path | None,
    typer.Option("--run", metavar="FOLDER", help="Work here, not in runs/NAME-OF-RECIPE.", show_default=False),
]
_Again = Annotated[
    bool,
    typer.Option("--again", help="Redo this stage and all later ones. A model given away before keeps its own cost."),
]
_FailOn = Annotated[
    Literal["leak", "inconclusive"] | None,
    typer.Option("--fail-on", help="Exit with 1 on a demonstrated leak; or also where a test can say nothing."),
]
_Sign = Annotated[
    Path | None,
    typer.Option("--sign", metavar="KEY", help="Sign the report with this Ed25519 key; made if there is no such file."),
]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"reticent {__version__}")
        raise typer.Exit


@app.callback()
def main(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Fine-tune a language model on private text so that it keeps the text to itself, and measure that it does.

    \b
    Begin with an example that needs no data of yours:
      reticent new clinic my.yaml     write a recipe with a comment on every setting
      reticent check my.yaml          see the plan: steps, noise, the promised epsilon
      reticent run my.yaml            prepare, train, audit, evaluate, report
      reticent show runs/my           see what came out

    A run that was stopped goes on when the same command is given again. What is done is skipped.

    \b
    Training on several processes, one for each GPU:
      torchrun --nproc-per-node 2 -m -- reticent run my.yaml
    """
    # Before torch is loaded: its threads wait by spinning so long that a busy machine becomes many times slower.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if not _is_first() and ctx.invoked_subcommand not in ("train", "run"):
        raise typer.Exit


@app.command()
def new(
    preset: Annotated[Literal["clinic", "file"], typer.Argument(metavar="[PRESET]", hidden=True)] = "clinic",
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", hidden=True)] = None,
) -> None:
    """Write a recipe with a comment on every setting.

    PRESET is clinic (generated data, the default) or file (yours). FILE is PRESET.yaml if left out.

    \b
    Example:
      reticent new file notes.yaml
    """
    path = file or Path(f"{preset}.yaml")
    try:
        with path.open("x", encoding="utf-8") as opened:
            opened.write(recipe.commented(preset))
    except FileExistsError:
        raise RecipeError(f"{path} exists and is not overwritten; name another file") from None
    except OSError as error:
        raise RecipeError(f"cannot write {path}: {error.strerror}") from None
    typer.echo(f"wrote {path}; see its plan with: reticent check {path}")


@app.command()
def check(target: _Target, sets: _Sets = None) -> None:
    """Print the plan of a recipe, and train nothing.

    TARGET is a recipe file or a run folder. A wrong setting is named, with what it may have been meant to be.

    \b
    Example:
      reticent check my.yaml -s privacy.epsilon=2
    """
    from reticent.stages.check import check as plan

    rows = plan(_recipe(target, sets or ()))
    _print_rows(rows)


@app.command()
def prepare(target: _Target, sets: _Sets = None, folder: _Folder = None, again: _Again = False) -> None:
    """Read the text, split it by owner, plant canaries.

    TARGET is a recipe file or a run folder.

    \b
    Example:
      reticent prepare my.yaml --run runs/first
    """
    _work(["prepare"], target, sets or (), folder, again)


@app.command()
def train(target: _Target, sets: _Sets = None, folder: _Folder = None, again: _Again = False) -> None:
    """Train the private model, and its twin without privacy.

    TARGET is a recipe file or a run folder.

    \b
    Example:
      reticent train runs/my -s train.steps=500 --again
    """
    done = _work(["train"], target, sets or (), folder, again)
    typer.echo(_guarantee(done))
    _print_example(done)


@app.command()
def audit(
    target: _Target,
    sets: _Sets = None,
    folder: _Folder = None,
    again: _Again = False,
    fail_on: _FailOn = None,
    sign: _Sign = None,
) -> None:
    """Attack the trained models and measure what they leak.

    TARGET is a recipe file or a run folder. With --sign the rest is done too, and the report is signed.

    \b
    Example:
      reticent audit runs/my --fail-on leak
    """
    stages = ("audit",) if sign is None else STAGES[STAGES.index("audit") :]
    done = _work(stages, target, sets or (), folder, again)
    _print_verdicts(done)
    _finish(done, fail_on, sign)


@app.command()
def doctor(target: _Target, sets: _Sets = None) -> None:
    """Test that training keeps what it promises: on your model, the shape of your data, this machine.

    TARGET is a recipe file or a run folder. Gradients are clipped, noise is there and whole, sampling is what is
    accounted for, the ledger is complete. It exits with 1 if a check fails.

    \b
    Example:
      reticent doctor my.yaml
    """
    from reticent.stages.doctor import implementation_checks

    if target.is_dir():
        run = Run.open(target)
        if sets:
            raise RunError("a run is checked as it is; give its recipe file to change a setting")
        found = implementation_checks(run, RichProgress())
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = implementation_checks(Run(Path(folder), _recipe(target, sets or ())), RichProgress())
    table = columns("check", "", "measured", "bound", "what it is")
    for one in found:
        table.add_row(
            one.name, "passed" if one.passed else "FAILED", f"{one.measured:.6g}", f"{one.bound:.6g}", one.detail
        )
    print_table(table)
    failed = [one.name for one in found if not one.passed]
    if failed:
        raise PrivacyError(f"{len(failed)} of {len(found)} checks failed: {', '.join(failed)}; promise nothing with it")
    typer.echo(f"all {len(found)} checks passed")


@app.command()
def evaluate(target: _Target, sets: _Sets = None, folder: _Folder = None, again: _Again = False) -> None:
    """Measure how useful the models are on records they never saw.

    TARGET is a recipe file or a run folder.

    \b
    Example:
      reticent evaluate runs/my
    """
    print_table(measured(_work(["evaluate"], target, sets or (), folder, again).read_measurements("evaluate")))


@app.command()
def synthesize(target: _Target, sets: _Sets = None, folder: _Folder = None, again: _Again = False) -> None:
    """Sample a corpus from the private model that may be given away; filter, judge and audit it.

    TARGET is a recipe file or a run folder. The recipe says what to make: synthetic: {records: 500}.

    \b
    Example:
      reticent synthesize my.yaml -s synthetic.records=500
    """
    done = _work(["synthesize"], target, sets or (), folder, again)
    found = done.read_measurements("synthesize")
    print_table(measured(found, list(dict.fromkeys(one.model for one in found))))
    typer.echo(f"texts: {done.synthetic_folder}")


@app.command()
def report(
    target: _Target, sets: _Sets = None, folder: _Folder = None, again: _Again = False, sign: _Sign = None
) -> None:
    """Write report.html and report.json.

    TARGET is a recipe file or a run folder.

    \b
    Example:
      reticent report runs/my
    """
    done = _work(["report"], target, sets or (), folder, again)
    typer.echo(f"report: {done.report_path}")
    _finish(done, None, sign)


@app.command("run")
def run_(
    target: _Target,
    sets: _Sets = None,
    folder: _Folder = None,
    again: _Again = False,
    fail_on: _FailOn = None,
    sign: _Sign = None,
) -> None:
    """Do all of it, from the text to the report.

    TARGET is a recipe file or a run folder. What is done is skipped; what was stopped goes on.

    \b
    Example:
      reticent run my.yaml -s privacy.epsilon=4 --run runs/epsilon-4
    """
    done = _work(STAGES, target, sets or (), folder, again)
    _print_verdicts(done)
    typer.echo(_guarantee(done))
    _print_example(done)
    typer.echo(f"report: {done.report_path}")
    _finish(done, fail_on, sign)


data = typer.Typer(
    name="data",
    help="Look at the data sets that are known by name, and score what scrubbing finds.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.add_typer(data)


@data.command("list")
def list_() -> None:
    """List the data sets that a recipe can name.

    \b
    Example:
      reticent data list
    """
    from reticent.data import catalog

    rows = catalog.table()
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        typer.echo("  ".join([*cells, row[3]]).rstrip())


@data.command("show")
def show_data(name: Annotated[str, typer.Argument(metavar="NAME", hidden=True)]) -> None:
    """Show where a data set is, what is in it, whose text it is, and how it is rendered.

    NAME is one of those that reticent data list shows.

    \b
    Example:
      reticent data show medical-flashcards
    """
    from reticent.data import catalog

    rows = catalog.describe(name)
    _print_rows(rows)


@data.command("scrub-score")
def scrub_score(
    file: Annotated[Path, typer.Argument(metavar="FILE", hidden=True)],
    recognisers: Annotated[
        str | None,
        typer.Option("--recognisers", help="Names with commas between, as in data.scrub.recognisers; left out: its."),
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="Also score every recogniser alone.")] = False,
) -> None:
    """Score what scrubbing finds in text whose identifiers are marked.

    FILE is a TAB file, an i2b2 2014 file or folder, .jsonl lines with text and spans (start, end, entity), or lines
    with a prompt and a target, the name that follows it; or bundled/clinic, 1,000 generated notes. An identifier counts
    as masked if every mention of it is, by a mask of any kind. Nothing is sent anywhere unless a remote recogniser is
    named.

    \b
    Example:
      reticent data scrub-score notes.jsonl --recognisers clinical,spacy --each
    """
    from reticent.stages.scrub_score import scores

    names = recipe.Scrub().recognisers if recognisers is None else tuple(recognisers.split(","))
    table = columns("recognisers", "measure", "share", "95 % interval", "of")
    for combination, found in scores(file, names, each=each, progress=RichProgress()).items():
        for one in found:
            interval = "" if one.interval is None else f"{one.interval[0]:.2%} to {one.interval[1]:.2%}"
            table.add_row(combination, one.name, f"{one.value:.2%}", interval, f"{one.n:,} {one.counted}")
    print_table(table)


site = typer.Typer(
    name="site",
    help="Take part in a federation: prepare a site's data and keys, and answer the coordinator.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.add_typer(site)
_Site = Annotated[Path, typer.Argument(metavar="SITE", hidden=True)]


@site.command("init")
def site_init(
    target: _Target,
    name: Annotated[str, typer.Option("--name", help="The site's name: letters, digits and hyphens.")],
    sets: _Sets = None,
    folder: Annotated[Path | None, typer.Option("--run", help="The site's folder; default sites/NAME.")] = None,
) -> None:
    """Prepare a site: its data by the recipe, its keys, and its card.

    TARGET is the recipe that all sites share; say with -s where this site's own text is. The card holds public keys
    alone: send it to the coordinator.

    \b
    Example:
      reticent site init shared.yaml --name north -s data.source.path=notes.jsonl
    """
    from reticent.stages import site as stage

    own = stage.own_recipe(target, name, sets or ())
    run = Run.create(folder or Path("sites") / name, own)
    with run.lock():
        card = stage.init(run, name, RichProgress())
        rows = stage.promise(run)
    _print_rows(rows)
    typer.echo(f"send {card} to the coordinator; when the invitation comes: reticent site start {run.folder} FILE")


@site.command("start")
def site_start(folder: _Site, invitation: Annotated[Path, typer.Argument(metavar="INVITATION", hidden=True)]) -> None:
    """Answer the coordinator until the rounds are over.

    SITE is a folder that reticent site init made, INVITATION the coordinator's file. The text stays here. Stopped and
    started again, the site goes on. In the end the joint model is in SITE: reticent audit SITE attacks it with the
    secrets that were planted here.

    \b
    Example:
      reticent site start sites/north invitation.json
    """
    from reticent.stages import site as stage

    run, progress = Run.open(folder), RichProgress()
    with run.lock():
        if run.finished("train"):
            progress.say(f"all rounds are done in {run.folder}")
        else:
            stage.start(run, invitation, progress)
    typer.echo(_guarantee(run))


@site.command("owners")
def site_owners(
    folder: _Site,
    secret: Annotated[Path, typer.Option("--secret", help="A file of 16 random bytes or more, which sites share.")],
) -> None:
    """Print keyed hashes of the owners that a site trains on, to find those that several sites share.

    SITE is a folder that reticent site init made. The coordinator must not have the secret: names can be tried with it.

    \b
    Example:
      reticent site owners sites/north --secret secret > north.owners
    """
    from reticent.stages import site as stage

    for one in stage.shared_owners(Run.open(folder), secret):
        typer.echo(one)


@site.command("overlap")
def site_overlap(files: Annotated[list[Path], typer.Argument(metavar="FILE...", hidden=True)]) -> None:
    """Print how many owners each two sites share.

    FILE... are what reticent site owners printed at each site. Whoever is at two sites is protected by the sum of both
    promises.

    \b
    Example:
      reticent site overlap north.owners south.owners
    """
    from reticent.stages import site as stage

    found = stage.overlap(files)
    for (one, other), count in found.items():
        typer.echo(f"{one} and {other} share {count:,} owners")
    if not found:
        typer.echo("no owner is at two of these sites")


@app.command()
def federate(
    target: _Target,
    card: Annotated[list[Path] | None, typer.Option("--card", help="A site's card; one option for each site.")] = None,
    host: Annotated[str, typer.Option("--host", help="The name or address that sites reach this machine by.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", help="The port that sites connect to.", min=1, max=65535)] = 8443,
    bind: Annotated[str | None, typer.Option("--bind", help="The address to listen at; default the host.")] = None,
    wait: Annotated[float, typer.Option("--wait", help="Seconds to wait for the sites.", min=1)] = 3600.0,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Flower's simulation of the recipe's silos on this machine (needs ray).")
    ] = False,
    sets: _Sets = None,
    folder: _Folder = None,
) -> None:
    """Run the rounds of a federation with sites on other machines.

    TARGET is the recipe that all sites share, or the coordinator's run folder. The first time, the cards of the sites
    make the roster, a certificate and the invitation, which goes to every site. Run again after a crash, it goes on
    with the round that it was in. It exits with 0 only if all rounds were made.

    \b
    Example:
      reticent federate shared.yaml --card north.card.json --card south.card.json --host 10.0.0.5
    """
    from reticent.stages import federate as stage

    overrides = [*(sets or ()), "audit.twin=false", *([] if simulate else ["data.silos=null"])]
    own = Run.open(target).recipe if is_run(target) and not sets else _recipe(target, overrides)
    run = Run.create(folder or (target if is_run(target) else default_folder(target)), own)
    progress = RichProgress()
    with run.lock():
        if run.finished("train"):
            progress.say(f"all rounds are done in {run.folder}")
        elif simulate:
            stage.simulate(run, progress)
        else:
            invitation = stage.invite(run, card or (), host, port, progress)
            progress.say(f"send {invitation} to the sites, which run: reticent site start SITE invitation.json")
            stage.federate(run, host, port, bind or host, wait, progress)
        stage.report(run)
    typer.echo(_guarantee(run))
    typer.echo(f"report: {run.report_path}")


_Trained = Annotated[Path, typer.Argument(metavar="RUN", hidden=True)]
_Model = Annotated[
    Literal["base", "twin", "private"] | None,
    typer.Option("--model", help="Left out: the private one, or the twin where there is no other."),
]
_MaxNew = Annotated[int, typer.Option("--max-new-tokens", help="Tokens of a text, at most.", min=1)]
_MinNew = Annotated[int, typer.Option("--min-new-tokens", help="Tokens before a text may end.", min=0)]
_Greedy = Annotated[bool, typer.Option("--greedy", help="The likeliest token each time, nothing drawn.")]
_Temperature = Annotated[float, typer.Option("--temperature", help="Below 1: likelier tokens; above: rarer ones.")]
_TopK = Annotated[
    int | None,
    typer.Option("--top-k", help="Draw among so many likeliest tokens; 0: all, and not sent to a server.", min=0),
]
_TopP = Annotated[float | None, typer.Option("--top-p", help="Draw among the likeliest tokens of this probability.")]
_Penalty = Annotated[float, typer.Option("--repetition-penalty", help="Above 1: what was said is said less again.")]
_Seed = Annotated[int, typer.Option("--seed", help="Same seed, same texts.", min=0)]
_Stop = Annotated[list[str] | None, typer.Option("--stop", help="End a text before this; may be given again.")]


@app.command()
def generate(
    folder: _Trained,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="Prompts: .jsonl, or .txt with one a line.")
    ] = None,
    split: Annotated[
        Literal["train", "held_out", "calibration"] | None,
        typer.Option("--split", help="The prompts of the run's own records; they are private."),
    ] = None,
    model: _Model = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write here, not into the run's data.")
    ] = None,
    format: Annotated[
        Literal["jsonl", "text"], typer.Option("--format", help="jsonl, or text: Generated: before each.")
    ] = "jsonl",
    copies: Annotated[int, typer.Option("--copies", help="Texts of each prompt.", min=1)] = 1,
    limit: Annotated[int | None, typer.Option("--limit", help="At most this many prompts.", min=1)] = None,
    max_new_tokens: _MaxNew = 256,
    min_new_tokens: _MinNew = 0,
    greedy: _Greedy = False,
    temperature: _Temperature = 1.0,
    top_k: _TopK = 50,
    top_p: _TopP = None,
    repetition_penalty: _Penalty = 1.0,
    seed: _Seed = 0,
    stop: _Stop = None,
    batch: Annotated[int, typer.Option("--batch", help="Texts, or requests, at once.", min=1)] = 16,
    server: Annotated[
        str | None, typer.Option("--server", metavar="URL", help="Ask an OpenAI-compatible server (vLLM, ...) instead.")
    ] = None,
    server_model: Annotated[
        str | None, typer.Option("--server-model", metavar="NAME", help="The model's name there.")
    ] = None,
) -> None:
    """Write texts with a model of a run.

    RUN is a run folder. Without --prompts or --split the model begins by itself. A line of a .txt file may say how many
    texts of it are wanted: instruction #### 5. The same command goes on with a file that was stopped. Prompts of the
    run's records are never sent to another machine. A server's key is read from RETICENT_SERVER_KEY.

    \b
    Example:
      reticent generate runs/my --prompts questions.txt --max-new-tokens 100
    """
    from reticent.stages.generate import Asked
    from reticent.stages.generate import generate as write

    asked = Asked(
        model=model,
        prompts=prompts,
        split=split,
        limit=limit,
        copies=copies,
        out=out,
        format=format,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        greedy=greedy,
        temperature=temperature,
        top_k=top_k or None,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        batch=batch,
        server=server,
        server_model=server_model,
    )
    run = Run.open(folder)
    with run.lock():
        typer.echo(f"texts: {write(run, asked, RichProgress())}")


@app.command()
def chat(
    folder: _Trained,
    model: _Model = None,
    max_new_tokens: _MaxNew = 256,
    greedy: _Greedy = False,
    temperature: _Temperature = 0.7,
    top_k: _TopK = 50,
    top_p: _TopP = None,
    repetition_penalty: _Penalty = 1.1,
    seed: _Seed = 0,
    stop: _Stop = None,
) -> None:
    """Talk to a model of a run.

    RUN is a run folder. An empty line or Ctrl-D ends it, /forget begins anew. Nothing is kept.

    \b
    Example:
      reticent chat runs/my --model base
    """
    from reticent.stages.chat import Chat
    from reticent.stages.generate import Asked

    asked = Asked(
        model=model,
        max_new_tokens=max_new_tokens,
        greedy=greedy,
        temperature=temperature,
        top_k=top_k or None,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
    )
    talk = Chat.open(Run.open(folder), asked, RichProgress())
    for line in iter(_typed, ""):
        if line == "/forget":
            talk.forget()
            continue
        try:
            for piece in talk.reply(line):
                typer.echo(piece, nl=False)
            typer.echo()
        except RecipeError as error:  # this message alone
            typer.echo(f"error: {error}", err=True)


def _typed() -> str:
    """A line from the terminal or a pipe; empty at its end."""
    try:
        return input("> " if os.isatty(0) else "").strip()
    except EOFError:
        return ""


@app.command()
def export(
    folder: _Trained,
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="A new or empty folder.")],
    model: Annotated[
        Literal["private", "twin"],
        typer.Option("--model", help="The twin promises nothing; its card says so, and it is never pushed."),
    ] = "private",
    kind: Annotated[
        Literal["adapter", "merged"] | None,
        typer.Option("--kind", help="For PEFT, or whole weights. Left out: the adapter where there is one."),
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="OWNER/NAME", help="Then upload it to this hub repository, private.")
    ] = None,
) -> None:
    """Write a trained model for others to load, with a model card, and check what was written.

    RUN is a run folder. What is written is loaded again without reticent, and compared with the run's model: its
    scores, and perplexity on held-out records. For GGUF, export --kind merged, then llama.cpp's convert_hf_to_gguf.py.

    \b
    Example:
      reticent export runs/my --to my-model --kind merged
    """
    from reticent.stages.export import export as write

    run = Run.open(folder)
    with run.lock():
        _print_rows(write(run, to, model=model, kind=kind, push=push, progress=RichProgress()))


@app.command()
def harness(
    folder: _Trained,
    tasks: Annotated[list[str], typer.Argument(metavar="TASK...", hidden=True)],
    model: _Model = None,
    shots: Annotated[int | None, typer.Option("--shots", help="Solved examples; left out: the task's own.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="At most this many items of each task.", min=1)] = None,
    include: Annotated[
        Path | None, typer.Option("--include", metavar="FOLDER", help="A folder with tasks of yours (.yaml).")
    ] = None,
) -> None:
    """Run tasks of the lm-evaluation-harness on a model of a run.

    RUN is a run folder, each TASK one that lm-eval knows. Needs: pip install 'reticent[lm-eval]'

    \b
    Example:
      reticent harness runs/my pubmedqa medmcqa --limit 200
    """
    from reticent.stages.harness import harness as ask

    run = Run.open(folder)
    name = model or ("private" if run.recipe.promises else "twin")
    found = ask(run, tasks, model=name, shots=shots, limit=limit, include=include, progress=RichProgress())
    print_table(measured(found, [name]))


@app.command()
def show(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", hidden=True)],
    verify: Annotated[bool, typer.Option("--verify", help="Check the signature over the report and the run.")] = False,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="The public key that must have signed it.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the comparison of several runs as a page.")
    ] = None,
) -> None:
    """Show what a run asked, did, promises and measured; or compare several.

    RUN... are run folders. Of several, all models stand side by side: measures, and answers to the same questions,
    which may hold private text where a model promises nothing. With --verify every signed file of one run is compared
    with its digest.

    \b
    Example:
      reticent show runs/my --verify --key officer.pub
      reticent show runs/centralised runs/federated --html comparison.html
    """
    if len(folders) > 1 or html is not None:
        _compare([Run.open(folder) for folder in folders], html)
        return
    shown = Run.open(folders[0])
    if verify or key is not None:
        from reticent.stages.signing import verify as check_signature

        typer.echo(check_signature(shown, key))
        return
    asked = shown.recipe
    source = asked.data.source
    told = source if isinstance(source, str) else source.told() if isinstance(source, recipe.Source) else "a mixture"
    done = [stage for stage in STAGES if shown.finished(stage)]
    typer.echo(f"data       {told}")
    typer.echo(f"model      {asked.model.base}, {asked.model.adapter.kind}")
    typer.echo(
        f"train      {asked.train.steps} steps of {asked.train.batch_size}, learning rate {asked.train.learning_rate:g}"
    )
    typer.echo(f"done       {', '.join(done) or 'nothing yet'}")
    typer.echo(f"guarantee  {_guarantee(shown)}")
    found = shown.read_measurements()
    if any(one.model in MODELS for one in found):
        print_table(measured(found))


# -------------------------------------------------------------------------------------------------------- doing work


def _recipe(target: Path, sets: Sequence[str]) -> Recipe:
    return recipe.load(target / "recipe.yaml" if is_run(target) else target, sets)


def _work(stages: Sequence[str], target: Path, sets: Sequence[str], folder: Path | None, again: bool) -> Run:
    """Do the stages that are not done yet, in a run that no other process works in."""
    if not _is_first():
        from reticent.stages.train import follow

        follow()
        raise typer.Exit
    if target.is_dir() and not is_run(target):
        Run.open(target)  # Says what is wrong.
    where = folder or (target if is_run(target) else default_folder(target))
    asked = _recipe(target, sets)
    if asked.audit.false_alarms is not None and is_run(where):
        from reticent.stages.audit import refuse

        refuse(Run.open(where), asked)
    run = Run.create(where, asked, again=again, since=stages[0])
    if run.recipe.federation is not None and run.recipe.data.silos is None and not run.is_site():
        raise RecipeError(
            "federation needs sites: say data.silos: {clients: 3} to try it in this process, or see: reticent federate "
            "-h"
        )
    progress = RichProgress()
    with run.lock():
        if again:
            run.forget(stages[0])
            click.get_current_context().meta[_RESUME] = "without --again "
        for stage in stages:
            if stage not in run.stages:
                if len(stages) == 1:
                    raise RunError("the recipe asks for no synthetic text; say synthetic: {records: 500} in it")
                continue
            if run.finished(stage):
                progress.say(f"{stage}: already done in {run.folder}; --again redoes it")
                if stage == "train" and _processes() > 1:
                    from reticent.stages.train import dismiss

                    dismiss()
                continue
            missing = [earlier for earlier in run.stages[: run.stages.index(stage)] if not run.finished(earlier)]
            if missing:
                raise RunError(f"{stage} needs {missing[0]} first: reticent {missing[0]} {run.folder}")
            _function(stage)(run, progress)
    return run


def _processes() -> int:
    """How many processes torchrun or accelerate started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _is_first() -> bool:
    return _processes() == 1 or os.environ["RANK"] == "0"


def _function(stage: str) -> Callable[[Run, Progress], None]:
    """The code of a stage; loaded here, because it takes seconds to load."""
    match stage:
        case "prepare":
            from reticent.stages.prepare import prepare as function
        case "train":
            from reticent.stages.train import train as function
        case "audit":
            from reticent.stages.audit import audit as function
        case "evaluate":
            from reticent.stages.evaluate import evaluate as function
        case "synthesize":
            from reticent.stages.synthesize import synthesize as function
        case _:
            from reticent.stages.report import report as function
    return function


# ------------------------------------------------------------------------------------------------------------ showing


def _guarantee(run: Run) -> str:
    if not run.recipe.promises:
        return "none: trained without privacy"
    if not run.finished("train"):
        return "none yet: not trained"
    from reticent.stages.report import broken

    if failed := broken(run):
        return f"none: the training does not keep what the ledger counts on (check {', '.join(failed)} failed)"
    spent = run.facts("train")["guarantee"]
    told = f"epsilon {spent['epsilon']:.3g} at delta {spent['delta']:g}, per {spent['unit']}, {spent['relation']}"
    return f"{told}; the worst of {len(spent['sites'])} sites" if spent.get("sites") else told


def _print_example(run: Run) -> None:
    """A text of the private model, to see what came of the training."""
    if run.recipe.promises and not run.is_site():
        from reticent.stages.generate import example

        if (text := example(run)) is not None:
            typer.echo(f"a text of it: {text.strip()!r}")  # quoted: it may hold anything


def _compare(runs: Sequence[Run], html: Path | None) -> None:
    """All models of several runs: measures, tests on the same items, answers to the same questions."""
    from reticent.stages.compare import compare

    found = compare(runs, withheld=False)  # to whoever can read the runs
    shown = found["columns"]
    names = [f"{number}" for number in range(1, len(shown) + 1)]
    _print_rows([(name, f"{one['what']} ({one['run']})") for name, one in zip(names, shown, strict=True)])
    table = columns("measure", *names)
    for row in found["rows"]:
        unit = "" if row["unit"] == row["measure"] else f", {row['unit']}"
        table.add_row(row["measure"] + unit, *map(_cell, row["cells"]))
    print_table(table)
    if found["paired"]:
        table = columns("the same items", "models", "items", "only the first right", "only the second", "p (McNemar)")
        for pair in found["paired"]:
            table.add_row(
                f"{pair['benchmark']}, {pair['scorer']}",
                f"{names[pair['one']]}, {names[pair['other']]}",
                *(f"{pair[key]}" for key in ("items", "only_one", "only_other")),
                f"{pair['p_value']:.2g}",
            )
        print_table(table)
    for asked in found["answers"]:
        table = columns("model", asked["question"])
        for name, answer in zip(names, asked["answers"], strict=True):
            if answer is not None:
                table.add_row(name, answer or "(nothing)")
        print_table(table)
    if html is not None:
        from reticent.reports.comparison import render

        try:
            html.write_text(render(compare(runs)), encoding="utf-8")
        except OSError as error:
            raise RunError(f"cannot write {html}: {error.strerror}") from None
        typer.echo(f"page: {html}")


def _cell(cell: "Cell | None") -> str:
    if cell is None:
        return ""
    interval = "" if cell["interval"] is None else " [{:.3g}, {:.3g}]".format(*cell["interval"])
    return f"{cell['value']:.3g}{interval}" + (f" ({cell['other']})" if cell["other"] else "")


def _print_rows(rows: Sequence[tuple[str, str]]) -> None:
    width = max((len(label) for label, _ in rows), default=0)
    for label, value in rows:
        typer.echo(f"{label:<{width}}  {value}")


def _print_verdicts(run: Run) -> None:
    """What page 1 of the report says."""
    from reticent.stages.report import findings

    table = columns("question", "measured", "verdict")
    for row in findings(run):
        table.add_row(row.text, row.measured, row.verdict.text if row.verdict else row.note)
    print_table(table)


def _finish(run: Run, fail_on: Literal["leak", "inconclusive"] | None, sign: Path | None) -> None:
    """Signs, and ends with an error where a verdict is one of those not to be passed over."""
    if sign is not None:
        from reticent.stages.signing import sign as write_signature

        with run.lock():
            typer.echo(write_signature(run, sign))
    if fail_on is not None:
        from reticent.stages.report import failing

        found = failing(run, fail_on)
        if found:
            raise AuditError("; ".join(found))
