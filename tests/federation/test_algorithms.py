"""Each algorithm against rounds worked out by hand or in plain numpy."""

import math

import numpy as np
import pytest
import torch

from reticent.errors import FederationError
from reticent.federation.algorithms import DEFAULTS, strategy_for

BETA1, BETA2, ETA, TAU = 0.9, 0.99, 1e-3, 1e-3


def _t(*values):
    return {"w": torch.tensor(values)}


def _sgd(correction, start, gradient_at, rate, steps):
    """Local SGD from ``start``; the weights after it, and what the correction gave."""
    weights = {name: value.clone() for name, value in start.items()}
    for _ in range(steps):
        gradients = {name: gradient_at(value) for name, value in weights.items()}
        correction.apply(gradients, weights)
        for name, value in weights.items():
            value.sub_(gradients[name], alpha=rate)
    return weights, correction.finish()


def test_fedavg_adds_the_mean_delta():
    strategy, weights = strategy_for("fedavg"), _t(1.0, 2.0)
    assert strategy.step(weights, _t(0.5, -1.0))["w"].tolist() == [1.5, 1.0]
    assert weights["w"].tolist() == [1.0, 2.0] and strategy.state() == {} and strategy.control is None


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadagrad", "fedyogi", "fedadam"])
def test_local_steps_stay_plain(name):
    gradients = _t(0.3)
    correction = strategy_for(name).correction(_t(1.0), None, None)
    correction.apply(gradients, _t(2.0))
    assert torch.equal(gradients["w"], _t(0.3)["w"]) and correction.finish() == (None, None)


def test_fedprox_adds_the_gradient_of_the_proximal_term():
    received, weights = _t(1.0, -2.0), torch.tensor([1.5, -1.0], requires_grad=True)
    (0.7 / 2 * (weights - received["w"]).square().sum()).backward()
    gradients = _t(0.1, 0.2)
    strategy_for("fedprox", mu=0.7).correction(received, None, None).apply(gradients, {"w": weights})
    torch.testing.assert_close(gradients["w"], torch.tensor([0.1, 0.2]) + weights.grad)


def test_fedprox_is_of_the_weights_received_even_if_they_are_those_in_training():
    weights = _t(1.0)
    correction = strategy_for("fedprox", mu=1.0).correction(weights, None, None)
    weights["w"].add_(2.0)
    gradients = _t(0.0)
    correction.apply(gradients, weights)
    assert gradients["w"].item() == 2.0


def test_a_fedprox_round_by_hand():
    """Loss w^2/2 from w = 1, rate 0.1, mu 0.5: 1 - .1*1 = .9; .9 - .1*(.9 + .5*(-.1)) = .815."""
    start = _t(1.0)
    end, _ = _sgd(strategy_for("fedprox", mu=0.5).correction(start, None, None), start, lambda w: w.clone(), 0.1, 2)
    assert end["w"].item() == pytest.approx(0.815)


def test_a_scaffold_round_by_hand():
    """Two sites pull to 0 and 4 from w = 1 with rate 0.1 and one step; controls begin at zero.

    Gradients: 1 and -3. Weights: .9 and 1.3, mean delta .1. Controls: 1 and -3, their deltas' mean -1.
    The next step is from 1.1 with c = -1: site one's gradient is 1.1 - 1 - 1 = -.9, to 1.19.
    """
    strategy, start, owns, ends = strategy_for("scaffold"), _t(1.0), [], []
    for target in (0.0, 4.0):
        correction = strategy.correction(start, strategy.control, None)
        end, (delta, own) = _sgd(correction, start, lambda w, target=target: w - target, 0.1, 1)
        assert torch.equal(delta["w"], own["w"])
        ends.append(end["w"].item())
        owns.append(own)
    assert ends == pytest.approx([0.9, 1.3]) and [own["w"].item() for own in owns] == pytest.approx([1.0, -3.0])
    weights = strategy.step(start, _t(0.1), control_delta=_t(-1.0))
    assert weights["w"].item() == pytest.approx(1.1) and strategy.control["w"].item() == pytest.approx(-1.0)
    end, _ = _sgd(strategy.correction(weights, strategy.control, owns[0]), weights, lambda w: w.clone(), 0.1, 1)
    assert end["w"].item() == pytest.approx(1.19)


