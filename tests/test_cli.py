import sys
import types
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from reticent import cli, console
from reticent.errors import DataError
from reticent.measurement import Measurement
from reticent.run import STAGES, Run

ASKED = [stage for stage in STAGES if stage != "synthesize"]  # of a recipe without synthetic text


def measured(name: str, model: str, value: float, interval: tuple[float, float] | None = None) -> Measurement:
    return Measurement(name=name, model=model, value=value, interval=interval, n=5, unit="bits", counted="secrets")


GUARANTEE = {"epsilon": 7.98, "delta": 1e-5, "unit": "owner", "relation": "add or remove one"}


class Stages:
    """Stands in for reticent.stages: notes what ran, and raises what a test asks for."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.raises: dict[str, BaseException] = {}

    def stage(self, name):
        def work(run, progress):
            self.ran.append(name)
            with progress.task(f"work on {name}", total=2) as task:
                task.advance(1, note="loss 2.5")
                if name in self.raises:
                    raise self.raises[name]
                task.advance(1, note="loss 1.5")
            if name == "audit":
                run.write_measurements(name, [measured("exposure_bits", "twin", 6.5, (5.0, 7.25))])
            if name == "evaluate":
                run.write_measurements(name, [measured("perplexity", model, 3) for model in ("base", "private")])
            run.finish(name, {"guarantee": GUARANTEE} if name == "train" else {})

        return work


@pytest.fixture
def stages(monkeypatch, tmp_path) -> Stages:
    stand_in = Stages()
    monkeypatch.setattr(cli, "_function", stand_in.stage)
    monkeypatch.setattr(cli, "_print_example", lambda run: None)  # there is no model
    monkeypatch.setitem(
        sys.modules,
        "reticent.stages.check",
        types.SimpleNamespace(check=lambda asked: [("steps", str(asked.train.steps)), ("epsilon", "8")]),
    )
    monkeypatch.delenv("RETICENT_TRACEBACK", raising=False)
    monkeypatch.chdir(tmp_path)
    return stand_in


def call(*arguments: str, code: int = 0):
    done = CliRunner().invoke(cli.app, list(arguments))
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done


@pytest.fixture
def my(stages) -> Stages:
    """A recipe my.yaml in the current folder."""
    call("new", "clinic", "my.yaml")
    return stages


def test_new_writes_a_recipe_and_never_over_a_file(stages):
    call("new")
    assert Path("clinic.yaml").read_text().startswith("# Generated clinical notes")
    Path("clinic.yaml").write_text("mine")
    assert "clinic.yaml exists and is not overwritten" in call("new", code=1).stderr
    assert Path("clinic.yaml").read_text() == "mine"
    call("new", "nonsense", code=2)


def test_check_prints_the_plan_and_makes_nothing(my):
    assert "steps    10\nepsilon  8\n" in call("check", "my.yaml", "-s", "train.steps=10").stdout
    assert not Path("runs").exists()


def test_run_does_all_stages_and_shows_the_table_and_the_report(my):
    out = call("run", "my.yaml").stdout
    assert my.ran == ASKED
    assert ["question", "measured", "verdict"] in [line.split() for line in out.splitlines()]
    assert "Prediction of new text" in out
    assert "report: runs/my/report.html" in out
    assert "epsilon 7.98 at delta 1e-05, per owner, add or remove one" in out


def test_a_finished_stage_is_skipped_and_again_redoes_it_and_later_ones(my):
    call("run", "my.yaml")
    told = call("train", "runs/my").stderr
    assert "train: already done in runs/my; --again redoes it" in told
    call("train", "my.yaml", "--again")
    assert my.ran == [*ASKED, "train"]
    assert not Run.open(Path("runs/my")).finished("audit")
    call("run", "my.yaml")
    assert my.ran == [*ASKED, "train", "audit", "evaluate", "report"]


def test_synthetic_text_is_made_where_the_recipe_asks_for_it(my):
    call("run", "my.yaml", "-s", "synthetic.records=5")
    assert my.ran == list(STAGES)
    assert "the recipe asks for no synthetic text" in call("synthesize", "my.yaml", "--run", "other", code=1).stderr


def test_a_stage_whose_earlier_stage_is_missing_says_which(my):
    assert "error: train needs prepare first: reticent prepare runs/my" in call("train", "my.yaml", code=1).stderr
    assert my.ran == []


def test_each_verb_shows_its_result(my):
    call("prepare", "my.yaml")
    assert "epsilon 7.98" in call("train", "my.yaml").stdout
    assert "Preference for planted secrets" in call("audit", "my.yaml").stdout
    assert "perplexity" in call("evaluate", "my.yaml").stdout
    assert "report: runs/my/report.html" in call("report", "my.yaml").stdout


def test_overrides_make_another_recipe_which_needs_again_or_another_folder(my):
    call("prepare", "my.yaml")
    refused = call("prepare", "runs/my", "-s", "train.steps=7", code=1).stderr
    assert "train.steps: 300 -> 7" in refused
    call("prepare", "runs/my", "-s", "train.steps=7", "--run", "runs/seven")
    assert Run.open(Path("runs/seven")).recipe.train.steps == 7
    call("prepare", "runs/my", "-s", "train.steps=8", "--again")
    assert Run.open(Path("runs/my")).recipe.train.steps == 8


def test_redoing_one_stage_never_takes_an_earlier_one_with_it(my):
    call("run", "my.yaml")
    told = call("evaluate", "my.yaml", "--again", "-s", "train.steps=7", code=1).stderr
    assert "train.steps differs from that of runs/my (300 -> 7), which takes train and all later stages" in told
    assert Run.open(Path("runs/my")).finished("report")


def test_ctrl_c_says_how_to_resume_and_the_next_call_does(my):
    my.raises["train"] = KeyboardInterrupt()
    assert "stopped; the same command resumes" in call("run", "my.yaml", code=1).stderr
    assert "stopped; the same command without --again resumes" in call("run", "my.yaml", "--again", code=1).stderr
    my.raises.clear()
    call("run", "my.yaml")
    assert my.ran == ["prepare", "train", "prepare", "train", "train", "audit", "evaluate", "report"]


def test_a_users_mistake_is_one_message(my):
    my.raises["prepare"] = DataError("notes.jsonl line 3 is not JSON")
    assert "error: notes.jsonl line 3 is not JSON\n" in call("run", "my.yaml", code=1).stderr
    assert "did you mean train.steps?" in call("run", "my.yaml", "-s", "train.step=1", code=1).stderr
    assert "cannot read the recipe none.yaml: No such file" in call("run", "none.yaml", code=1).stderr
    Path("empty").mkdir()
    assert "empty is not a run folder" in call("run", "empty", code=1).stderr


def test_an_unexpected_error_never_shows_its_text(my):
    my.raises["prepare"] = ValueError("the patient said")
    told = call("run", "my.yaml", code=1).stderr
    assert "unexpected error: ValueError in cli.py:" in told
    assert "RETICENT_TRACEBACK=1" in told
    assert "patient" not in told


def test_a_full_disk_anywhere_is_told(my):
    my.raises["train"] = OSError(28, "No space left on device", "runs/my/models/x")
    assert "error: No space left on device: runs/my/models/x" in call("run", "my.yaml", code=1).stderr


def test_the_traceback_is_there_when_asked_for(my, monkeypatch):
    monkeypatch.setenv("RETICENT_TRACEBACK", "1")
    my.raises["prepare"] = ValueError("all of it")
    done = CliRunner().invoke(cli.app, ["run", "my.yaml"])
    assert isinstance(done.exception, ValueError)


def test_show_tells_a_run_in_short(my):
    call("prepare", "my.yaml", "-s", "privacy.kind=none")
    out = call("show", "runs/my").stdout
    assert "done       prepare\n" in out
    assert "guarantee  none: trained without privacy" in out
    call("run", "my.yaml", "--again")
    out = call("show", "runs/my").stdout
    assert "done       prepare, train, audit, evaluate, report" in out
    assert "exposure_bits" in out
    assert "my.yaml is not a run folder" in call("show", "my.yaml", code=1).stderr


def test_progress_without_a_terminal_is_a_few_plain_lines(my, monkeypatch):
    told = call("prepare", "my.yaml").stderr
    assert told == "work on prepare: done in 0 s, loss 1.5\n"
    monkeypatch.setattr(console, "_PLAIN_SECONDS", 0)
    told = call("train", "my.yaml").stderr
    assert "work on train: 50%, 0 s left, loss 2.5\n" in told


def test_progress_on_a_terminal_draws_bars(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    progress = console.RichProgress()
    with progress.task("outer", total=1) as outer, progress.task("inner", total=2) as inner:
        inner.advance(2, note="loss [2.5]")
        outer.advance()
        progress.say("a line")
    told = capsys.readouterr().err
    assert "outer" in told
    assert "loss [2.5]" in told
    assert "a line" in told


def test_methods_of_one_measure_get_rows_of_their_own():
    import dataclasses

    one = measured("auc", "twin", 0.5)
    table = console.measured([dataclasses.replace(one, method=method) for method in ("loss", "min-k")])
    assert list(table.columns[0].cells) == ["auc (loss), bits", "auc (min-k), bits"]


def test_help_teaches_with_an_example_for_every_verb():
    group = typer.main.get_command(cli.app)
    assert isinstance(group, click.Group)
    verbs = [
        [name, *more]
        for name, command in group.commands.items()
        for more in ([[below] for below in command.commands] if isinstance(command, click.Group) else [[]])
    ]
    for verb in verbs:
        assert f"Example:\n    reticent {' '.join(verb)}" in call(*verb, "--help").stdout
    assert call("--version").stdout == f"reticent {cli.__version__}\n"
    assert "Did you mean 'train'?" in call("trian", code=2).stderr
