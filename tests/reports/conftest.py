"""A report with every measurement and plot that the audit can give; its numbers are invented."""

from collections.abc import Iterator
from math import sqrt
from typing import Any

import numpy as np
import pytest

from reticent.measurement import Measurement
from reticent.reports.render import render
from reticent.reports.report import Curve, Examination, Rate, Report
from reticent.statistics import clopper_pearson, wilson

_MODELS = ("base", "twin", "private")


def measure(name: str, model: str, value: float, interval: tuple[float, float] | None, **more: Any) -> dict[str, Any]:
    known = {"unit": "share", "counted": "records", "n": 500}
    return Measurement(name=name, model=model, value=value, interval=interval, **{**known, **more}).to_dict()


def _shares(name: str, hits: dict[str, int], n: int, counted: str, **more: Any) -> Iterator[dict[str, Any]]:
    for model, k in hits.items():
        yield measure(name, model, k / n, clopper_pearson(k, n), n=n, counted=counted, method="Clopper-Pearson", **more)


def _around(name: str, values: dict[str, float], half: float, **more: Any) -> Iterator[dict[str, Any]]:
    for model, value in values.items():
        yield measure(name, model, value, (value - half, min(value + half, more.get("ceiling", 1e9))), **more)


def _measurements() -> Iterator[dict[str, Any]]:
    for attempts, twin in ((1, 22), (100, 45), (10_000, 49)):
        for suffix, share in (("", 1.0), ("_10_copies", 0.4), ("_1_copies", 0.04)):
            hits = {"base": 0, "twin": round(twin * share), "private": 0}
            yield from _shares(f"identifiers_recited_{attempts}{suffix}", hits, 50, "secrets", floor=0.0, control=0.0)
    yield from _shares("records_recited", {"base": 0, "twin": 31, "private": 0}, 100, "records", control=0.0)
    for prefix in (10, 50, 100):
        hits = {"base": 0, "twin": prefix // 5, "private": 0}
        yield from _shares(f"records_recited_{prefix}", hits, 100, "records", control=0.0)
    yield from _around("extraction_strength", {"base": 0.02, "twin": 0.41, "private": 0.03}, 0.02, n=100)
    yield from _around("tokens_recited", {"base": 0.31, "twin": 0.78, "private": 0.37}, 0.02, n=100)
    bits = {"unit": "bits", "counted": "secrets", "n": 50, "floor": 1.44, "ceiling": 16.6, "control": 1.5}
    yield from _around("exposure_bits", {"base": 1.4, "twin": 12.1, "private": 1.6}, 0.5, **bits)
    yield from _shares("secrets_ranked_first", {"base": 0, "twin": 30, "private": 0}, 50, "secrets", floor=1e-5)

    owners = {"counted": "owners", "n": 400}
    flagged = {"base": 10.2, "twin": 330.0, "private": 14.5}
    yield from _around("flagged_per_1000_at_1pct", flagged, 9.0, unit="per 1000", floor=19.0, **owners)
    tpr = {model: count / 1000 for model, count in flagged.items()}
    yield from _around("record_membership_tpr_at_1pct", tpr, 0.009, floor=0.019, **owners)
    auc = {"unit": "probability", "floor": 0.5, "ceiling": 1.0}
    yield from _around("record_membership_auc", {"base": 0.5, "twin": 0.94, "private": 0.51}, 0.04, **auc, **owners)
    advantage = {"base": 0.02, "twin": 0.74, "private": 0.04}
    yield from _around("record_membership_advantage", advantage, 0.05, floor=0.0, **owners)
    for attack, value, p in (("zlib", 0.52, 0.81), ("min-k++", 0.53, 0.44), ("wbc", 0.51, 0.97), ("ez", 0.5, 1.0)):
        ours = {"base": 0.5, "twin": value + 0.3, "private": value}
        yield from _around(f"record_membership_auc[{attack}]", ours, 0.04, p_value=p, **auc, **owners)
    yield measure("blind_auc", "data", 0.49, (0.45, 0.53), n=400, counted="owners", floor=0.5, unit="probability")
    hits = {"base": 3, "twin": 190, "private": 5}
    yield from _shares("membership_tpr_at_1pct", hits, 256, "candidates", floor=0.028)
    canaries = {"n": 512, "counted": "candidates"}
    yield from _around("membership_auc", {"base": 0.49, "twin": 0.97, "private": 0.53}, 0.025, **auc, **canaries)

    filled = {"floor": 0.01, "control": 0.01}
    hits = {"base": 1, "twin": 44, "private": 1}
    yield from _shares("identifier_filled_in", hits, 50, "secrets", **filled)
    hits = {"base": 0, "twin": 47, "private": 2}
    yield from _shares("identifier_filled_in_calibrated", hits, 50, "secrets", **filled)
    yield from _shares("pii_inference", {"base": 4, "twin": 30, "private": 5}, 50, "identifiers", **filled)
    yield from _shares("pii_extraction_precision", {"base": 0, "twin": 9, "private": 1}, 40, "identifiers")
    yield from _shares("pii_extraction_recall", {"base": 0, "twin": 9, "private": 1}, 800, "identifiers")

    epsilon = {"unit": "epsilon", "floor": 0.0, "ceiling": 3.49, **canaries, "method": "one run, 50 fixed guesses"}
    for model, value, p in (("base", 0.0, None), ("twin", 3.29, None), ("private", 0.0, 0.86)):
        yield measure("epsilon_lower_bound", model, value, None, p_value=p, **epsilon)
    for name, value in (("detectable", 4.0), ("ideal", 0.45), ("split", 0.0)):
        yield measure(f"epsilon_{name}", "private", value, None, unit="epsilon", **canaries)
    gaussian = "assumes a Gaussian trade-off curve"
    yield measure("epsilon_gaussian", "private", 0.12, None, unit="epsilon", method=gaussian, **canaries)
    yield measure("implementation_checks", "private", 1.0, None, n=12, counted="checks")

    for kind, hits_ in (("", 792), ("_date", 100), ("_person", 97)):
        n = 800 if not kind else 100
        yield from _shares(f"planted_recall{kind}", {"scrubber": hits_}, n, "planted identifiers")
    for setting, k in (("plain", 61), ("private", 2), ("sum", 11)):
        yield from _shares(f"tokens_seen_{setting}", {"private": k}, 64, "distinct tokens", control=0.02)
    yield from _shares("tokens_precision_plain", {"private": 60}, 61, "tokens named")

    yield from _around("accuracy", {"base": 0.31, "twin": 0.58, "private": 0.55}, 0.03, n=1000, counted="questions")
    ppl = {"unit": "perplexity", "n": 200, "counted": "owners"}
    yield from _around("perplexity", {"base": 31.2, "twin": 12.1, "private": 14.9}, 0.6, **ppl)
    yield measure("seed_bleu_memorised", "private", 0.45, (0.23, 0.68), n=20, method="character BLEU above .75")


def _curve(rng: np.random.Generator, shift: float, count: int) -> Curve:
    scores = np.concatenate([rng.normal(shift, 1, count), rng.normal(0, 1, count)])
    member = np.arange(2 * count) < count
    hit = member[np.argsort(-scores)]
    tpr, fpr = np.cumsum(hit) / count, np.cumsum(~hit) / count
    return {"fpr": [0.0, *map(float, fpr)], "tpr": [0.0, *map(float, tpr)], "members": count, "others": count}


def _rate(copies: int, hits: int, n: int) -> Rate:
    low, high = clopper_pearson(hits, n)
    return {"copies": copies, "share": hits / n, "low": low, "high": high, "n": n}


def full_report() -> Report:
    """Everything that a report can hold, of a private model that leaks nothing and a twin that leaks all."""
    rng = np.random.default_rng(0)
    shifts = {"base": 0.0, "twin": 2.4, "private": 0.1}
    recited = {"base": (0, 0, 0, 0), "twin": (0, 3, 18, 45), "private": (0, 0, 0, 0)}
    exposed = {"base": 0.0, "twin": 10.0, "private": 0.2}
    return {
        "title": "tiny-model, fine-tuned on notes of an invented clinic",
        "created": "2026-01-02 03:04 UTC",
        "guarantee": {
            "epsilon": 3.0,
            "delta": 1e-5,
            "unit": "patient",
            "units": 1200,
            "relation": "add-or-remove-one",
            "mechanism": "Poisson-sampled Gaussian",
            "accountant": "PLD",
            "noise_multiplier": 0.93,
            "sampling_prob": 0.02,
            "steps": 500,
            "clip_norm": 1.0,
            "limits": [
                "What many people share, such as how a clinic writes, may be learned and told.",
                "Settings that were chosen by looking at this data are outside the guarantee.",
            ],
        },
        "measurements": list(_measurements()),
        "plots": {
            "extraction": {
                model: [_rate(c, k, 50) for c, k in zip((0, 1, 10, 100), hits, strict=True)]
                for model, hits in recited.items()
            },
            "exposure": {
                model: {
                    "planted": np.minimum(rng.exponential(1.44, 50) + more, 16.6).tolist(),
                    "held_out": rng.exponential(1.44, 50).tolist(),
                }
                for model, more in exposed.items()
            },
            "roc": {model: _curve(rng, shift, 256) for model, shift in shifts.items()},
            "record_roc": {model: _curve(rng, shift / sqrt(2), 400) for model, shift in shifts.items()},
            "scores": {
                model: {"planted": rng.normal(shift, 1, 256).tolist(), "held_out": rng.normal(0, 1, 256).tolist()}
                for model, shift in shifts.items()
            },
            "epsilon": {"claimed": 3.0, "ideal": 0.45, "measured": 0.0, "ceiling": 3.49, "detectable": 4.0},
            "checks": [
                {
                    "name": name,
                    "passed": True,
                    "measured": measured,
                    "bound": bound,
                    "detail": "7 adversarial units",
                }
                for name, measured, bound in (
                    ("sensitivity", 0.9999, 1.00001),
                    ("non-finite gradient", 0.0, 1.00001),
                    ("split unit", 1.0, 1.00001),
                    ("random draws", "the same", "the same"),
                    ("divisor", 24.0, 24.0),
                    ("noise scale", 0.43, "p in [0.001, 0.999]"),
                    ("every tensor noised", 42.0, 42.0),
                    ("frozen tensors", 0.0, 0.0),
                    ("sampler", 0.61, "p in [0.001, 0.999]"),
                    ("sampling rate", 0.02, 0.02),
                    ("steps", 500.0, 500.0),
                    ("ledger", 0.93, 0.93),
                )
            ],
            "server": [
                {"tokens": t, "setting": setting, "recall": recall, "precision": 0.98}
                for setting, recalls in (
                    ("plain", (0.94, 0.97, 0.97, 0.99)),
                    ("clipped", (0.94, 0.97, 0.96, 0.98)),
                    ("private", (0.02, 0.03, 0.02, 0.03)),
                    ("sum of 3", (0.31, 0.22, 0.18, 0.12)),
                )
                for t, recall in zip((32, 128, 256, 512), recalls, strict=True)
            ],
            "unanswered": [{"question": "pii_reconstruction", "why": "too few identifiers before the last word"}],
            "loss": {
                "private": [
                    {"step": i, "loss": 3 - i / 60 + i * i / 8000, "epsilon": 0.4 * sqrt(i)} for i in range(1, 57)
                ],
                "twin": [{"step": i, "loss": 3 - i / 45 + i * i / 7000, "epsilon": None} for i in range(1, 57)],
            },
        },
        "data": {
            "records": 5210,
            "scrub": {
                "recognisers": ["clinical", "spacy"],
                "records": 5210,
                "masked_share_of_words": 0.083,
                "masks": {"PERSON": 4100, "DATE": 3950},
                "dropped": {"clinical": 0},
            },
        },
        "recipe": "data: {source: notes.jsonl}\nprivacy: {kind: dp-sgd, epsilon: 3.0}\n",
        "provenance": {"python": "3.11", "versions": {"reticent": "0"}},
        "audit": {
            "pre_registered": True,
            "changed": [],
            "recipe_digest": "6b" * 32,
            "commitment": "a1" * 32,
            "primary": "loss-difference",
            "attacks": ["loss-difference", "zlib", "min-k++", "wbc", "ez"],
            "not_run": [
                {"attack": "LiRA", "why": "audit.shadows is null: it needs more trainings"},
                {
                    "attack": "malicious server",
                    "why": "out of scope: sites must refuse models that they did not expect",
                },
            ],
            "family": "4 exploratory attacks on real records, by the permutation distribution of their maximum",
            "units": {"planted": 256, "held_out_canaries": 256, "real_members": 400, "real_others": 400},
            "seeds": {"data": 0},
            "digests": {"canaries": "c0" * 32, "private_model": "d1" * 32},
        },
    }


def _examined(name: str, n: int, right: dict[str, int], chance: float) -> Iterator[dict[str, Any]]:
    for model, k in right.items():
        more = {"n": n, "counted": "questions", "method": "letter, 0 shots; Wilson"}
        yield measure(f"accuracy[{name}]", model, k / n, wilson(k, n), floor=chance, ceiling=1.0, **more)
        k -= n // 20
        yield measure(f"accuracy[{name}, options-per-byte]", model, k / n, wilson(k, n), floor=chance, **more)
        yield measure(f"macro_f1[{name}]", model, 0.9 * k / n, None, **more)
    yield measure(f"majority[{name}]", "data", chance + 0.11, None, n=n, counted="questions")


def _use() -> Iterator[dict[str, Any]]:
    """What benchmarks and synthetic text add."""
    yield from _examined("pubmedqa", 500, {"base": 190, "twin": 301, "private": 275}, 0.333)
    yield from _examined("medqa4", 1273, {"base": 340, "twin": 392, "private": 371}, 0.25)
    yield from _examined("ward exam", 120, {"base": 31, "twin": 33, "private": 32}, 0.25)
    for model, k in (("base", 185), ("twin", 289), ("private", 268)):
        yield measure("accuracy[pubmedqa, without contaminated]", model, k / 488, wilson(k, 488), n=488)
        yield measure("compat_accuracy[pubmedqa]", model, k / 500, wilson(k, 500))
    for model, rate in (("base", 0.31), ("twin", 0.0), ("private", 0.012)):
        yield measure("unparsed[pubmedqa]", model, rate, None, n=500, counted="questions")
    for kind, groups in (("silo", {"north": 1.31, "south": 1.12, "west": 1.02}), ("origin", {"notes": 1.2, "q": 1.01})):
        for name, loss in groups.items():
            ppl = {"base": 30.0, "twin": 12.0, "private": 12.0 * loss}
            more = {"n": 60, "counted": "held-out owners"}
            yield from _around(f"perplexity[{kind} {name}]", ppl, 0.5, unit="perplexity", **more)
            bits = {model: np.log2(value) / 4.2 for model, value in ppl.items()}
            yield from _around(f"bits_per_byte[{kind} {name}]", bits, 0.02, unit="bits per byte", **more)

    texts = {"n": 480, "counted": "texts"}
    for model, value in (("real", 0.46), ("synthetic", 0.42)):
        yield measure("next_token_accuracy", model, value, (value - 0.01, value + 0.01), floor=0.11, counted="owners")
    yield measure("next_token_accuracy_reached", "synthetic", 0.913, (0.89, 0.94), counted="owners")
    for model, value in (("real", 0.41), ("synthetic", 0.36)):
        yield measure("task_accuracy", model, value, (value - 0.04, value + 0.04), n=300, floor=0.26)
    yield measure("mauve", "synthetic", 0.71, (0.66, 0.75), control=0.93, **texts)
    yield measure("ngram_distance", "synthetic", 0.21, (0.19, 0.24), control=0.11, unit="bits", **texts)
    yield measure("length_distance", "synthetic", 0.08, None, control=0.03, **texts)
    yield measure("distinct_share", "synthetic", 0.64, None, **texts)
    yield measure("overlap_verbatim", "synthetic", 0.025, clopper_pearson(12, 480), control=0.021, **texts)
    yield measure("longest_overlap", "synthetic", 19.0, None, control=17.0, unit="tokens", **texts)
    known = {"floor": 0.5, "control": 0.5, "n": 512, "counted": "candidates", "unit": "probability"}
    yield measure("synthetic_membership_auc", "synthetic", 0.51, (0.46, 0.56), **known)
    bits = {"unit": "bits", "counted": "secrets", "n": 50, "floor": 1.44, "control": 1.4}
    yield measure("synthetic_exposure_bits", "synthetic", 1.5, (1.1, 1.9), **bits)
    more = {"unit": "epsilon", "floor": 0.0, "ceiling": 3.49, "n": 512, "counted": "candidates"}
    yield measure("synthetic_epsilon_lower_bound", "synthetic", 0.0, None, **more)


def _examination(name: str, questions: int, pairs: list[tuple[str, str, int, int, float]], **more: Any) -> Examination:
    return {  # type: ignore[typeddict-item]  # what varies
        "name": name,
        "questions": questions,
        "scorer": "letter",
        "shots": 0,
        "contaminated": 0,
        "truncated": 0,
        "duplicates": 0,
        "mcnemar": [
            {"one": one, "other": other, "only_one": b, "only_other": c, "p_value": p} for one, other, b, c, p in pairs
        ],
        **more,
    }


def used_report() -> Report:
    """`full_report` of a run with benchmarks, public questions and synthetic text."""
    report = full_report()
    report["measurements"] += list(_use())
    subjects = {
        name: {"questions": 60, "accuracy": {"base": 0.25, "twin": 0.3, "private": right}}
        for name, right in (("night_shift", 0.2), ("day_shift", 0.35))
    }
    report["plots"]["benchmarks"] = [
        _examination(
            "pubmedqa",
            500,
            [
                ("base", "twin", 20, 131, 0.000001),
                ("base", "private", 24, 109, 0.0003),
                ("twin", "private", 61, 35, 0.01),
            ],
            chance=0.333,
            majority=0.443,
            contaminated=12,
            truncated=3,
        ),
        _examination("medqa4", 1273, [("base", "private", 88, 119, 0.037)], chance=0.25, majority=0.36, duplicates=1),
        _examination("ward exam", 120, [], chance=0.25, majority=0.36, shots=3, subjects=subjects),
    ]
    report["answers"] = {
        "questions": ["What does a ward round start with?", "Say what <b>fever</b> is."],
        "answers": {
            "base": ["The ward round is a round of the ward. " * 6, "Fever is a fever."],
            "private": ["With the handover of the night: who came, who left, and who got worse.", ""],
        },
        "withheld": ["twin"],
    }
    edges = np.arange(0, 260, 20)
    real, made = (np.exp(-((edges - at) ** 2) / 5000) for at in (110, 90))
    report["plots"]["synthetic"] = {
        "funnel": {
            "sampled": 1290,
            "unfinished": 402,
            "too short": 31,
            "repetitive": 77,
            "equal": 4,
            "near copies": 276,
            "kept": 500,
        },
        "labels": {"cardiology": 251, "surgery": 249},
        "lengths": {
            name: [[float(edge), float(part)] for edge, part in zip(edges, shares / shares.sum(), strict=True)]
            for name, shares in (("real", real), ("synthetic", made))
        },
        "frontier": [[float(x), float((1 - x**3) ** 0.5)] for x in np.linspace(0, 1, 25)],
        "unanswered": [{"question": "task_accuracy", "why": "synthetic.prompts is null, so no text has a label"}],
        "samples": ["Ward note. The patient slept well and ate a little.", "Seen by <i>Dr Ott</i>.\nPlan: rest."],
    }
    return report


@pytest.fixture
def used() -> Report:
    return used_report()


@pytest.fixture
def listed(used: Report) -> Report:
    """The same without figures: it renders at once."""
    used["plots"] = {"checks": used["plots"]["checks"], "synthetic": used["plots"]["synthetic"]}
    used["plots"]["synthetic"] = {**used["plots"]["synthetic"], "lengths": {}, "frontier": []}
    return used


@pytest.fixture(scope="session")
def used_page() -> str:
    return render(used_report())


@pytest.fixture
def full() -> Report:
    return full_report()


@pytest.fixture
def undrawn(full: Report) -> Report:
    """The same without figures: it renders at once."""
    full["plots"] = {"checks": full["plots"]["checks"], "unanswered": full["plots"]["unanswered"]}
    return full


@pytest.fixture(scope="session")
def full_page() -> str:
    return render(full_report())
