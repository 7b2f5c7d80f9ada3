"""Rounds against what they must be by hand: means, algorithms, adapters joined, sums hidden, whole sites hidden."""

import math

import numpy as np
import pytest
import torch
from peft.tuners.lora.layer import Linear

from reticent import asked
from reticent.errors import FederationError
from reticent.federation import client_privacy, joining, lora, messages, server
from reticent.federation.channel import Failure
from reticent.gradients.engines import trained
from reticent.models import adapter
from reticent.privacy import noise
from reticent.training import loop

WHOLE = {"noise_multiplier": 1, "delta": 1e-2, "few_clients": True}
DPSGD = {"kind": "dp-sgd", "noise_multiplier": 1, "delta": 1e-3}
ADAMW = {"train": {"optimizer": "adamw", "learning_rate": 0.03}}


def close(found, expected, atol=1e-6):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=atol, rtol=1e-5)


def sent_updates(world, number=1):
    """What the sites sent in a round, by site."""
    return {
        site: messages.split(told.arrays)["u"]
        for site, told in world.wire.answers("update")
        if told.fields["round"][0] == number
    }


def made_updates(world, number=1):
    """What the sites made in the last round, sent or masked."""
    return {name: site._state["made"]["arrays"] for name, site in world.sites.items() if site._state["made"]}


def mean(updates, weights):
    total = sum(weights.values())
    return {
        name: sum(update[name].double() * (weights[site] / total) for site, update in updates.items()).float()
        for name in next(iter(updates.values()))
    }


def plus(weights, change, factor=1.0):
    return {name: value + factor * change[name] for name, value in weights.items()}


def unit_weights(world, sites):
    return {site: float(len(world.units[site])) for site in sites}


def by_hand(world, site, correct=None):
    """The steps of all rounds at one site alone, by the loop itself; a new optimiser each round."""
    model = asked.prepared(world.recipe, asked.base_model(world.recipe).model)
    for name, parameter in trained(model).items():
        parameter.requires_grad_(name in world.start.weights)
    one, rounds = world.sites[site], world.recipe.federation.rounds
    settings = one._settings._replace(micro_batch_tokens=world.recipe.train.micro_batch_tokens)
    count = one.plan.steps // rounds
    for number in range(rounds):
        trainer = loop.Trainer(model, world.units[site], one.plan, settings, None)
        constant = loop.rate(settings, number * count + 1, one.plan.steps)
        begun = {name: value.clone() for name, value in loop.weights(model).items()}
        along = None if correct is None else lambda g, w, begun=begun, number=number: correct(g, w, begun, number)
        list(trainer.steps(number * count, (number + 1) * count, lambda step, rate=constant: rate, along))
    return {name: value.clone() for name, value in loop.weights(model).items()}


# The mean, and what each algorithm does with it.


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_site_makes_the_steps_of_the_loop_with_a_new_optimiser_each_round(world, optimizer):
    trial = world(1, sections={"train": {"optimizer": optimizer}})
    close(trial.train().weights, by_hand(trial, "site-1"), atol=1e-6)


def test_a_local_epoch_draws_each_unit_once_on_average(world, steps):
    trial = world(2, local="epoch")
    trial.train()
    assert len(steps) == 2 * (round(6 / 3) + round(8 / 3))


def test_a_round_is_the_mean_weighted_by_units(world):
    trial = world(rounds=1)
    joint = trial.train()
    updates = sent_updates(trial)
    assert len(updates) == 3
    close(joint.weights, plus(trial.start.weights, mean(updates, {"site-1": 6.0, "site-2": 8.0, "site-3": 10.0})))


def test_equal_weights_count_every_site_alike(world):
    trial = world(rounds=1, weights="equal")
    joint = trial.train()
    close(joint.weights, plus(trial.start.weights, mean(sent_updates(trial), dict.fromkeys(trial.units, 1.0))))