def test_the_control_is_option_two_of_the_paper_for_sgd():
    """c_i - c + (w_received - w) / (steps rate), Karimireddy et al. 2020, line 12."""
    start, control, own = _t(1.0, -0.5), _t(0.3, 0.1), _t(-0.2, 0.4)
    scale = torch.tensor([1.0, 3.0])
    correction = strategy_for("scaffold").correction(start, control, own)
    end, (delta, new) = _sgd(correction, start, lambda w: w * scale - 0.7, 0.05, 7)
    paper = own["w"] - control["w"] + (start["w"] - end["w"]) / (7 * 0.05)
    torch.testing.assert_close(new["w"], paper)
    torch.testing.assert_close(delta["w"], paper - own["w"])


def test_the_control_does_not_depend_on_the_local_optimiser():
    """The paper's formula with Adam's steps would give signs divided by the rate, not gradients."""
    correction = strategy_for("scaffold").correction(_t(0.0), _t(0.5), _t(0.1))
    for value in (2.0, 4.0):
        correction.apply(_t(value), _t(0.0))
    assert correction.finish().own["w"].item() == 3.0


def test_scaffold_without_drift_between_sites_ends_where_every_site_is_at_rest():
    """Sites of different curvature: FedAvg's fixed point is off the optimum, SCAFFOLD's is on it."""
    curvature, target = (1.0, 10.0), (0.0, 1.0)
    optimum = 10.0 / 11.0

    def run(name):
        strategy, weights, owns = strategy_for(name), _t(5.0), [None, None]
        for _ in range(200):
            ends, deltas = [], []
            for k in range(2):
                correction = strategy.correction(weights, strategy.control, owns[k])
                end, done = _sgd(correction, weights, lambda w, k=k: curvature[k] * (w - target[k]), 0.05, 10)
                ends.append(end["w"] - weights["w"])
                if name == "scaffold":
                    owns[k] = done.own
                    deltas.append(done.control_delta["w"])
            mean = {"w": sum(deltas) / 2} if deltas else None
            weights = strategy.step(weights, {"w": sum(ends) / 2}, control_delta=mean)
        return abs(weights["w"].item() - optimum)

    assert run("scaffold") < 1e-4 < 0.05 < run("fedavg")


def test_a_share_of_the_sites_moves_the_control_by_that_share():
    strategy = strategy_for("scaffold")
    strategy.step(_t(0.0), _t(0.0), control_delta=_t(2.0), share=0.25)
    assert strategy.control["w"].item() == 0.5


def test_a_site_without_a_step_keeps_its_control():
    delta, own = strategy_for("scaffold").correction(_t(0.0), _t(1.0), _t(3.0)).finish()
    assert delta["w"].item() == 0.0 and own["w"].item() == 3.0


@pytest.mark.parametrize(("delta", "share"), [(None, 1.0), (_t(1.0), 0.0), (_t(1.0), 1.5)])
def test_scaffold_without_controls_or_with_an_odd_share_is_refused(delta, share):
    with pytest.raises(FederationError, match="control delta"):
        strategy_for("scaffold").step(_t(0.0), _t(0.0), control_delta=delta, share=share)


def test_two_rounds_of_fedavgm_by_hand():
    """m: 1, then .9 + 2 = 2.9; weights: 0, .5, 1.95."""
    strategy = strategy_for("fedavgm", beta1=0.9, eta=0.5)
    weights = strategy.step(_t(0.0), _t(1.0))
    assert weights["w"].item() == pytest.approx(0.5)
    assert strategy.step(weights, _t(2.0))["w"].item() == pytest.approx(1.95)


def test_the_first_round_of_fedadam_by_hand():
    """delta .3: m = .03, v = .99e-6 + .01*.09 = 9.0099e-4, step = 1e-3 * .03 / (.0300165 + .001) = 9.67226e-4."""
    assert strategy_for("fedadam").step(_t(0.0), _t(0.3))["w"].item() == pytest.approx(9.67226e-4, rel=1e-5)


def test_the_first_round_of_fedyogi_by_hand():
    """delta .3: v = 1e-6 + .01*.09 = 9.01e-4, step = 1e-3 * .03 / (.0300167 + .001) = 9.67221e-4."""
    assert strategy_for("fedyogi").step(_t(0.0), _t(0.3))["w"].item() == pytest.approx(9.67221e-4, rel=1e-5)


