"""What sites must have in common, and what each has for itself."""

import hashlib

import pytest
import torch

from reticent import recipe as recipes
from reticent.federation.terms import differing, digest, shared, terms

BASE = {
    "data": {"source": {"path": "/a/notes.jsonl", "text": "note"}, "silos": {"clients": 3}},
    "model": {"base": "/models/here"},
    "train": {"steps": 10},
    "privacy": {"kind": "dp-sgd", "epsilon": 8},
    "federation": {"rounds": 5},
}


def changed(section, **changes):
    return recipes.from_dict({**BASE, section: {**BASE.get(section, {}), **changes}})


@pytest.mark.parametrize(
    "other",
    [
        changed("data", source={"path": "/b/mine.csv", "prompt": "q", "completion": "a"}),
        changed("data", held_out=0.3, calibration=0.1, canaries=None, seed=7, silos=None),
        changed("data", benchmarks={"files": ["/b/test.jsonl"]}),
        changed("model", base="/elsewhere/the-same"),
        changed("train", micro_batch_tokens="auto", checkpoint_every=3, gradient_checkpointing=True),
        changed("audit", twin=False),
        changed("evaluate", limit=10),
    ],
    ids=["source", "parts", "benchmarks", "folder", "machine", "audit", "evaluate"],
)
def test_a_site_has_its_own_text_machine_and_measurements(other):
    assert shared(other) == shared(recipes.from_dict(BASE))


@pytest.mark.parametrize(
    "other",
    [
        changed("privacy", epsilon=4),
        changed("privacy", unit="record"),
        changed("privacy", clip_norm=2),
        changed("train", learning_rate=1e-3),
        changed("train", batch_size=4),
        changed("train", seed=4),
        changed("federation", algorithm="scaffold"),
        changed("federation", secure_sum=True),
        changed("federation", threshold=3, secure_sum=True),
        changed("federation", rounds=10),
        changed("model", adapter={"kind": "lora", "rank": 3}),
        changed("model", dtype="float32"),
        changed("data", max_tokens=64),
        changed("data", template="plain"),
        changed("data", scrub={"style": "mask"}),
        changed("data", near_duplicates=None),
    ],
)
def test_what_changes_the_promise_or_the_model_is_shared(other):
    assert shared(other) != shared(recipes.from_dict(BASE))


def test_how_a_site_scrubs_in_private_is_its_own():
    one, other = (changed("data", scrub=own) for own in ({}, {"map_key": "/b/key", "processes": 3, "plants": 5}))
    assert shared(one) == shared(other)


def test_terms_are_of_files_and_not_of_their_places(tmp_path, base):
    import shutil

    here, there = base("llama"), tmp_path / "copy"
    shutil.copytree(here, there)
    first, second = (terms(changed("model", base=str(place)), {"w": torch.ones(2)}) for place in (here, there))
    assert first == second
    assert first.keys() == {
        "recipe",
        "base model",
        "tokenizer",
        "initial weights",
        "reticent",
        "torch",
        "transformers",
        "peft",
    }


@pytest.mark.parametrize(("file", "what"), [("model.safetensors", "base model"), ("tokenizer.json", "tokenizer")])
def test_another_model_is_told_by_what_differs(tmp_path, base, file, what):
    import shutil

    here, there = base("llama"), tmp_path / "copy"
    shutil.copytree(here, there)
    content = bytearray((there / file).read_bytes())
    place = content.index(b'"') if file.endswith("json") else len(content) - 1
    content[place : place + 1] = b' "' if file.endswith("json") else bytes([content[place] ^ 1])
    (there / file).write_bytes(content)
    first, second = (terms(changed("model", base=str(place)), {}) for place in (here, there))
    assert [line.split(" (")[0] for line in differing(first, second)] == [what]


def test_differences_are_told_with_both_values():
    assert differing({"torch": "2.9", "recipe": "ab" * 32}, {"torch": "2.8", "recipe": "cd" * 32}) == [
        "recipe (abababababab there, cdcdcdcdcdcd here)",
        "torch (2.9 there, 2.8 here)",
    ]


def test_what_one_side_does_not_say_differs():
    assert differing({}, {"peft": "0.1"}) == ["peft (None there, 0.1 here)"]
    assert differing({"new": "1"}, {}) == ["new (1 there, None here)"]


def test_a_digest_is_that_of_names_types_shapes_and_bytes():
    expected = hashlib.sha256(b"a:torch.float32:(2,)\n" + b"\x00\x00\x80\x3f" * 2).hexdigest()
    assert digest({"a": torch.ones(2)}) == expected
    assert digest({}) == hashlib.sha256().hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.zeros(2, 3), "b": torch.ones(2)},
        {"a": torch.zeros(3, 2), "b": torch.zeros(2)},
        {"a": torch.zeros(2, 3), "c": torch.zeros(2)},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.zeros(2)},
        {"a": torch.zeros(2, 3), "b": -torch.zeros(2)},
    ],
)
def test_a_digest_tells_arrays_apart(other):
    assert digest(other) != digest({"a": torch.zeros(2, 3), "b": torch.zeros(2)})


def test_a_digest_knows_no_order_and_no_strides():
    a, b = torch.arange(6.0).view(2, 3), torch.ones((), dtype=torch.bfloat16)
    assert digest({"a": a, "b": b}) == digest({"b": b, "a": a.T.contiguous().T})


def test_what_another_party_sends_is_cut_short_and_obeyed_by_no_terminal():
    told = differing({f"\x1b[2J{'x' * 100}{i:03}": "\x1b]0;y\x07" for i in range(30)}, {})
    assert len(told) == 11
    assert told[-1] == "20 more"
    assert all(len(line) < 90 and line.isprintable() for line in told)