def test_a_round_of_some_sites_asks_only_them(world):
    trial = world(4, rounds=4, per_round=2)
    trial.train()
    drawn = [[site for site, told in trial.wire.answers("update") if told.fields["round"][0] == n] for n in range(1, 5)]
    assert all(len(set(sites)) == 2 for sites in drawn)
    assert len({tuple(sites) for sites in drawn}) > 1


def test_fedprox_pulls_every_local_step_towards_the_joint_weights(world):
    trial = world(1, algorithm="fedprox", mu=5.0, rounds=1)

    def pull(gradients, weights, begun, number):
        for name, gradient in gradients.items():
            gradient.add_(5.0 * (weights[name] - begun[name]))

    close(trial.train().weights, by_hand(trial, "site-1", pull))


def test_scaffold_moves_local_gradients_by_the_controls_of_the_round_before(world):
    trial = world(2, algorithm="scaffold", sections={"train": {"schedule": "constant"}})
    trial.train()
    first, second = (
        {
            site: messages.split(told.arrays)
            for site, told in trial.wire.answers("update")
            if told.fields["round"][0] == n
        }
        for n in (1, 2)
    )
    rate, count = 1e-2, 2
    gradients = {  # of SGD at a constant rate: option II of the paper
        site: {name: value / (-rate * count) for name, value in parts["u"].items()} for site, parts in first.items()
    }
    for site, parts in first.items():
        close(parts["c"], gradients[site], atol=1e-4)
    control = mean(gradients, dict.fromkeys(gradients, 1.0))
    asked_for = [message for _, message, _ in trial.wire.seen if message.kind == "train"][-1]
    close(messages.split(asked_for.arrays)["c"], control, atol=1e-4)
    # By hand, round 2 of site-1: the loop from the same weights, its gradients moved by c - c_1.
    shift = {name: control[name] - gradients["site-1"][name] for name in control}
    begun = messages.split(asked_for.arrays)["w"]
    trial.host.begin(begun, {})
    site = trial.sites["site-1"]
    settings = site._settings._replace(micro_batch_tokens=2048)
    trainer = loop.Trainer(trial.host.model, trial.units["site-1"], site.plan, settings, None)

    def correct(gradients, weights):
        for name, gradient in gradients.items():
            gradient.add_(shift[name])

    list(trainer.steps(2, 4, lambda step: rate, correct))
    change = {name: value - begun[name] for name, value in loop.weights(trial.host.model).items()}
    close(second["site-1"]["u"], change, atol=1e-6)


def _moments(name, delta):
    """The next step by the formula, in numpy: eta .1, tau .01, beta1 .5, beta2 .8."""
    delta = delta.double().numpy()
    if name == "fedavgm":
        return 0.1 * delta
    v0, square = 0.01**2, delta**2
    v = {
        "fedadagrad": v0 + square,
        "fedyogi": v0 - 0.2 * square * np.sign(v0 - square),
        "fedadam": 0.8 * v0 + 0.2 * square,
    }[name]
    return 0.1 * 0.5 * delta / (np.sqrt(v) + 0.01)


@pytest.mark.parametrize("name", ["fedavgm", "fedadagrad", "fedyogi", "fedadam"])
def test_the_joint_step_is_the_algorithms_with_the_recipes_settings(world, name):
    trial = world(2, rounds=1, algorithm=name, server_learning_rate=0.1, server_beta1=0.5, server_beta2=0.8, tau=0.01)
    joint = trial.train()
    delta = mean(sent_updates(trial), unit_weights(trial, trial.units))
    expected = {
        key: trial.start.weights[key] + torch.from_numpy(_moments(name, value)).float() for key, value in delta.items()
    }
    close(joint.weights, expected)


def test_a_site_may_have_a_learning_rate_of_its_own(world):
    trial = world(2, rounds=1, learning_rates={"site-2": 1e-9})
    trial.train()
    norms = {site: client_privacy.clip_update(update, 1.0).norm for site, update in sent_updates(trial).items()}
    assert norms["site-2"] < 1e-5 < norms["site-1"]


