"""One site before a coordinator that may ask for anything."""

import numpy as np
import pytest
import torch

from reticent.errors import FederationError, PrivacyError
from reticent.federation import messages
from reticent.federation.secure_values import GRID, as_array, as_bytes, context_of, length, read_values, values_of
from reticent.federation.terms import digest

WHOLE = {"noise_multiplier": 1, "delta": 1e-2, "few_clients": True}
DPSGD = {"kind": "dp-sgd", "noise_multiplier": 1, "delta": 1e-3}


def refusal(told):
    assert told.kind == "refused", told.kind
    return told.fields["reason"]


# What it answers.


@pytest.mark.parametrize("request_", [b"", b"garbage" * 20, messages.pack("train", {}, {}) + b"x"])
def test_bytes_that_are_no_message_are_refused(world, request_):
    assert refusal(messages.unpack(world(1).sites["site-1"].answer(request_)))


def test_a_message_of_an_unknown_kind_is_refused(world):
    assert "does not answer 'weights'" in refusal(world(1).ask("site-1", "weights"))


def test_a_message_about_another_model_is_refused(world):
    assert "trains the model 'private'" in refusal(world(1).ask("site-1", "train", {"model": "twin"}))


def test_a_site_says_what_it_is_and_no_more(world):
    told = world(1).ask("site-1", "hello").fields
    assert told.keys() == {"site", "units", "terms", "epsilon", "delta"}
    assert (told["site"], told["units"], told["epsilon"]) == ("site-1", 6, None)


def test_a_private_site_says_what_all_its_steps_will_have_spent(world):
    told = world(1, sections={"privacy": DPSGD}).ask("site-1", "hello").fields
    assert (told["epsilon"], told["delta"]) == (4.0, 1e-3)  # the accountant of these tests counts releases


def test_another_recipe_is_named_in_the_refusal(world):
    one, other = world(1), world(1, sections={"train": {"learning_rate": 0.5}})
    why = refusal(one.ask("site-1", "train", {"terms": other.start.terms}))
    assert "site site-1 cannot take part: it differs in recipe (" in why
    assert "base model" not in why


@pytest.mark.parametrize(
    "what", ["base model", "tokenizer", "initial weights", "reticent", "torch", "transformers", "peft"]
)
def test_what_differs_is_named_before_anything_is_trained(world, steps, what):
    trial = world(2)
    start = trial.start._replace(terms={**trial.start.terms, what: "other"})
    with pytest.raises(FederationError, match=rf"site site-1 cannot take part: it differs in {what} \(.* there, other"):
        trial.coordinator(start=start).train()
    assert steps == []


def test_data_that_changed_are_refused(world):
    trial = world(1)
    trial.options["site-1"] = {"unchanged": lambda: False}
    trial.restart()
    assert "the data of site site-1 are not those it began with" in refusal(trial.ask("site-1", "train"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda sent: {},
        lambda sent: dict(list(sent.items())[1:]),
        lambda sent: {**sent, "w/more": torch.zeros(2)},
        lambda sent: {name: value.T.contiguous() for name, value in sent.items()},
    ],
)
def test_weights_of_another_model_are_refused(world, spoil):
    trial = world(1)
    sent = {f"w/{name}": value for name, value in trial.start.weights.items()}
    assert "not those that this recipe trains" in refusal(trial.ask("site-1", "train", arrays=spoil(sent)))


def test_a_layer_that_the_model_has_not_is_refused_and_leaves_no_trace(world):
    trial = world(1, lora="merged")
    before = {name: value.clone() for name, value in trial.host.model.named_parameters()}
    layer = next(iter(before)).removesuffix(".weight")
    known = next(name for name in before if name.endswith(".base_layer.weight"))
    sent = {f"w/{name}": value for name, value in trial.start.weights.items()}
    spoilt = {
        f"d/{known.removesuffix('.base_layer.weight')}": torch.ones_like(before[known]),
        f"d/{layer}": torch.ones(3),
    }
    assert "that was sent is not one of this model's" in refusal(
        trial.ask("site-1", "train", arrays={**sent, **spoilt})
    )
    assert trial.ask("site-1", "train", arrays=sent).kind == "update"
    after = dict(trial.host.model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items() if "lora_" not in name)


def test_the_same_request_gets_the_same_update_and_makes_no_step(world, steps):
    trial = world(1, sections={"privacy": DPSGD})
    first = trial.ask("site-1", "train")
    trial.restart()
    again = trial.ask("site-1", "train")
    assert all(torch.equal(first.arrays[name], value) for name, value in again.arrays.items())
    assert len(steps) == trial.releases("site-1") == 2


