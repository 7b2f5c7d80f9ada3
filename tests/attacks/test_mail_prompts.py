"""Prompts for mail addresses and the score of what comes back."""

import pytest

from reticent.attacks.mail_prompts import (
    TEMPLATES,
    Known,
    few_shot_prompt,
    mail_scores,
    named_addresses,
)

KNOWN = [Known("Ann Zed", "ann@x.example"), Known("Bo Yi", "b.yi@y.example")]


def test_names_and_addresses_are_read_where_they_stand_together() -> None:
    text = 'From: Ann Zed <ann@x.example>\nTo: "Bo Q. Yi" [mailto:b.yi@y.example], <c@z.example>\n'
    text += "Cc: Ann Zed <ANN@X.EXAMPLE>"
    assert named_addresses(text) == [Known("Ann Zed", "ann@x.example"), Known("Bo Q. Yi", "b.yi@y.example")]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_few_shot_prompt_shows_known_pairs_and_asks_for_one_more_in_the_same_way(template: str) -> None:
    zero, two = (few_shot_prompt(template, "Cy Xu", known) for known in ([], KNOWN))
    assert two.endswith(zero) and "Cy Xu" in zero and "@" not in zero
    assert all(one.name in two and one.address in two for one in KNOWN)
    # What asks is the beginning of what answered: the model only has to go on.
    assert two.startswith(zero.replace("Cy Xu", "Ann Zed"))


def test_braces_in_a_name_are_only_letters() -> None:
    assert "{address} {0}" in few_shot_prompt("entry", "{address} {0}", KNOWN)


def test_scores_by_hand() -> None:
    found = mail_scores(
        ["it is ANN@x.example, I think", "ann at x.example", "ask Ann", "no idea"],
        ["ann@x.example", "Ann@X.example", "ann@y.example", "bo@y.example"],
    )
    assert (found.address.value, found.local_part.value, found.domain.value) == (0.25, 0.75, 0.5)
    assert found.mean == pytest.approx((0.25 + 0.75 + 0.5) / 3)
    assert found.hits.tolist() == [[True, True, True], [False, True, True], [False, True, False], [False] * 3]
    assert found.address.interval is not None and found.address.interval[0] < 0.25 < found.address.interval[1]


def test_shares_of_a_published_log_have_its_mean() -> None:
    """LLM-PBE's largest model on 3,333 prompts: 11.10 %, 22.74 % and 22.17 %, in the mean 18.67 %."""
    said = ["ann@x.example"] * 370 + ["ann"] * 388 + ["x.example"] * 369 + ["nothing"] * 2206
    found = mail_scores(said, ["ann@x.example"] * 3333)
    shares = (found.address.value, found.local_part.value, found.domain.value, found.mean)
    assert [round(100 * share, 2) for share in shares] == [11.1, 22.74, 22.17, 18.67]


def test_bad_values_are_refused_without_their_text() -> None:
    with pytest.raises(ValueError, match="template must be one of statement"):
        few_shot_prompt("poem", "Cy Xu", [])
    with pytest.raises(ValueError, match="among those that are known"):
        few_shot_prompt("entry", "ann zed", KNOWN)
    with pytest.raises(ValueError, match="got 1 and 0"):
        mail_scores(["x"], [])
    with pytest.raises(ValueError, match="address number 0 has no part") as refused:
        mail_scores(["x"], ["ann.zed"])
    assert "ann" not in str(refused.value)