def test_the_learning_rate_is_constant_in_a_round_or_moves_with_every_step(world, monkeypatch):
    seen = {}
    real = loop._prepare
    for schedule in ("rounds", "steps"):
        rates = seen[schedule] = []
        monkeypatch.setattr(
            loop, "_prepare", lambda optimizer, rate, *rest, to=rates: (to.append(rate), real(optimizer, rate, *rest))
        )
        world(1, schedule=schedule, sections={"train": {"schedule": "linear"}}).train()
    assert seen["rounds"] == pytest.approx([1e-2, 1e-2, 5e-3, 5e-3])
    assert seen["steps"] == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])


# Adapters, joined.


def dense_of(trial, update, weights):
    """scale * B A of one site's adapter, with the A that is not trained where it is not."""
    whole = {**frozen(trial), **weights, **update}
    return {
        pair.layer: trial.host.scale * whole[pair.b].double() @ whole[pair.a].double() for pair in lora.pairs(whole)
    }


def frozen(trial):
    return {
        name: parameter.detach().clone()
        for name, parameter in trial.host.model.named_parameters()
        if "lora_" in name and name not in trial.start.weights
    }


def sent_weights(trial, number):
    """The joint weights that a round began with."""
    message = next(m for _, m, _ in trial.wire.seen if m.kind == "train" and m.fields["round"][0] == number)
    return messages.split(message.arrays)["w"]


def exact(trial, number):
    """The mean of the sites' dense products of a round, weighted by units."""
    weights = unit_weights(trial, trial.units)
    if trial.host.mode == "merged":
        return mean(sent_updates(trial, number), weights)
    begun = sent_weights(trial, number)
    products = {site: dense_of(trial, plus(begun, update), {}) for site, update in sent_updates(trial, number).items()}
    return mean(products, weights)


def apart(found, expected):
    missed = sum(float((found[layer].double() - value.double()).square().sum()) for layer, value in expected.items())
    return math.sqrt(missed / sum(float(value.double().square().sum()) for value in expected.values()))


def total(trial, joint):
    """What the joint model adds to the base, dense."""
    found = dense_of(trial, {}, joint.weights)
    for layer, value in joining.added(joint.base, trial.host.scale).items():
        found[layer] = found[layer] + value.double()
    return found


@pytest.mark.parametrize("mode", ["freeze-a", "residual", "merged"])
def test_what_is_joined_is_the_mean_of_the_sites_products(world, mode):
    trial = world(rounds=1, lora=mode, sections=ADAMW)
    assert apart(total(trial, trial.train()), exact(trial, 1)) < 1e-5


