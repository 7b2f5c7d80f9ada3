"""Membership scores: values against the published formulas, orientation on an overfit model, refusals."""

import copy
import itertools
import zlib

import numpy as np
import pytest
import torch
from scipy.stats import norm

from reticent.attacks import scores
from reticent.attacks.gradient_norm import gradient_norm
from reticent.errors import ModelError
from reticent.gradients.attention import use_segments
from reticent.models.language_model import CausalModel, TokenScores
from reticent.statistics import auc


def _logp(*records: list[float]) -> list[np.ndarray]:
    return [np.array(record, dtype=np.float32) for record in records]


def test_a_likelier_record_scores_higher() -> None:
    assert scores.loss(_logp([-1, -3], [-4])).tolist() == [-2, -4]


def test_the_difference_takes_out_what_the_base_model_knew() -> None:
    # The first is easy for both, the second was learned.
    result = scores.loss_difference(_logp([-1, -1], [-2, -2]), _logp([-1, -1], [-6, -4]))
    assert result.tolist() == [0, 3]


def test_bad_records_are_named() -> None:
    with pytest.raises(ValueError, match="record 1 has no token"):
        scores.loss(_logp([-1], []))
    with pytest.raises(ValueError, match=r"record 1 .* not finite"):
        scores.loss(_logp([-1, -1], [-1, float("nan")], [-1]))
    with pytest.raises(ValueError, match="record 1 has shape"):
        scores.loss_difference(_logp([-1], [-1]), _logp([-1], [-1, -2]))
    with pytest.raises(ValueError, match="target holds 1 records, base 0"):
        scores.loss_difference(_logp([-1]), [])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scores.zlib(_logp([-1]), []), "1 records but 0 texts"),
        (lambda: scores.min_k(_logp([-1]), 0), "share must be above 0"),
        (lambda: scores.min_k_plus([TokenScores(np.array([-1.0]), np.array([True]))]), "vocabulary=True"),
        (lambda: scores.window(_logp([-1]), 0), "width must be at least 1"),
        (lambda: scores.wbc(_logp([-1]), _logp([-1]), ()), "widths must be"),
        (lambda: scores.ez([], [], 0), "constant must be above 0"),
        (lambda: scores.attack_p(np.zeros(2), np.zeros(0)), "calibration holds no score"),
        (lambda: scores.attack_p(np.array([np.nan]), np.zeros(1)), "must be finite"),
        (lambda: scores.rmia(np.zeros(2), np.zeros((1, 3)), np.zeros(1), np.zeros((1, 1))), "twins must be"),
        (lambda: scores.rmia(np.zeros(1), np.zeros((1, 1)), np.zeros(1), np.zeros((1, 1)), a=2), "a must lie"),
        (
            lambda: scores.rmia(
                np.zeros(2), np.zeros((1, 2)), np.zeros(1), np.zeros((1, 1)), trained=np.array([[False, True]])
            ),
            "record 1 was trained on by every twin",
        ),
        (lambda: scores.lira(np.zeros(1), np.zeros((3, 1)), np.array([[1], [0], [0]])), "record 0 has 1 twins"),
        (lambda: scores.lira_offline(np.zeros(1), np.zeros((1, 1))), "record 0 has 1 twins"),
        (lambda: scores.lira(np.zeros(1), np.zeros((3, 1)), np.zeros((2, 1))), "trained must have shape"),
    ],
)
def test_what_cannot_be_scored_is_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_no_records_give_no_scores() -> None:
    assert all(len(found) == 0 for found in scores.from_two_models([], [], []).values())


# --- the published formulas, token by token ---


@pytest.fixture
def pair() -> tuple[list[TokenScores], list[TokenScores]]:
    """Random scores of 60 records of 1 to 90 tokens under two models."""
    rng = np.random.default_rng(0)

    def one(n: int) -> TokenScores:
        values = [rng.exponential(2, n), rng.exponential(3, n), rng.uniform(0.1, 2, n)]
        logp, mean, deviation = (value.astype(np.float32) for value in values)
        return TokenScores(-logp, rng.random(n) < 0.5, -mean, deviation)

    lengths = [1, 2, 3, 4, 5, 9, 10, 39, 40, 41, 49, 50, 51, *rng.integers(1, 91, 47).tolist()]
    return [one(n) for n in lengths], [one(n) for n in lengths]


