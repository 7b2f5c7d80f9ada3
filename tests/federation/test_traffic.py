"""Bytes add up, and what adapters save is the published number, from parameters counted by hand."""

import pytest

from reticent.federation.traffic import (
    Bytes,
    RoundTraffic,
    Traffic,
    Transfer,
    communication_costs,
    projected_seconds,
    ratio_to_full,
)


def _traffic():
    traffic = Traffic()
    traffic.add(2, "b", 10, 100)
    traffic.add(1, "b", 20, 200)
    traffic.add(1, "a", 30, 300)
    traffic.add(1, "a", 1, 0)
    return traffic


def test_messages_of_a_site_in_a_round_add_up():
    assert _traffic().transfers() == [Transfer(1, "a", 31, 300), Transfer(1, "b", 20, 200), Transfer(2, "b", 10, 100)]


def test_a_round_is_the_sum_over_its_sites():
    assert _traffic().per_round() == [RoundTraffic(1, 2, 51, 500), RoundTraffic(2, 1, 10, 100)]


def test_the_total_is_the_sum_over_the_rounds():
    assert _traffic().total() == Bytes(61, 600)


def test_nothing_sent_is_nothing():
    assert Traffic().per_round() == [] and Traffic().total() == Bytes(0, 0)


def test_a_resumed_count_goes_on():
    resumed = Traffic(_traffic().transfers())
    resumed.add(2, "b", 5, 5)
    assert resumed.total() == Bytes(66, 605) and resumed.per_round()[1] == RoundTraffic(2, 1, 15, 105)


def test_negative_bytes_are_a_mistake_of_ours():
    with pytest.raises(AssertionError):
        Traffic().add(1, "a", -1, 0)


def test_seconds_are_bits_over_bits_a_second():
    assert projected_seconds(2_500_000, 20) == 1.0


def test_half_a_model_sent_twice_is_sent_once_over():
    assert ratio_to_full(2 * 50 * 4, 100, transfers=2) == 2.0
    assert ratio_to_full(50 * 2, 100, width=2) == 2.0


def _neox(width, layers=6, rank=16):
    """Parameters with adapters, and of the adapters on the fused query, key and value."""
    embeddings = 2 * 50304 * width
    layer = 12 * width**2 + 13 * width  # 4 weights of attention, 8 of the MLP; 9 of biases, 4 of two norms
    adapters = layers * rank * (width + 3 * width)
    return embeddings + layers * layer + 2 * width + adapters, adapters


def _mistral(rank=16):
    """Parameters with adapters, and of the adapters on query and value."""
    attention = 2 * 4096 * 4096 + 2 * 4096 * 1024
    layer = attention + 3 * 4096 * 14336 + 2 * 4096
    adapters = 32 * rank * ((4096 + 4096) + (4096 + 1024))
    return 2 * 32000 * 4096 + 32 * layer + 4096 + adapters, adapters


def test_the_counts_by_hand_are_those_of_the_models():
    assert _neox(512) == (70_426_624 + 196_608, 196_608)
    assert _neox(128) == (14_067_712 + 49_152, 49_152)
    assert _mistral() == (7_241_732_096 + 6_815_744, 6_815_744)


@pytest.mark.parametrize(
    ("counts", "saving"),
    [(_neox(512), 359.2), (_neox(128), 287.2), (_mistral(), 1063.5)],
    ids=["pythia-70m", "pythia-14m", "mistral-7b"],
)
def test_adapters_save_what_was_published(counts, saving):
    costs = communication_costs(*counts, rounds=1, clients=1, fraction=1.0)
    assert round(costs.saving, 1) == saving
    assert round(ratio_to_full(4 * counts[1], counts[0]), 1) == saving


def test_a_run_of_mistral_sends_what_was_published():
    costs = communication_costs(*_mistral(), rounds=200, clients=160, fraction=0.1)
    assert costs.clients_per_round == 16
    assert (round(costs.full_megabytes), costs.trainable_megabytes) == (27_651, 26.0)
    assert round(costs.full_total_megabytes / 1024) == 172_819
    assert costs.trainable_total_megabytes == 166_400
    assert (costs.full_millions, costs.trainable_millions) == (7248.54784, 6.815744)


def test_an_upload_takes_its_megabytes_over_an_eighth_of_the_megabits():
    costs = communication_costs(2 * 2**20, 2**19, rounds=1, clients=1, fraction=1.0, mbps=16)
    assert (costs.full_seconds, costs.trainable_seconds) == (4.0, 1.0)
    slow = communication_costs(5 * 2**20, 2**18, rounds=1, clients=1, fraction=1.0)
    assert slow.full_seconds == 20 / (20 / 8)


def test_a_share_of_the_clients_is_rounded_down():
    assert communication_costs(2, 1, rounds=1, clients=19, fraction=0.2).clients_per_round == 3


def test_no_trainable_parameters_are_a_mistake_of_ours():
    with pytest.raises(AssertionError):
        communication_costs(10, 0, rounds=1, clients=1, fraction=1.0)