def test_a_site_makes_no_more_steps_than_its_plan_has(world, steps):
    """However often it is asked for a round with other weights."""
    trial = world(1, sections={"privacy": DPSGD})
    sent = {f"w/{name}": value for name, value in trial.start.weights.items()}
    told = [trial.ask("site-1", "train", {"round": [1, 1]}, {n: v + i for n, v in sent.items()}).kind for i in range(4)]
    assert told == ["update", "update", "refused", "refused"]
    assert len(steps) == trial.releases("site-1") == 4


@pytest.mark.parametrize("number", [0, 3, -1])
def test_rounds_beyond_the_recipes_are_refused(world, steps, number):
    trial = world(1)
    assert "its plan allows" in refusal(trial.ask("site-1", "train", {"round": [number, 1]}))
    assert steps == []


def test_a_ledger_of_another_plan_is_refused(world):
    trial = world(1, sections={"privacy": DPSGD})
    trial.ask("site-1", "train")
    other = world(1, sections={"privacy": {**DPSGD, "noise_multiplier": 2}})
    other.folder = trial.folder
    other.restart()
    assert "was begun with another plan" in refusal(other.ask("site-1", "train", {"round": [2, 1]}))


def test_an_update_that_is_too_long_is_not_sent(world):
    trial = world(1, max_norm=1e-6)
    assert "longer than federation.max_norm, 1e-06" in refusal(trial.ask("site-1", "train"))


def test_an_update_is_clipped_before_it_leaves(world):
    trial = world(1, weights="equal", privacy={**WHOLE, "clip_norm": 0.01})
    told = trial.ask("site-1", "train", {"clip_norm": 0.01})
    norm = sum(float(v.double().square().sum()) for v in messages.split(told.arrays)["u"].values()) ** 0.5
    assert 0.0099 < norm <= 0.01


def test_a_site_of_few_units_is_told_why_it_cannot_promise(world):
    with pytest.raises(PrivacyError, match="site site-1: train.batch_size must be at most the number of units, 6"):
        world(2, sections={"privacy": DPSGD, "train": {"batch_size": 7}})


def test_what_is_joined_reaches_the_sites_at_the_end(world):
    trial, given = world(2), {}
    for name in trial.units:
        trial.options[name] = {"finished": lambda weights, base, name=name: given.update({name: weights})}
    trial.restart()
    joint = trial.train()
    assert all(torch.equal(given[site][name], value) for site in trial.units for name, value in joint.weights.items())


def test_sites_draw_batches_of_their_own(world):
    trial = world(2)
    first, second = (trial.sites[name]._trainer._sampler for name in trial.units)
    assert [first.draw(i).tolist() for i in range(9)] != [second.draw(i).tolist() for i in range(9)]


def test_sites_of_one_process_share_one_model(world):
    trial = world(3)
    trial.train()
    assert len({id(site._trainer._model) for site in trial.sites.values()}) == 1


# A secure sum is the only way out where the recipe asks for one.


@pytest.fixture
def secured(world):
    """Four sites, the threshold is 3."""
    return world(4, secure_sum=True)


def opened(trial, **changes):
    """The fields of a sum of all sites, as the coordinator announces it."""
    sent = {f"w/{name}": value for name, value in trial.start.weights.items()}
    return {"sites": sorted(trial.units), "threshold": 3, "weights": digest(sent), **changes}


def test_an_update_is_not_given_outside_the_sum(secured, steps):
    why = refusal(secured.ask("site-1", "train"))
    assert "secure_sum" in why
    assert steps == []


@pytest.mark.parametrize("threshold", [2, 4])
def test_another_threshold_than_the_recipes_is_refused(secured, threshold):
    assert f"the sum is to be of {threshold} sites" in refusal(
        secured.ask("site-1", "keys", opened(secured, threshold=threshold))
    )


def test_a_sum_over_fewer_sites_than_the_recipe_draws_is_refused(secured):
    """Two thirds of two are two: a coordinator that lies could see the sum of any two sites."""
    few = opened(secured, sites=["site-1", "site-2"], threshold=2)
    assert "sites" in refusal(secured.ask("site-1", "keys", few))


def test_a_sum_with_distributed_noise_is_over_enough_to_make_it_whole(world):
    trial = world(6, weights="equal", secure_sum=True, privacy={**WHOLE, "noise": "distributed"})
    few = opened(trial, sites=["site-1", "site-2", "site-3"], threshold=2)
    assert "sites" in refusal(trial.ask("site-1", "keys", few))