def _of(records: list[TokenScores]) -> list[np.ndarray]:
    return [record.logp for record in records]


def _equal(found: np.ndarray, expected: list[float]) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_min_k_is_the_published_formula(pair) -> None:
    for share in (0.05, 0.1, 0.2, 0.6, 1.0):
        expected = [np.mean(sorted(map(float, r))[: max(1, int(len(r) * share + 1e-9))]) for r in _of(pair[0])]
        _equal(scores.min_k(_of(pair[0]), share), expected)


def test_min_k_plus_is_the_published_formula(pair) -> None:
    expected = []
    for r in pair[0]:
        z = sorted((float(p) - float(m)) / float(s) for p, m, s in zip(r.logp, r.mean, r.deviation, strict=True))
        expected.append(np.mean(z[: max(1, len(z) // 5)]))
    _equal(scores.min_k_plus(pair[0]), expected)


def test_min_k_plus_of_a_certain_model_is_finite() -> None:
    zero = np.zeros(3, dtype=np.float32)
    assert scores.min_k_plus([TokenScores(zero, zero == 0, zero, zero)]).tolist() == [0]


def test_zlib_is_the_published_formula(pair) -> None:
    texts = ["ab" * i + "é" for i in range(60)]
    expected = [
        np.mean(r, dtype=float) / len(zlib.compress(t.encode())) for r, t in zip(_of(pair[0]), texts, strict=True)
    ]
    _equal(scores.zlib(_of(pair[0]), texts), expected)


def test_wbc_is_the_published_formula(pair) -> None:
    target, base = _of(pair[0]), _of(pair[1])
    expected = []
    for ours, theirs in zip(target, base, strict=True):
        shares = []
        for width in (2, 3, 4, 6, 9, 13, 18, 25, 32, 40):
            windows = range(len(ours) - width + 1)
            won = [sum(map(float, -theirs[i : i + width])) > sum(map(float, -ours[i : i + width])) for i in windows]
            if won:
                shares.append(np.mean(won))
        expected.append(np.mean(shares) if shares else float(ours[0] > theirs[0]))
    _equal(scores.wbc(target, base), expected)


def test_ez_is_the_published_quotient_with_a_constant_on_both_sides(pair) -> None:
    expected = []
    for ours, theirs in zip(pair[0], _of(pair[1]), strict=True):
        tokens = [(float(a) - float(b), bool(hit)) for a, b, hit in zip(ours.logp, theirs, ours.hit, strict=True)]
        wrong = [gain for gain, hit in tokens if not hit]
        up = sum(max(gain, 0) for gain in (wrong or [gain for gain, _ in tokens]))
        expected.append(np.log((up + 0.1) / (sum(max(-gain, 0) for gain in wrong) + 0.1)))
    _equal(scores.ez(pair[0], _of(pair[1])), expected)


def test_ez_calls_wholly_remembered_text_a_member() -> None:
    remembered = TokenScores(np.zeros(9, dtype=np.float32), np.ones(9, dtype=bool))
    half = TokenScores(np.full(9, -1, dtype=np.float32), np.arange(9) % 2 == 0)
    base = _logp([-2] * 9, [-2] * 9)
    first, second = scores.ez([remembered, half], base)
    assert first > second > 0


def test_the_window_slides_token_by_token(pair) -> None:
    for width in (1, 7, 50):
        expected = [
            max(np.mean(r[i : i + width], dtype=float) for i in range(max(1, len(r) - width + 1))) for r in _of(pair[0])
        ]
        _equal(scores.window(_of(pair[0]), width), expected)


def test_many_records_are_scored_in_parts(pair, monkeypatch) -> None:
    texts = ["ab" * i for i in range(60)]
    whole = scores.from_two_models(*pair, texts)
    monkeypatch.setattr(scores, "_AT_ONCE", 7)
    parts = scores.from_two_models(*pair, texts)
    assert len(whole) == 11 and whole.keys() == parts.keys()
    for name, values in whole.items():
        _equal(parts[name], values.tolist())


def test_losses_are_divided(pair) -> None:
    target, base = _of(pair[0]), _of(pair[1])
    ours, theirs = ([-float(r.mean(dtype=float)) for r in side] for side in (target, base))
    _equal(scores.loss_ratio(target, base), [-a / b for a, b in zip(ours, theirs, strict=True)])
    _equal(scores.lowercase(target, base), [b / a for a, b in zip(ours, theirs, strict=True)])
    _equal(scores.recall(target, base), [b / a for a, b in zip(ours, theirs, strict=True)])


def test_losses_of_zero_say_nothing_where_both_are_zero() -> None:
    certain, unsure = _logp([0, 0]), _logp([-1, -1])
    assert scores.loss_ratio(certain, certain) == -1
    assert scores.loss_ratio(certain, unsure) > -1 > scores.loss_ratio(unsure, certain)


def test_neighbours_are_averaged() -> None:
    found = scores.neighbour(_logp([-1, -2], [-3]), [np.array([2.0, 4.0]), np.array([3.0])])
    assert found.tolist() == [1.5, 0]


def test_attack_p_counts_non_members_that_are_no_better_liked() -> None:
    found = scores.attack_p(np.array([-5, -3, -2.5, 0]), np.array([-4, -3, -2, -1]))
    assert found.tolist() == [0, 0.5, 0.5, 1]


def test_rmia_is_the_published_formula() -> None:
    rng = np.random.default_rng(0)
    target, twins, trained = -rng.exponential(1, 9), -rng.exponential(1, (4, 9)), rng.random((4, 9)) < 0.5
    trained[0] = False
    known, known_twins = -rng.exponential(1, 13), -rng.exponential(1, (4, 13))
    for a, gamma in itertools.product((0.3, 1.0), (1.0, 2.0)):
        z = [np.exp(known[j]) / (((1 + a) * np.exp(known_twins[:, j]).mean() + 1 - a) / 2) for j in range(13)]
        expected = []
        for i in range(9):
            out = np.mean([np.exp(twins[k, i]) for k in range(4) if not trained[k, i]])
            own = np.exp(target[i]) / (((1 + a) * out + 1 - a) / 2)
            expected.append(np.mean([own / other > gamma for other in z]))
        _equal(scores.rmia(target, twins, known, known_twins, trained=trained, a=a, gamma=gamma), expected)


@pytest.mark.parametrize("count", [8, 64])
def test_lira_is_the_published_formula(count) -> None:
    rng = np.random.default_rng(0)
    target, twins = rng.normal(size=5), rng.normal(size=(count, 5))
    trained = np.stack([rng.permutation(count) % 2 == 0 for _ in range(5)], axis=1)
    within = [[twins[trained[:, i] == side, i] for i in range(5)] for side in (True, False)]
    expected, offline = [], []
    for i in range(5):
        sides = []
        for groups in within:
            pooled = np.sqrt(np.mean([group.var(ddof=1) for group in groups]))  # equal counts
            sides.append((groups[i].mean(), pooled if count < 64 else groups[i].std(ddof=1)))
        expected.append(norm.logpdf(target[i], *sides[0]) - norm.logpdf(target[i], *sides[1]))
        offline.append(norm.ppf(norm.cdf(target[i], *sides[1])))
    _equal(scores.lira(target, twins, trained), expected)
    _equal(scores.lira_offline(target, twins, trained), offline)


def test_lira_of_equal_twins_is_finite() -> None:
    trained = np.array([[True], [True], [False], [False]])
    assert np.isfinite(scores.lira(np.zeros(1), np.zeros((4, 1)), trained)).all()


# --- orientation: on a model that was overfit on the members ---

LENGTH, MEMBERS = 20, 40


def _fit(model, ids, weights, steps):
    """Trains on ``ids`` (records, tokens), weighted; the first token is given."""
    optimizer = torch.optim.AdamW(model.requires_grad_(True).parameters(), lr=1e-2, weight_decay=0.0)
    weights = torch.as_tensor(weights, dtype=torch.float32) / sum(weights)
    for _ in range(steps):
        logp = model(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
        nll = -logp.gather(2, ids[:, 1:, None])[..., 0].mean(1)
        optimizer.zero_grad()
        (nll * weights).sum().backward()
        optimizer.step()
    model.requires_grad_(False)
    use_segments(model)
    return model


class _World:
    """Random records, half of them members of the target; twins trained on other halves; the base was not trained."""

    def __init__(self, tiny):
        rng = np.random.default_rng(0)
        self.tiny, self.rng = tiny, rng
        ids = rng.integers(2, 60, (2 * MEMBERS + 20, LENGTH))
        self.ids, self.known = ids[: 2 * MEMBERS], ids[2 * MEMBERS :]
        self.member = np.arange(2 * MEMBERS) % 2 == 0
        plain = tiny.plain(tiny.model())
        self.base_model = tiny.model()
        self.trained = np.stack([rng.permutation(2 * MEMBERS) < MEMBERS for _ in range(4)])
        self.model = self._fit(plain, self.member, 60)
        self.twins = [CausalModel(self._fit(plain, chosen, 60)) for chosen in self.trained]
        self.target, self.base = CausalModel(self.model), CausalModel(self.base_model)

    def _fit(self, plain, chosen, steps):
        return _fit(copy.deepcopy(plain), torch.from_numpy(self.ids[chosen]), np.ones(chosen.sum()), steps)

    def scored(self, model, ids, vocabulary=False):
        return model.log_probs([self.tiny.record(row.tolist()) for row in ids], vocabulary=vocabulary)

    def losses(self, model, ids):
        return scores.loss(_of(self.scored(model, ids)))

    def changed(self, share):
        """The records with some tokens exchanged."""
        swap = self.rng.random(self.ids.shape) < share
        return np.where(swap, self.rng.integers(2, 60, self.ids.shape), self.ids)


@pytest.fixture(scope="module")
def world(tiny):
    return _World(tiny)


@pytest.fixture(scope="module")
def every(world):
    """All attacks on the overfit model."""
    target, base = (world.scored(model, world.ids, vocabulary=True) for model in (world.target, world.base))
    texts = [" ".join(map(str, row)) for row in world.ids]
    found = scores.from_two_models(target, base, texts)
    logp = _of(target)
    prefixed = np.concatenate([np.tile(world.known[0], (len(world.ids), 1)), world.ids], axis=1)
    after = world.target.log_probs([world.tiny.record(row.tolist(), LENGTH + 1) for row in prefixed])
    found["recall"] = scores.recall(logp, _of(after))
    found["lowercase"] = scores.lowercase(logp, _of(world.scored(world.target, world.changed(0.3))))
    beside = np.stack([-world.losses(world.target, world.changed(0.25)) for _ in range(4)], axis=1)
    found["neighbour"] = scores.neighbour(logp, list(beside))
    known, own = world.losses(world.target, world.known), scores.loss(logp)
    found["attack_p"] = scores.attack_p(own, known)
    twins = np.stack([world.losses(twin, world.ids) for twin in world.twins])
    known_twins = np.stack([world.losses(twin, world.known) for twin in world.twins])
    lacking = ~(world.trained.all(axis=0))
    enough = (world.trained.sum(axis=0) == 2) & lacking
    usable = {"rmia": lacking, "lira": enough, "lira_offline": enough}
    found["rmia"] = scores.rmia(
        own[lacking], twins[:, lacking], known, known_twins, trained=world.trained[:, lacking], a=0.3
    )
    found["lira"] = scores.lira(own[enough], twins[:, enough], world.trained[:, enough])
    found["lira_offline"] = scores.lira_offline(own[enough], twins[:, enough], world.trained[:, enough])
    found["gradient_norm"] = gradient_norm(world.model, [world.tiny.record(row.tolist()) for row in world.ids])
    return {
        name: (values, world.member[usable[name]] if name in usable else world.member) for name, values in found.items()
    }


ATTACKS = (
    *("loss", "perplexity", "min_k", "window", "loss_difference", "loss_ratio", "normalised_perplexity", "wbc", "ez"),
    *("min_k_plus", "zlib", "recall", "lowercase", "neighbour", "attack_p", "rmia", "lira", "lira_offline"),
    "gradient_norm",
)


def test_no_attack_is_left_out(every) -> None:
    assert set(every) == set(ATTACKS)


@pytest.mark.parametrize("attack", ATTACKS)
def test_members_score_higher(every, attack) -> None:
    values, member = every[attack]
    assert auc(values[member], values[~member]).value > 0.85


@pytest.mark.parametrize("attack", ATTACKS)
def test_permuted_labels_find_nothing(every, attack) -> None:
    values, member = every[attack]
    rng = np.random.default_rng(1)
    found = []
    for _ in range(200):
        shuffled = rng.permutation(member)
        found.append(auc(values[shuffled], values[~shuffled]).value)
    assert abs(np.mean(found) - 0.5) < 0.03


def test_a_model_that_was_not_trained_is_silent(world) -> None:
    base = world.scored(world.base, world.ids, vocabulary=True)
    other = world.scored(CausalModel(world.tiny.model(seed=5)), world.ids, vocabulary=True)
    for values in scores.from_two_models(base, other).values():
        low, high = auc(values[world.member], values[~world.member], level=0.999).interval
        assert low <= 0.5 <= high


def test_more_copies_score_higher(tiny) -> None:
    rng = np.random.default_rng(2)
    ids, copies = rng.integers(2, 60, (40, 12)), np.repeat([0, 1, 10, 100], 10)
    trained = copies > 0
    base = tiny.model()
    model = _fit(tiny.plain(base), torch.from_numpy(ids[trained]), copies[trained], 50)
    records = [tiny.record(row.tolist()) for row in ids]
    target, before = (CausalModel(one).log_probs(records, vocabulary=True) for one in (model, base))
    for name, values in scores.from_two_models(target, before).items():
        means = [values[copies == count].mean() for count in (0, 1, 10, 100)]
        # A share of windows cannot rise above 1, so the highest may tie; a certain token's standard score is 0.
        assert means[0] < means[1] < means[2] and (means[2] <= means[3] or name == "min_k_plus"), (name, means)


# --- the gradient ---


def test_the_gradient_norm_is_that_of_autograd(tiny) -> None:
    model, records = tiny.model(), [tiny.record([2, 9, 4, 7], 2), tiny.record([3, 3, 3])]
    plain = tiny.plain(model).requires_grad_(True)
    expected = []
    for record in records:
        plain.zero_grad()
        at = np.flatnonzero(record.trained)
        logp = plain(input_ids=torch.from_numpy(record.ids)[None]).logits[0].log_softmax(-1)
        (-logp[at - 1, record.ids[at]].mean()).backward()
        expected.append(-float(torch.cat([p.grad.flatten() for p in plain.parameters()]).norm()))
    np.testing.assert_allclose(gradient_norm(model, records), expected, rtol=1e-4)
    assert not any(p.requires_grad for p in model.parameters())


def test_the_gradient_norm_is_over_trained_parameters_without_dropout(tiny) -> None:
    model = tiny.lora(tiny.model(), lora_dropout=0.5).train()
    record = tiny.record([2, 9, 4, 7], 2)
    first, second = gradient_norm(model, [record, record])
    assert first == second < 0 and model.training
    assert sum(p.requires_grad for p in model.parameters()) > 0


def test_a_gradient_that_is_not_finite_is_named(tiny) -> None:
    model = tiny.model()
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("nan")
    with pytest.raises(ModelError, match="record 1 is not finite"):
        gradient_norm(model, [tiny.record([2, 3]), tiny.record([7, 3])])
