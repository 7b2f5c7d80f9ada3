"""Students, their vocabulary and accuracy; texts as points; classifiers."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from reticent.gradients.attention import use_segments
from reticent.gradients.rows import Unit
from reticent.models.language_model import CausalModel
from reticent.privacy.plan import nonprivate_plan
from reticent.statistics import clopper_pearson
from reticent.tokens import Tokens
from reticent.training import loop
from reticent.utility import student as students
from reticent.utility.embeddings import embed
from reticent.utility.labels import Labelled, classified, majority


def _tokens(*ids: int) -> Tokens:
    return Tokens(np.array(ids, dtype=np.int64), np.arange(len(ids)) > 0)


# --------------------------------------------------------------------------------------------------------- students


def test_the_commonest_tokens_are_known_and_others_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(students, "MOST_TOKENS", 3)
    vocabulary = students.Vocabulary([[_tokens(90, 90, 70, 90)], [_tokens(70, 50)]])
    assert len(vocabulary) == 3
    assert vocabulary([_tokens(50, 70, 90, 1234)])[0].ids.tolist() == [0, 2, 1, 0]


def test_both_sides_are_cut_to_the_tokens_of_the_smaller() -> None:
    small, large = [_tokens(*range(5))] * 4, [_tokens(*range(7))] * 9
    ours, theirs = students.same_size(small, large)
    assert len(ours) == 4 and len(theirs) == 3  # 20 tokens of 20, and 21 of 63


def test_steps_are_passes_between_bounds() -> None:
    asked = {"passes": 3, "tokens_a_step": 10, "least": 5, "most": 50}
    assert [students.steps_for(tokens, **asked) for tokens in (1, 100, 10**6)] == [5, 30, 50]


def test_a_student_is_small_and_the_same_for_the_same_seed() -> None:
    one, same, other = (students.student(1000, 20, seed=seed) for seed in (1, 1, 2))
    assert 5e5 < sum(parameter.numel() for parameter in one.parameters()) < 2e6
    weights = [torch.cat([value.flatten() for value in model.parameters()]) for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_student_learns_a_cycle_and_is_scored_by_hand(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    cycle = list(itertools.islice(itertools.cycle([1, 2, 3, 4]), 16))
    records = [_tokens(*cycle[start:]) for start in rng.integers(0, 4, 20)]
    model = students.student(6, 20, seed=1)
    settings = loop.Settings(3e-3, 0.0, "adamw", 0.0, 0.9, 0.999, 0.0, "constant", 0, "sum", 512, 100, False, 1)
    loop.train(
        model,
        [Unit(str(number), (one,)) for number, one in enumerate(records)],
        nonprivate_plan(unit="text", units=20, batch_size=10, steps=12),
        settings,
        loop.Files(tmp_path / "ledger", tmp_path / "log", tmp_path / "checkpoint"),
    )
    hits = students.next_tokens(CausalModel(model), [_tokens(1, 2, 3, 4, 1), _tokens(3, 4, 0, 2)])
    assert hits.asked.tolist() == [4, 3]
    assert hits.right[0] == 4
    assert hits.right[1] <= 2  # a token that it does not know is missed, whatever it says


def test_accuracy_is_that_of_all_tokens() -> None:
    hits = students.Hits(np.array([1, 2, 3]), np.array([2, 8, 5]))
    found = students.accuracy(hits, ["a", "b", "c"], rng=np.random.default_rng(1))
    assert found.value == pytest.approx(6 / 15)


def test_no_right_token_still_has_an_interval() -> None:
    hits = students.Hits(np.zeros(9), np.full(9, 5))
    assert students.accuracy(hits, range(9), rng=np.random.default_rng(1)).interval == clopper_pearson(0, 9)


def test_what_is_reached_is_a_ratio_of_sums() -> None:
    ours = students.Hits(np.array([2, 1, 4]), np.array([9, 9, 9]))
    theirs = students.Hits(np.array([4, 0, 6]), np.array([9, 9, 9]))
    found = students.reached(ours, theirs, ["a", "b", "c"], rng=np.random.default_rng(1))
    assert found is not None and found.value == pytest.approx(7 / 10)
    nothing = students.Hits(np.zeros(3), np.full(3, 9))
    assert students.reached(ours, nothing, ["a", "b", "c"], rng=np.random.default_rng(1)) is None


def test_the_floor_is_the_commonest_learned_token() -> None:
    assert students.commonest([_tokens(5, 2, 2, 3)], [_tokens(2, 2, 3, 2)]) == pytest.approx(2 / 3)


# ------------------------------------------------------------------------------------------------------- embeddings


def _model() -> CausalModel:
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = LlamaForCausalLM(config).eval()
    return CausalModel(model)


def test_a_text_is_the_mean_of_its_own_states_whatever_stands_beside_it() -> None:
    rng = np.random.default_rng(1)
    texts = [rng.integers(0, 20, length) for length in (5, 1, 9, 3)]
    plain = _model()
    with torch.no_grad():
        alone = [
            plain.model.base_model(torch.from_numpy(text)[None]).last_hidden_state[0].mean(dim=0).numpy()
            for text in texts
        ]
    use_segments(plain.model)
    assert np.allclose(embed(plain, texts), np.stack(alone), atol=1e-5)


def test_a_text_without_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 hold none"):
        embed(_model(), [np.array([1]), np.array([], dtype=np.int64)])


# ------------------------------------------------------------------------------------------------------ classifiers


def _labelled(count: int, seed: int) -> Labelled:
    rng = np.random.default_rng(seed)
    labels = rng.choice(["heart", "lung"], count).tolist()
    words = {"heart": ["beat", "pulse", "vein"], "lung": ["cough", "breath", "wheeze"]}
    return Labelled([" ".join(rng.choice([*words[label], "the", "of"], 6)) for label in labels], labels)


def test_labels_that_words_tell_are_learned() -> None:
    assert classified(_labelled(60, 1), _labelled(60, 2), seed=1).mean() > 0.9


def test_shuffled_labels_are_not_learned() -> None:
    learned = _labelled(200, 3)
    mixed = Labelled(learned.texts, np.random.default_rng(4).permutation(learned.labels).tolist())
    assert classified(mixed, _labelled(200, 5), seed=1).mean() < 0.75


def test_the_majority_is_that_of_what_was_learned() -> None:
    assert majority(Labelled(["a"] * 3, ["x", "x", "y"]), Labelled(["b"] * 4, ["x", "y", "y", "y"])) == 0.25


def test_as_many_labels_as_texts_are_no_mistake() -> None:
    texts = [f"word{number}" for number in range(12)]
    assert classified(Labelled(texts, texts), Labelled(texts, texts), seed=1).all()


def test_one_label_cannot_be_learned() -> None:
    with pytest.raises(ValueError, match="got 1 labels"):
        classified(Labelled(["a b"] * 3, ["x"] * 3), Labelled(["a"], ["x"]), seed=1)


def test_labelled_texts_are_never_shown() -> None:
    assert "beat" not in repr(Labelled(["beat"], ["heart"]))