def test_a_site_without_a_roster_gives_no_sum(secured):
    secured.options["site-1"] = {"identity": None}
    secured.restart()
    assert "no roster of identities" in refusal(secured.ask("site-1", "keys", opened(secured)))


def phases(trial, fields, change=lambda kind, site, request: request, stop=None):
    """The phases of one attempt as an honest coordinator makes them; ``change`` may spoil (fields, arrays) of each."""
    sites, told = fields["sites"], {}
    sent = {f"w/{name}": value for name, value in trial.start.weights.items()}
    got = {"keys": {}, "shares": {}, "confirm": {}}  # what the sites have said, by site
    survivors = {}
    for kind, arrays in (
        ("keys", lambda site: {}),
        ("shares", lambda site: {peer: one["keys"] for peer, one in got["keys"].items()}),
        (
            "masked",
            lambda site: {**sent, **{f"s/{peer}": got["shares"][peer][site] for peer in sites if peer != site}},
        ),
        ("confirm", lambda site: {}),
        ("unmask", lambda site: {peer: one["signature"] for peer, one in got["confirm"].items()}),
    ):
        if kind == "confirm":
            survivors = {"survivors": sites}
        made = {}
        for site in sites:
            own, given = change(kind, site, ({**fields, **survivors}, arrays(site)))
            made[site] = trial.ask(site, kind, own, given)
        told[kind] = made
        if stop == kind:
            return told
        got[kind] = {site: one.arrays for site, one in made.items() if one.kind != "refused"}
    return told


def test_an_honest_attempt_goes_through(secured):
    assert {one.kind for one in phases(secured, opened(secured))["unmask"].values()} == {"unmask done"}


def test_other_weights_than_announced_are_refused(secured):
    def change(kind, site, request):
        fields, arrays = request
        moved = {name: value + 1 if name[:2] == "w/" else value for name, value in arrays.items()}
        return (fields, moved) if kind == "masked" and site == "site-1" else request

    told = phases(secured, opened(secured), change, stop="masked")["masked"]
    assert "not those that this sum was begun for" in refusal(told["site-1"])
    assert told["site-2"].kind == "masked done"


def test_one_site_with_other_weights_than_the_rest_is_in_no_sum(secured):
    def change(kind, site, request):
        fields, arrays = request
        if site != "site-1":
            return request
        moved = {name: value + 1 if name[:2] == "w/" else value for name, value in arrays.items()}
        whole = {f"w/{name}": value + 1 for name, value in secured.start.weights.items()}
        return {**fields, "weights": digest(whole)}, moved

    told = phases(secured, opened(secured), change, stop="shares")["shares"]
    assert all(one.kind == "refused" for one in told.values())


def test_a_round_that_was_opened_is_not_begun_again(secured):
    phases(secured, opened(secured))
    for number in (0, 1):
        again = opened(secured, round=[number, 2])
        assert f"has helped to open a sum of round {number} already" in refusal(secured.ask("site-1", "keys", again))
    secured.restart()
    assert "already" in refusal(secured.ask("site-1", "keys", opened(secured, round=[1, 2])))
    assert secured.ask("site-1", "keys", opened(secured, round=[2, 1])).kind == "keys done"


def test_a_round_that_was_not_opened_may_be_begun_again(secured):
    phases(secured, opened(secured), stop="confirm")
    assert {one.kind for one in phases(secured, opened(secured, round=[1, 2]))["unmask"].values()} == {"unmask done"}


def test_a_restarted_site_is_out_of_the_sum_it_was_in(secured):
    phases(secured, opened(secured), stop="keys")
    secured.restart("site-1")
    assert "it may have been restarted" in refusal(secured.ask("site-1", "shares", opened(secured), {}))


@pytest.mark.parametrize("change", [{"round": [1, 2]}, {"round": [2, 1]}, {"run": "other"}, {"weights": "00"}])
def test_a_phase_of_another_attempt_is_refused(secured, change):
    phases(secured, opened(secured), stop="keys")
    assert "is not part of this sum" in refusal(secured.ask("site-1", "shares", opened(secured, **change), {}))


def test_noise_is_added_once_for_every_round_and_no_oftener(world):
    trial = world(4, weights="equal", secure_sum=True, privacy={**WHOLE, "noise": "distributed"})
    told = [
        phases(trial, opened(trial, round=[1, attempt], clip_norm=0.5), stop="masked")["masked"]["site-1"]
        for attempt in (1, 2, 3)
    ]
    assert [one.kind for one in told] == ["masked done", "masked done", "refused"]
    assert "added noise for all 2 rounds" in refusal(told[-1])
    assert not np.array_equal(told[0].arrays["masked"].numpy(), told[1].arrays["masked"].numpy())


