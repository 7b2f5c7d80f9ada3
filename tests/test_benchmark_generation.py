"""The benchmark of generation on a tiny model: what is measured, and what is written."""

import json

import numpy as np
import pytest

from reticent.models.load import Loaded


class _Letters:
    eos_token_id = 1

    def apply_chat_template(self, talk, add_generation_prompt, return_dict):
        return [2 + ord(letter) % 60 for letter in talk[0]["content"][:20]]


@pytest.fixture
def script(benchmark_script, tiny, monkeypatch):
    found = benchmark_script("generation")
    monkeypatch.setattr(found, "load", lambda name: Loaded(tiny.model(), _Letters()))
    for name, value in {"QUESTIONS_QUICK": 6, "TURNS_QUICK": 2, "LENGTH_QUICK": 5, "BATCH": 4}.items():
        monkeypatch.setattr(found, name, value)
    return found


def test_rows_and_file(script, monkeypatch, tmp_path):
    choices = {**script.row("choices", [1.0], [1.0], [])._asdict(), "metric": "choices"}
    monkeypatch.setattr(script, "choices", lambda quick: [choices])
    found = script.main(["--quick", "--json", str(tmp_path / "new" / "generation.json")])
    assert [one["bound"] for one in found] == [1.5, 1.5, None]
    assert [one["same"] for one in found] == [True, True, None]
    written = json.loads((tmp_path / "new" / "generation.json").read_text())
    assert [one["metric"] for one in written["rows"]] == [one["metric"] for one in found]
    assert written["table"].count("\n") == 4


def test_both_sides_say_the_same(script, tiny):
    model = script.CausalModel(tiny.model())
    prompts = [np.arange(2, 4 + 3 * number) for number in range(9)]
    ours, plain = (side(model, prompts, 8, 9, None) for side in (script.ours, script.plain))
    assert [text.tolist() for text in ours] == [text.tolist() for text in plain]
    assert script.partings(model, prompts, ours, plain, 9) == []


def test_where_two_texts_part_both_tokens_are_scored(script, tiny):
    model, prompt = script.CausalModel(tiny.model()), np.array([3, 4])
    one, other = np.array([5, 6, 7]), np.array([5, 6])  # the other ended
    records = [tiny.record([3, 4, 5, 6, last], 4) for last in (7, 9)]
    logp = [scores.logp[0] for scores in model.log_probs(records)]
    found = script.partings(model, [prompt], [one], [other], 9)
    assert found == pytest.approx([abs(logp[0] - logp[1])], abs=1e-5)


def test_texts_that_part_for_no_rounding_break_the_claim(script):
    assert script.row("x", [3.0], [1.0], [1e-5]).holds
    assert not script.row("x", [3.0], [1.0], [1e-5, 0.5]).holds
    assert not script.row("x", [1.0], [1.0], []).holds


def test_questions_differ_and_are_the_same_each_time(script):
    first = script.questions(70)
    assert len(set(first)) == 70 and first == script.questions(70)
