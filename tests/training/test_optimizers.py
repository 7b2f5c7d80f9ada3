"""Optimisers against their formulas, written out slowly."""

import copy
import io

import numpy as np
import pytest
import torch

from reticent.errors import PrivacyError
from reticent.training.optimizers import FLOOR, optimizer_for

STEPS = 12


def _make(parameter, name, **changes):
    values = {"weight_decay": 0.0, "momentum": 0.0, "beta1": 0.9, "beta2": 0.99, **changes}
    return optimizer_for([parameter], name, **values)


def _set(optimizer, lr, variance):
    for group in optimizer.param_groups:
        group["lr"], group["noise_variance"] = lr, variance


def _run(name, gradients, lrs, variances, start, **changes):
    parameter = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32))
    optimizer = _make(parameter, name, **changes)
    for gradient, lr, variance in zip(gradients, lrs, variances, strict=True):
        _set(optimizer, lr, variance)
        parameter.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
    return parameter.detach().numpy()


@pytest.fixture
def course():
    """Gradients, learning rates, noise variances that change, and the start."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((STEPS, 5)), rng.uniform(0.01, 0.1, STEPS), rng.uniform(0.1, 2, STEPS), rng.random(5)


def _dp_adam(gradients, lrs, variances, w, beta1, beta2, decay):
    """Tang et al. 2024, algorithm 1, with every average summed anew at every step."""
    for t in range(1, len(gradients) + 1):
        w1 = np.array([(1 - beta1) * beta1 ** (t - 1 - i) for i in range(t)]) / (1 - beta1**t)
        w2 = np.array([(1 - beta2) * beta2 ** (t - 1 - i) for i in range(t)]) / (1 - beta2**t)
        phi = w2 @ variances[:t]
        v = np.maximum(w2 @ gradients[:t] ** 2 - phi, FLOOR * phi)
        w = w * (1 - lrs[t - 1] * decay) - lrs[t - 1] * (w1 @ gradients[:t]) / np.sqrt(v)
    return w


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_dp_adam_is_its_formula_also_when_the_noise_changes(course, decay):
    found = _run("dp-adam", *course, weight_decay=decay)
    np.testing.assert_allclose(found, _dp_adam(*course, 0.9, 0.99, decay), rtol=2e-5)


def test_dp_adam_with_hardly_any_noise_is_adamw(course):
    gradients, lrs, _, start = course
    tiny = np.full(STEPS, 1e-12)
    found, adamw = (_run(name, gradients, lrs, tiny, start, weight_decay=0.1) for name in ("dp-adam", "adamw"))
    np.testing.assert_allclose(found, adamw, rtol=1e-5)


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.2), (0.0, 0.2)])
def test_sgd_is_its_formula_with_decay_outside_the_momentum(course, momentum, decay):
    gradients, lrs, variances, start = course
    w, moved = start, 0.0
    for gradient, lr in zip(gradients, lrs, strict=True):
        moved = momentum * moved + gradient
        w = w * (1 - lr * decay) - lr * moved
    found = _run("sgd", gradients, lrs, variances, start, momentum=momentum, weight_decay=decay)
    np.testing.assert_allclose(found, w, rtol=1e-5, atol=1e-6)


def test_the_corrected_second_moment_is_nearly_unbiased_and_adams_is_not():
    """Signal 0.3 under noise of variance 1, which changes to 4 midway: the signal's square is 0.09."""
    rng, n = np.random.default_rng(1), 20_000
    parameter = torch.nn.Parameter(torch.zeros(n))
    optimizer = _make(parameter, "dp-adam")
    for step in range(300):
        variance = 1.0 if step < 150 else 4.0
        _set(optimizer, 0.0, variance)
        parameter.grad = torch.from_numpy(0.3 + np.sqrt(variance) * rng.standard_normal(n)).float()
        optimizer.step()
    group, seen = optimizer.param_groups[0], optimizer.state[parameter]["v"].double().mean() / (1 - 0.99**300)
    corrected = seen - group["phi"] / (1 - 0.99**300)
    assert corrected == pytest.approx(0.09, abs=0.02) and seen > 3


@pytest.mark.parametrize("variance", [0.0, -1.0, float("nan")])
def test_dp_adam_without_noise_is_refused(variance):
    with pytest.raises(PrivacyError, match="must be > 0, got .* Without noise say train.optimizer: adamw"):
        _run("dp-adam", [[1.0]], [0.1], [variance], [0.0])


@pytest.mark.parametrize("name", ["dp-adam", "sgd", "adamw"])
def test_a_saved_state_goes_on_exactly(course, name):
    gradients, lrs, variances, start = course
    changes = {"momentum": 0.9 if name == "sgd" else 0.0, "weight_decay": 0.1}
    parameter = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32))
    optimizer = _make(parameter, name, **changes)
    for step, gradient in enumerate(gradients):
        if step == 5:
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            parameter = torch.nn.Parameter(copy.deepcopy(parameter.detach()))
            optimizer = _make(parameter, name, **changes)
            optimizer.load_state_dict(torch.load(file, weights_only=True))
        _set(optimizer, float(lrs[step]), float(variances[step]))
        parameter.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
    np.testing.assert_array_equal(parameter.detach().numpy(), _run(name, *course, **changes))