@pytest.mark.parametrize("clip_norm", [None, 0.0, -1.0])
def test_a_clip_norm_that_is_none_is_refused(world, clip_norm):
    trial = world(4, weights="equal", secure_sum=True, privacy={**WHOLE, "noise": "distributed"})
    told = phases(trial, opened(trial, clip_norm=clip_norm), stop="masked")["masked"]["site-1"]
    assert told.kind == "refused"
    assert trial.sites["site-1"]._state["noised"] in (0, 1)


# Values of a secure sum.


def test_values_add_up_with_their_weights_and_votes():
    rng = torch.Generator().manual_seed(0)
    updates = [{"b": torch.randn(3, 2, generator=rng), "a": torch.randn(4, generator=rng)} for _ in range(3)]
    counts, votes = (5, 70, 900), (True, False, True)
    total = sum(values_of(update, n, vote) for update, n, vote in zip(updates, counts, votes, strict=True))
    shapes = {"a": (4,), "b": (3, 2)}
    assert len(total) == length(shapes, noisy=False)
    found = read_values(total, shapes)
    for name in shapes:
        mean = sum(n * update[name] for n, update in zip(counts, updates, strict=True)) / sum(counts)
        torch.testing.assert_close(found.update[name] / found.weight, mean, atol=1e-6, rtol=0)
    assert found.weight * 2**20 == pytest.approx(sum(counts))
    assert found.votes == pytest.approx(2, abs=GRID)


def test_equal_weights_are_ones():
    found = read_values(
        values_of({"a": torch.ones(2)}, None, True) + values_of({"a": torch.ones(2)}, None, False), {"a": (2,)}
    )
    assert (found.weight, found.votes) == (2.0, 1.0)


def test_a_value_that_is_not_finite_is_refused():
    with pytest.raises(FederationError, match="finite"):
        values_of({"a": torch.tensor([torch.inf])}, 3, True)


def test_bytes_travel_as_arrays():
    assert as_bytes(as_array(b"\x00\xff two")) == b"\x00\xff two"


def test_the_context_of_a_sum_tells_attempts_apart():
    one = {"run": "a", "model": "private", "round": [1, 1], "weights": "00"}
    others = [
        {**one, key: value} for key, value in (("run", "b"), ("model", "twin"), ("round", [1, 2]), ("weights", "01"))
    ]
    assert len({context_of(each) for each in [one, *others]}) == 5


# The model.


def test_the_base_is_as_it_was_when_nothing_is_added_any_more(world):
    trial = world(1, lora="merged")
    host = trial.host
    before = {name: value.detach().clone() for name, value in host.model.named_parameters()}
    layer = next(name for name in before if name.endswith(".base_layer.weight")).removesuffix(".base_layer.weight")
    for added in (2.0, -1.0):
        host.begin(host.initial, {layer: torch.full_like(before[f"{layer}.base_layer.weight"], added)})
        now = dict(host.model.named_parameters())[f"{layer}.base_layer.weight"]
        torch.testing.assert_close(now, before[f"{layer}.base_layer.weight"] + added)
    host.begin(host.initial, {})
    assert all(torch.equal(value, before[name]) for name, value in host.model.named_parameters())


def test_frozen_a_is_neither_trained_nor_sent(world):
    trial = world(1)
    assert trial.start.weights
    assert all("lora_B" in name for name in trial.start.weights)
    before = {n: p.detach().clone() for n, p in trial.host.model.named_parameters() if "lora_A" in n}
    trial.train()
    assert all(torch.equal(p, before[n]) for n, p in trial.host.model.named_parameters() if "lora_A" in n)


def test_frozen_a_is_among_the_terms(world):
    """Else a mean of B would be a mean of nothing."""
    one, other = world(1), world(1)
    with torch.no_grad():
        next(p for n, p in other.host.model.named_parameters() if "lora_A" in n).add_(1)
    other.host.__dict__.pop("terms", None)
    assert one.start.terms["initial weights"] != other.host.terms["initial weights"]


@pytest.mark.parametrize(
    ("federation", "kind", "told"),
    [
        ({}, "none", 6),
        ({"weights": "equal"}, "none", None),
        ({"secure_sum": True}, "none", None),
        ({"weights": "equal"}, "dp-sgd", 6),
    ],
)
def test_the_number_of_units_leaves_a_site_only_where_it_serves(world, federation, kind, told):
    privacy = {"kind": "none"} if kind == "none" else {"kind": kind, "noise_multiplier": 1, "delta": 1e-3}
    trial = world(sections={"privacy": privacy}, **federation)
    assert trial.ask("site-1", "hello").fields["units"] == told