def test_the_first_round_of_fedadagrad_by_hand():
    """delta .3: m = .3, v = .090001, step = 1e-3 * .3 / (.3000017 + .001) = 9.96672e-4."""
    assert strategy_for("fedadagrad").step(_t(0.0), _t(0.3))["w"].item() == pytest.approx(9.96672e-4, rel=1e-5)


def _adaptive(name, weights, deltas, beta1):
    """Reddi et al. 2021, algorithm 2, in float64."""
    m, v = np.zeros_like(weights), np.full_like(weights, TAU**2)
    for delta in deltas:
        m = beta1 * m + (1 - beta1) * delta
        if name == "fedadagrad":
            v = v + delta**2
        elif name == "fedyogi":
            v = v - (1 - BETA2) * delta**2 * np.sign(v - delta**2)
        else:
            v = BETA2 * v + (1 - BETA2) * delta**2
        weights = weights + ETA * m / (np.sqrt(v) + TAU)
    return weights


@pytest.mark.parametrize(
    ("name", "beta1"), [("fedadagrad", 0.0), ("fedadagrad", 0.5), ("fedyogi", BETA1), ("fedadam", BETA1)]
)
def test_five_adaptive_rounds_follow_the_paper(name, beta1):
    rng = np.random.default_rng(0)
    start, deltas = rng.standard_normal(50), rng.standard_normal((5, 50)) * np.logspace(-5, 0, 50)
    strategy, weights = strategy_for(name, beta1=beta1), {"w": torch.tensor(start, dtype=torch.float32)}
    for delta in deltas:
        weights = strategy.step(weights, {"w": torch.tensor(delta, dtype=torch.float32)})
    np.testing.assert_allclose(weights["w"], _adaptive(name, start, deltas, beta1), rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_loaded_state_goes_on_identically(name):
    def step(strategy, weights, value):
        return strategy.step(weights, _t(value, -value), control_delta=_t(value, 1.0), share=0.5)

    first, second = strategy_for(name), strategy_for(name)
    weights = step(first, _t(0.0, 0.0), 1.0)
    second.load({key: value.clone() for key, value in first.state().items()})
    for value in (0.25, -3.0):
        mine, loaded = step(first, weights, value), step(second, weights, value)
        assert torch.equal(mine["w"], loaded["w"])
    assert all(torch.equal(value, second.state()[key]) for key, value in first.state().items())
    assert first.state().keys() == second.state().keys()


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_state_before_the_first_round_is_empty_and_loads(name):
    strategy = strategy_for(name)
    assert strategy.state() == {}
    strategy.load({})
    assert strategy.control is None


def test_the_state_of_another_algorithm_is_refused():
    adam = strategy_for("fedadam")
    adam.step(_t(0.0), _t(1.0))
    with pytest.raises(FederationError, match="another algorithm"):
        strategy_for("fedavgm").load(adam.state())


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_mean_of_other_tensors_is_refused(name):
    with pytest.raises(FederationError, match="v is in one of them only"):
        strategy_for(name).step(_t(0.0), {"v": torch.zeros(1)}, control_delta=_t(0.0))


@pytest.mark.parametrize("name", ["fedprox", "scaffold"])
def test_gradients_of_other_tensors_are_refused(name):
    with pytest.raises(FederationError, match="gradient"):
        strategy_for(name).correction(_t(0.0), None, None).apply({"v": torch.zeros(1)}, _t(0.0))


def test_an_own_control_of_other_tensors_is_refused():
    with pytest.raises(FederationError, match="own control"):
        strategy_for("scaffold").correction(_t(0.0), None, {"v": torch.zeros(1)})


@pytest.mark.parametrize(
    ("name", "settings", "fault"),
    [
        ("fedsgd", {}, "fedavg, fedprox, scaffold, fedavgm, fedadagrad, fedyogi, fedadam"),
        ("fedavg", {"mu": 0.1}, "no setting mu"),
        ("fedprox", {"mu": -1.0}, "mu must be positive"),
        ("fedadam", {"beta1": 1.0}, "beta1 must be at least 0 and below 1"),
        ("fedadam", {"tau": math.nan}, "tau must be positive"),
    ],
)
def test_an_unknown_name_or_setting_is_refused(name, settings, fault):
    with pytest.raises(FederationError, match=fault):
        strategy_for(name, **settings)