def test_a_product_is_the_best_of_its_rank(world):
    trial = world(rounds=1, lora="product", sections=ADAMW)
    found = total(trial, trial.train())
    for layer, value in exact(trial, 1).items():
        u, s, v = torch.linalg.svd(value.double(), full_matrices=False)
        torch.testing.assert_close(found[layer], (u[:, :2] * s[:2]) @ v[:2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("mode", "within"), [("average", 0.2), ("product", 1e-3), ("residual", 1e-3)])
def test_the_log_says_what_averaging_a_and_b_apart_misses(world, mode, within):
    trial = world(rounds=1, lora=mode, sections={"train": {"optimizer": "adamw", "learning_rate": 0.1}})
    joint = trial.train()
    begun = sent_weights(trial, 1)
    halves = {site: plus(begun, update) for site, update in sent_updates(trial).items()}
    plain = dense_of(trial, mean(halves, unit_weights(trial, trial.units)), {})
    error = apart(plain, exact(trial, 1))
    assert error > 0.02
    assert trial.log[0]["lora_error"] == pytest.approx(error, rel=within)
    if mode == "average":
        assert apart(total(trial, joint), exact(trial, 1)) == pytest.approx(error, rel=1e-3)


def test_an_exact_mean_has_no_error_to_tell(world):
    trial = world(rounds=1)
    trial.train()
    assert trial.log[0]["lora_error"] is None


def logits(tiny, model):
    ids = torch.arange(2, 30)[None]
    with torch.no_grad():
        return tiny.plain(model)(input_ids=ids).logits


def expected_model(trial, joint):
    """The base with what the rounds must have come to added to its layers, by hand."""
    model = asked.base_model(trial.recipe).model
    rounds = trial.recipe.federation.rounds
    if trial.host.mode == "merged":
        parts = [exact(trial, number) for number in range(1, rounds + 1)]
    elif trial.host.mode == "residual":
        between = dense_of(trial, sent_weights(trial, 2), {})
        missed = {layer: value - between[layer] for layer, value in exact(trial, 1).items()}
        parts = [missed, exact(trial, 2)]
    else:
        parts = [exact(trial, rounds)]
    with torch.no_grad():
        for part in parts:
            for layer, value in part.items():
                module = model.get_submodule(layer.removeprefix("base_model.model."))
                turned = type(module).__name__ == "Conv1D"
                module.weight.add_((value.T if turned else value).float())
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("mode", ["freeze-a", "residual", "merged"])
def test_a_saved_model_says_what_the_mean_of_the_sites_says(world, tiny, tmp_path, mode, family):
    trial = world(2, lora=mode, family=family, sections=ADAMW)
    joint = trial.train()
    assert trial.log[-1]["answered"] == 2
    model = trial.host.finished(joint.weights, joint.base)
    adapter.save(model, tmp_path / "model", base=asked.public_name(trial.recipe.model.base))
    found = adapter.load_trained(trial.recipe.model.base, tmp_path / "model").model
    expected = logits(tiny, expected_model(trial, joint))
    assert float((expected - logits(tiny, asked.base_model(trial.recipe).model)).abs().max()) > 1e-2
    torch.testing.assert_close(logits(tiny, found), expected, atol=2e-4, rtol=1e-3)


def test_every_weight_may_be_trained(world):
    trial = world(2, rounds=1, sections={"model": {"adapter": {"kind": "full"}}})
    joint = trial.train()
    close(joint.weights, plus(trial.start.weights, mean(sent_updates(trial), unit_weights(trial, trial.units))))
    assert not any(isinstance(module, Linear) for module in trial.host.model.modules())


# How updates travel.


@pytest.mark.parametrize(("kind", "error"), [("lossless", 1e-9), ("bf16", 0.01), ("int8", 0.03), ("top-k", 0.9)])
def test_a_compressed_round_is_the_plain_one_up_to_what_is_lost(world, kind, error):
    plain, packed = (world(2, rounds=1, compress=one, top_k=0.3) for one in ("none", kind))
    found, expected = packed.train().weights, plain.train().weights
    moved = {name: value - plain.start.weights[name] for name, value in expected.items()}
    assert apart({name: value - plain.start.weights[name] for name, value in found.items()}, moved) <= error


def test_the_bytes_of_the_log_are_those_of_the_wire(world):
    trial = world()
    trial.train()
    rounds = [
        (m.fields.get("round"), sizes) for (_, m, _), sizes in zip(trial.wire.seen, trial.wire.bytes, strict=True)
    ]
    for line in trial.log:
        own = [sizes for number, sizes in rounds if number and number[0] == line["round"]]
        assert (line["down"], line["up"]) == (sum(s[1] for s in own), sum(s[2] for s in own))


# Secure sums.


@pytest.mark.parametrize("weights", ["units", "equal"])
@pytest.mark.parametrize("per_round", [None, 3])
def test_a_secure_sum_is_the_plain_one(world, weights, per_round):
    plain, hidden = (world(4, weights=weights, per_round=per_round, secure_sum=secure) for secure in (False, True))
    close(hidden.train().weights, plain.train().weights, atol=1e-6)


def test_under_a_secure_sum_no_update_travels_in_the_clear(world):
    trial = world(4, rounds=1, secure_sum=True)
    trial.train()
    own = {value.numpy().tobytes() for update in made_updates(trial).values() for value in update.values()}
    sent = {value.numpy().tobytes() for _, _, told in trial.wire.seen for value in told.arrays.values()}
    assert own and not own & sent
    assert not trial.wire.answers("update")


def refuses(*kinds):
    """A site that is gone from these phases on."""

    def fault(kind, request, answer):
        return Failure("gone") if kind in kinds else answer(request)

    return fault


PHASES = ["keys", "shares", "masked", "confirm", "unmask"]


@pytest.mark.parametrize("phase", PHASES)
def test_a_site_that_goes_away_counts_if_it_had_masked(world, phase):
    trial = world(4, rounds=1, secure_sum=True)
    trial.wire.faults["site-4"] = refuses(*PHASES[PHASES.index(phase) :])
    joint = trial.train()
    updates = made_updates(trial)
    counted = list(trial.units)[: 3 if phase in ("keys", "shares", "masked") else 4]
    updates = {site: updates[site] for site in counted}
    close(joint.weights, plus(trial.start.weights, mean(updates, unit_weights(trial, counted))), atol=1e-6)
    assert trial.log[0]["answered"] == len(counted)
    assert trial.log[0]["left_out"] == {"site-4": "gone"}


@pytest.mark.parametrize("phase", ["keys", "shares", "masked", "confirm"])
def test_below_the_threshold_nothing_is_opened_and_the_round_is_not_used_up(world, phase):
    trial = world(4, rounds=1, secure_sum=True)
    for site in ("site-3", "site-4"):
        trial.wire.faults[site] = refuses(*PHASES[PHASES.index(phase) :])
    with pytest.raises(FederationError, match="round 1 had .* too few, in 3 attempts; .* start this again"):
        trial.train()
    assert not trial.wire.answers("unmask done")
    trial.wire.faults.clear()
    joint = trial.train()
    close(joint.weights, plus(trial.start.weights, mean(made_updates(trial), unit_weights(trial, trial.units))))


def test_a_sum_that_some_have_opened_is_not_asked_for_again(world):
    trial = world(4, secure_sum=True)

    def first_round(kind, request, answer):
        gone = kind == "unmask" and messages.unpack(request).fields["round"][0] == 1
        return Failure("gone") if gone else answer(request)

    trial.wire.faults = {"site-3": first_round, "site-4": first_round}
    trial.train()
    assert [(line["round"], line["attempt"], line["norm"] > 0) for line in trial.log] == [(1, 1, False), (2, 1, True)]


# One site hidden with all its data.


@pytest.fixture
def silent(monkeypatch):
    """Neither the coordinator nor a site adds noise."""
    monkeypatch.setattr(noise, "add_noise", lambda sums, std, source: None)
    monkeypatch.setattr(noise, "add_normals", lambda values, std, source: None)
    monkeypatch.setattr(client_privacy, "add_discrete_gaussians", lambda values, bits, source: None)


HIDDEN = {
    "server": {"privacy": WHOLE},
    "secure-server": {"privacy": WHOLE, "secure_sum": True},
    "distributed": {"privacy": {**WHOLE, "noise": "distributed"}, "secure_sum": True},
}


def hidden(world, kind, sites=4, clip_norm=0.02, **changes):
    asked_for = {**HIDDEN[kind], **changes}
    privacy = {"clip_norm": clip_norm, **asked_for.pop("privacy")}
    return world(sites, weights="equal", privacy=privacy, **{"rounds": 1, **asked_for})


def clipped_sum(updates, clip_norm):
    parts = [client_privacy.clip_update(update, clip_norm).update for update in updates.values()]
    return {name: sum(part[name] for part in parts) for name in parts[0]}


@pytest.mark.parametrize("gone", [(), ("site-4",)])
@pytest.mark.parametrize("kind", HIDDEN)
def test_without_noise_the_change_is_the_sum_of_clipped_updates_over_the_expected_sites(world, silent, kind, gone):
    trial = hidden(world, kind)
    for site in gone:
        trial.wire.faults[site] = refuses("train", *PHASES)
    joint = trial.train()
    updates = made_updates(trial)
    assert len(updates) == 4 - len(gone)
    if trial.recipe.federation.secure_sum:  # there the sites clip as they encode
        assert all(client_privacy.clip_update(update, 0.02).norm > 0.03 for update in updates.values())
    close(joint.weights, plus(trial.start.weights, clipped_sum(updates, 0.02), 1 / 4), atol=1e-6)


@pytest.mark.parametrize("drawn", [(), (0,), (0, 1, 2)])
def test_the_divisor_is_the_expected_number_of_sites_whoever_is_drawn(world, silent, monkeypatch, drawn):
    trial = hidden(world, "server", per_round=2)
    monkeypatch.setattr(server.PoissonSampler, "draw", lambda self, step: np.array(drawn, dtype=int))
    joint = trial.train()
    assert [site for site, _ in trial.wire.answers("update")] == [f"site-{i + 1}" for i in drawn]
    change = (
        clipped_sum(made_updates(trial), 0.02) if drawn else {k: torch.zeros_like(v) for k, v in joint.weights.items()}
    )
    close(joint.weights, plus(trial.start.weights, change, 1 / 2))
    assert trial.releases() == 1


def stretched(norm):
    """A site that lies: its update has this norm, whatever it was."""

    def fault(kind, request, answer):
        told = messages.unpack(answer(request))
        if told.kind != "update":
            return answer(request)
        own = client_privacy.clip_update(messages.split(told.arrays)["u"], 1.0).norm
        return messages.pack(told.kind, told.fields, {name: v * (norm / own) for name, v in told.arrays.items()})

    return fault


def reach(world, **faults):
    """How much the noiseless sum moves when site-4 is there, in units of the clip norm."""
    sums = []
    for gone in (False, True):
        trial = hidden(world, "server")
        trial.wire.faults.update(faults)
        if gone:
            trial.wire.faults["site-4"] = refuses("train")
        joint = trial.train()
        sums.append({name: 4 * (value - trial.start.weights[name]) for name, value in joint.weights.items()})
    return client_privacy.clip_update({n: sums[0][n] - sums[1][n] for n in sums[0]}, 1.0).norm / 0.02


def test_one_site_more_moves_the_sum_by_the_clip_norm_at_most(world, silent):
    assert 0.5 < reach(world) < 1 + 1e-4


def test_a_site_that_did_not_clip_moves_the_sum_by_the_clip_norm_at_most(world, silent):
    assert 0.5 < reach(world, **{"site-4": stretched(100.0)}) < 1 + 1e-4


def test_a_coordinator_that_does_not_clip_again_is_caught(world, silent, monkeypatch):
    def mutant(update, shapes, clip_norm):
        return client_privacy.Clipped(dict(update), 0.0, True)

    monkeypatch.setattr(server, "check_update", mutant)
    monkeypatch.setattr(client_privacy, "check_update", mutant)
    assert reach(world, **{"site-4": stretched(100.0)}) > 1000


@pytest.mark.parametrize("kind", HIDDEN)
def test_the_noise_of_a_round_has_the_promised_scale(world, kind):
    """Noise of 1000 clip norms over 4 sites: updates do not show. Distributed noise is whole at 3 of 4 sites."""
    trial = hidden(world, kind, privacy={**HIDDEN[kind]["privacy"], "noise_multiplier": 1000})
    joint = trial.train()
    moved = torch.cat([(value - trial.start.weights[name]).flatten() for name, value in joint.weights.items()])
    expected = 1000 * 0.02 / 4 * (math.sqrt(4 / 3) if kind == "distributed" else 1)
    assert float(moved.std()) == pytest.approx(expected, rel=5 / math.sqrt(2 * len(moved)))


@pytest.mark.parametrize("kind", HIDDEN)
@pytest.mark.parametrize("norm", [1e-6, 10.0])
def test_the_clip_norm_follows_the_sites(world, silent, kind, norm):
    """Above all norms it falls; below all of them it rises, which a coordinator sees only if sites say so."""
    follow = {"target": 0.5, "rate": 0.2, "noise": 5}
    trial = hidden(world, kind, clip_norm=norm, rounds=2, privacy={**HIDDEN[kind]["privacy"], "clip_quantile": follow})
    trial.train()
    first, second = (line["clip_norm"] for line in trial.log)
    assert second / first == pytest.approx(math.exp(-0.2 * (1.0 if norm > 1 else 0.0) + 0.2 * 0.5), rel=1e-3)


def test_a_release_of_distributed_noise_is_in_the_ledger_before_it_is_opened(world):
    trial = hidden(world, "distributed")
    seen = []

    def look(kind, request, answer):
        seen.append((kind, trial.releases()))
        return answer(request)

    trial.wire.faults["site-1"] = look
    trial.train()
    assert dict(seen)["confirm"] == 0
    assert dict(seen)["unmask"] == 1


@pytest.mark.parametrize("kind", HIDDEN)
def test_a_federation_has_a_release_for_each_round_and_no_more(world, kind):
    trial = hidden(world, kind, rounds=2)
    trial.train()
    assert trial.releases() == 2
    trial.train()
    assert trial.releases() == 2
    assert not [m for _, m, _ in trial.wire.seen if m.fields.get("round", [0])[0] > 2]


@pytest.mark.parametrize("phase", PHASES[2:])
def test_a_round_that_fails_with_distributed_noise_is_spent_once(world, phase):
    trial = hidden(world, "distributed", rounds=2)

    def first_round(kind, request, answer):
        failing = kind in PHASES[PHASES.index(phase) :] and messages.unpack(request).fields["round"][0] == 1
        return Failure("gone") if failing else answer(request)

    trial.wire.faults = {"site-3": first_round, "site-4": first_round}
    joint = trial.train()
    assert trial.releases() == 2
    assert [line["norm"] > 0 for line in trial.log] == [False, True]
    assert joint.weights.keys() == trial.start.weights.keys()


def test_a_round_that_masked_nothing_costs_nothing(world):
    trial = hidden(world, "distributed")
    for site in ("site-3", "site-4"):
        trial.wire.faults[site] = refuses("shares", "masked")
    with pytest.raises(FederationError, match="too few"):
        trial.train()
    assert trial.releases() == 0
    trial.wire.faults.clear()
    trial.train()
    assert trial.releases() == 1


def test_each_site_spends_its_own_budget_and_the_coordinator_the_other(world):
    trial = hidden(world, "distributed", sites=3, rounds=2, sections={"privacy": DPSGD})
    joint = trial.train()
    assert {site: trial.releases(site) for site in trial.units} == dict.fromkeys(trial.units, 4)
    assert trial.releases() == 2
    assert {one["guarantee"]["steps"] for one in joint.sites.values()} == {4}


@pytest.mark.parametrize("kind", HIDDEN)
def test_the_twin_has_neither_clipping_nor_noise(world, kind):
    promised = hidden(world, kind, model="twin", sections={"privacy": DPSGD})
    plain = world(4, rounds=1, weights="equal")
    close(promised.train().weights, plain.train().weights, atol=1e-6)
    assert not promised.files.ledger.exists()
    assert not list(promised.folder.glob("*/ledger.jsonl"))


def losses(trial):
    """Numbers that follow from the data and left a site beside its update."""
    told = [m.fields for _, _, m in trial.wire.seen if not isinstance(m, Failure)]
    return [fields["loss"] for fields in told if "loss" in fields]


def test_losses_are_told_where_nothing_is_promised(world):
    trial = world()
    trial.train()
    assert len(losses(trial)) == 6
    assert all(line["loss"] > 0 for line in trial.log)


@pytest.mark.parametrize("promise", ["records", *HIDDEN])
def test_no_loss_leaves_a_site_that_promises_something(world, promise):
    trial = world(sections={"privacy": DPSGD}) if promise == "records" else hidden(world, promise)
    trial.train()
    assert losses(trial) == []
    assert all(line["loss"] is None for line in trial.log)
