"""The benchmark's harness on a tiny random model: its contenders compute the same sum, and it says what it found."""

import json
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def engine(benchmark_script: Any) -> ModuleType:
    """The script as a module."""
    return benchmark_script("engine")


@pytest.fixture
def setup(engine: ModuleType) -> Any:
    """A tiny model and rows that do not hold a whole batch."""
    return engine.Setup(model="random-tiny", device="cpu", threads=1, tokens=80, max_tokens=48, file=None)


def race(engine: ModuleType, setup: Any, mode: str) -> Any:
    everyone = [contender.name for contender in engine.CONTENDERS]
    case = engine.Case(mode, "float32", "random", 12)  # more than a padded contender takes at once
    return engine.compare(setup, case, everyone, 2)


@pytest.mark.parametrize("mode", ["LoRA", "full"])
def test_every_contender_computes_the_sum_or_is_shown_at_fault(engine, setup, mode):
    outcome = race(engine, setup, mode)
    wrong = {name for name, error in outcome.errors.items() if error > 1e-5}
    assert wrong <= {"dp-lora ghost clipping"}  # its norms are bounds
    assert {"ours, packed", "non-private, padded", "Opacus hooks"} <= outcome.errors.keys()
    tied = any("tying" in fault for fault in outcome.faults.values())
    assert tied == (mode == "full")  # Opacus' ghost clipping refuses a head tied to the embedding
    assert all(name in engine.table(outcome) for name in outcome.errors | outcome.faults)


def test_the_reference_is_float64_up_to_the_loss(engine, setup):
    model = engine.twin(engine.build(setup, "LoRA", "float32"), "sdpa").double()
    units = engine.batches(engine.records(setup, "random"), 2, 1)[0]
    assert engine.record_losses(model, units).dtype == torch.float64


def test_about_half_of_the_units_are_clipped(engine, setup):
    model = engine.build(setup, "LoRA", "float32")
    units = engine.batches(engine.records(setup, "random"), 20, 1)[0]
    clip = engine.median_norm(model, units)
    norms = [norm for _, norm in engine.unit_gradients(engine.twin(model, "sdpa"), units)]
    assert sum(norm > clip for norm in norms) == 10


def test_contenders_share_weights_and_nothing_else(engine, setup):
    model = engine.build(setup, "full", "float32")
    other = engine.twin(model, "sdpa")
    weight, again = model.lm_head.weight, other.lm_head.weight
    assert weight.data_ptr() == again.data_ptr() and weight is not again
    assert other.model.embed_tokens.weight is again  # still tied
    assert (model.config._attn_implementation, other.config._attn_implementation) == ("reticent_segments", "sdpa")


def test_a_claim_is_the_median_of_ratios_within_rounds(engine):
    found = engine.claim("time", [1.0, 2.0, 30.0], [1.0, 4.0, 10.0, 7.0], 0.9)
    assert (found.ratio, found.holds) == (1.0, False)
    assert engine.claim("time", [1.0, 2.0], [2.0, 8.0], 3.0, least=True).ratio == 3.0
    assert engine.claim("memory", [1.0, 3.0], [2.0, 2.0], 0.5, worst=True).ratio == 1.5


def test_whole_steps_are_measured(engine, setup):
    whole = engine.steps(setup, engine.Case("LoRA", "float32", "random", 4), 2)
    assert [len(seconds) for seconds in whole.seconds.values()] == [2, 2]
    assert len(engine.claims_of_steps(whole)) == 1


def test_growth_is_measured_by_the_token(engine, setup, monkeypatch):
    monkeypatch.setattr(engine, "race", lambda tasks, rounds, device: {name: [1.0] * rounds for name in tasks})
    outcome = engine.growth(setup, engine.Case("LoRA", "float32", "random", 8), (2, 8), 2)
    tokens = [
        sum(len(unit.records[0]) for unit in units) for units in engine.batches(engine.records(setup, "random"), 8, 2)
    ]
    assert outcome.seconds["batch 8"] == [1 / count for count in tokens]


def test_memory_that_a_contender_frees_while_it_is_made_does_not_hide_the_step(engine, setup, monkeypatch):
    size = 64 * 2**20 // 4

    def wasteful(model: Any, clip: float, tokens: int) -> Any:
        waste = [torch.ones(2**16) for _ in range(800)]  # 200 MiB in pieces, which the heap keeps
        del waste
        return lambda units: {"sum": torch.ones(size)}

    monkeypatch.setattr(engine, "CONTENDERS", (engine.Contender("wasteful", wasteful, True),))
    found = engine.peak(setup, engine.Case("LoRA", "float32", "random", 8), "wasteful", 1.0, 0)
    assert found.start > 190 and 60 < found.step < 100


def test_a_reading_below_the_size_of_the_sum_is_refused(engine, setup, monkeypatch):
    monkeypatch.setattr(engine, "most", lambda device: 0)
    large = engine.Contender("large", lambda *made: lambda units: {"sum": torch.ones(2**23)}, True)
    monkeypatch.setattr(engine, "CONTENDERS", (large,))
    with pytest.raises(AssertionError, match="cannot hold a sum of 32 MiB"):
        engine.peak(setup, engine.Case("LoRA", "float32", "random", 8), "large", 1.0, 0)


def test_a_run_prints_and_writes_what_it_found(engine, tmp_path, capsys, monkeypatch):
    here = {
        engine.peak: lambda *values: engine.Peak(1.0, 1.0)
    }  # too little memory to be seen in a process that has had more
    monkeypatch.setattr(engine, "alone", lambda function, *values: here.get(function, function)(*values))
    path = tmp_path / "results" / "engine.json"
    options = "--quick --only lora growth --model random-tiny --source random --max-tokens 24 --batches 3 --rounds 1"
    claims = engine.main([*options.split(), "--json", str(path)])
    saved = json.loads(path.read_text())
    assert [row["metric"] for row in saved["rows"]] == [claim.metric for claim in claims]
    assert saved["versions"]["torch"] and saved["machine"]["threads"] == 1
    assert saved["table"] in capsys.readouterr().out


def test_records_come_from_a_file_of_any_known_form(engine, tmp_path):
    path = tmp_path / "notes.jsonl"
    path.write_text('{"input": "a", "output": "b"}\n{"input": "c", "output": "d"}\n')
    assert [(record.prompt, record.completion) for record in engine.read(path)] == [("a", "b"), ("c", "d")]


def test_records_of_an_unknown_form_are_refused(engine, tmp_path):
    path = tmp_path / "notes.jsonl"
    path.write_text('{"body": "secret"}\n')
    with pytest.raises(engine.DataError) as refused:
        engine.read(path)
    assert "secret" not in str(refused.value)
