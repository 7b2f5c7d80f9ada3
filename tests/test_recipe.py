from pathlib import Path

import pytest

from reticent import recipe
from reticent.errors import RecipeError
from reticent.recipe import DPMF, DPSGD, PRESETS, ClipQuantile, Data, FullFineTuning, Lora, NonPrivate, Recipe, Source

BASE = "data: {source: bundled/clinic}\nprivacy: {kind: dp-sgd, epsilon: 8}\n"
FILE = "data: {source: {path: notes.jsonl, text: note}}\nprivacy: {kind: none}\n"


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a recipe given as text, with overrides."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)

    def load(text: str, *overrides: str) -> Recipe:
        path = folder / "my.yaml"
        path.write_text(text, encoding="utf-8")
        return recipe.load(path, overrides)

    return load


def test_defaults_fill_what_is_not_stated(load):
    assert load(BASE) == Recipe(data=Data(source="bundled/clinic"), privacy=DPSGD(epsilon=8))


def test_unknown_key_names_the_nearest_valid_one(load):
    with pytest.raises(RecipeError, match=r"unknown key train.step; did you mean train.steps\? Valid: train.steps, "):
        load(BASE + "train: {step: 3}")


def test_unknown_key_is_found_in_another_section(load):
    with pytest.raises(RecipeError, match=r"unknown key steps; did you mean train.steps\? Valid: data, model"):
        load(BASE + "steps: 3")


def test_unknown_key_of_another_kind_says_which_kind_has_it(load):
    with pytest.raises(
        RecipeError, match=r"unknown key privacy.epsilon; 'none' has no such key, dp-sgd and dp-mf have"
    ):
        load(FILE, "privacy.epsilon=3")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.steps=0"], "train.steps must be greater than or equal to 1, got 0"),
        (["train.steps='10'"], "train.steps must be a whole number, got '10'"),
        (["train.steps=true"], "train.steps must be a whole number, got True"),
        (["train.learning_rate=.inf"], "train.learning_rate must be a finite number, got inf"),
        (["train.optimizer=adam"], "train.optimizer must be 'adamw', 'sgd' or 'dp-adam', got 'adam'"),
        (["train=4"], "train must be a mapping of keys, got 4"),
        (["train.warmup=400"], r"train: warmup must be <= steps \(300\), got 400"),
        (["data.held_out=1"], "data.held_out must be less than 1, got 1"),
        (["data.source=clinic"], "data.source must be 'bundled/clinic', got 'clinic'"),
        (["model.adapter.targets=5"], "model.adapter.targets must be a list or 'all-linear', got 5"),
        (["model.adapter.kind=foo"], "model.adapter.kind must be one of 'lora', 'full', got 'foo'"),
        (["privacy={epsilon: 8}"], "privacy.kind is missing; it must be one of 'none', 'dp-sgd', 'dp-mf'"),
        (["privacy.noise_multiplier=1"], "privacy: exactly one of epsilon and noise_multiplier is needed, got both"),
        (["privacy.epsilon=null"], "privacy: exactly one of epsilon and noise_multiplier is needed, got neither"),
        (
            ["privacy.clip_style=automatic", "privacy.clip_quantile={target: 0.3}"],
            "privacy: clip_quantile needs clip_style: flat, got automatic",
        ),
        (["privacy={kind: dp-mf, epsilon: 1, bands: 0}"], "privacy.bands must be greater than or equal to 1, got 0"),
        (
            ["privacy={kind: dp-mf, epsilon: 1, clip_quantile: {}}"],
            "privacy.clip_quantile; 'dp-mf' has no such key, dp-sgd has",
        ),
        (["train.momentum=0.5"], "train: momentum needs optimizer: sgd, got adamw"),
        (["train.micro_batch_tokens=8"], "greater than or equal to 16 or 'auto', got 8"),
        (
            ["train.micro_batch_tokens=auto", "train.shard=true"],
            "train: micro_batch_tokens: auto tries the whole model",
        ),
        (["model.quantize=2bit"], "model.quantize must be '4bit' or '8bit', got '2bit'"),
        (["model.quantize=4bit", "model.adapter.kind=full"], r"model: quantize: 4bit .* \{kind: lora\}, got full"),
        (["model.quantize=4bit", "train.shard=true"], "^model.quantize: 4bit holds the whole model on one GPU"),
        (["train.optimizer=dp-adam", "privacy={kind: none}"], "^train.optimizer: dp-adam takes noise off"),
        (["privacy.delta=1"], "privacy.delta must be less than 1, got 1"),
        (["data.source={text: a}"], "data.source: exactly one of path and hub is needed, got neither"),
        (["data.source={path: a.csv, hub: b, text: c}"], "exactly one of path and hub is needed, got both"),
        (["data.source={path: a.csv}"], "exactly one of text and completion is needed, got neither"),
        (
            ["data.source={path: a.csv, text: a, completion: b}"],
            "exactly one of text and completion is needed, got both",
        ),
        (["data.source={path: a.csv, text: a, prompt: b}"], "prompt needs completion"),
        (["data.source={path: a.txt, text: a, owner: b}"], "a .txt file has no fields; leave out text and owner"),
        (["data=null"], "data must be a mapping of keys, got None"),
        (["train.steps"], "an override must look like train.steps=10, got 'train.steps'"),
        (["train.steps=["], r"-s train.steps=\[, line 1: "),
    ],
)
def test_wrong_value_names_key_bound_and_value(load, overrides, message):
    with pytest.raises(RecipeError, match=message):
        load(BASE, *overrides)


def test_every_mistake_is_told_at_once(load):
    with pytest.raises(RecipeError) as caught:
        load(BASE, "train.steps=0", "train.seeds=3", "privacy.clip_norm=-1")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "my.yaml, line 3: a is given twice, first in line 1"),
        ("data:\n  a: [1\nb: 3\n", "my.yaml, line 3: expected"),
        ("a: 1\nb: \x07\n", "my.yaml, line 2: special characters are not allowed"),
        ("a: !!python/name:os.system\n", "my.yaml, line 1: could not determine a constructor"),
        ("", "must be a mapping of sections"),
        ("data: !!set {a}\n", "a recipe holds only text, numbers, lists and mappings"),
        ("data: &a [*a]\n", "a recipe holds only text, numbers, lists and mappings"),
    ],
)
def test_broken_yaml_names_file_and_line(load, text, message):
    with pytest.raises(RecipeError, match=message):
        load(text)


def test_missing_and_binary_files_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="No such file or directory; write one with: reticent new"):
        recipe.load(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(RecipeError, match=r"binary.yaml is not UTF-8 text"):
        recipe.load(tmp_path / "binary.yaml")


@pytest.mark.parametrize("written", ["1e-4", "1E-4", "1.0e-4", "0.0001", ".0001"])
def test_every_way_to_write_a_number_is_a_number(load, written):
    assert load(BASE + f"train: {{learning_rate: {written}}}").train.learning_rate == 1e-4


@pytest.mark.parametrize("word", ["no", "off", "yes", "1:30", "010", "1_0", "2026-01-02"])
def test_words_that_yaml_1_1_reads_otherwise_stay_text_and_survive_a_dump(load, word):
    asked = load(f"data: {{source: {{path: a.csv, text: {word}}}}}\nprivacy: {{kind: none}}\n")
    assert isinstance(asked.data.source, Source)
    assert asked.data.source.text == word
    assert load(recipe.dump(asked)) == asked


def test_override_of_a_kind_replaces_the_section_in_any_order(load):
    assert load(BASE, "privacy.unit=record", "privacy.kind=none").privacy == NonPrivate(unit="record")
    assert load(BASE, "model.adapter.kind=full").model.adapter == FullFineTuning()
    assert load(BASE, "privacy.kind=dp-sgd").privacy == DPSGD(epsilon=8)


def test_every_mechanism_can_be_asked_for(load):
    assert load(BASE, "privacy={kind: dp-mf, epsilon: 2, bands: 4}").privacy == DPMF(epsilon=2, bands=4)
    asked = load(BASE, "privacy.clip_quantile={target: 0.3}").privacy
    assert asked == DPSGD(epsilon=8, clip_quantile=ClipQuantile(target=0.3))


def test_the_size_of_a_micro_batch_may_be_searched_for(load):
    assert load(BASE, "train.micro_batch_tokens=auto").train.micro_batch_tokens == "auto"
    assert load(BASE, "train.micro_batch_tokens=64").train.micro_batch_tokens == 64


def test_override_goes_on_top_of_defaults(load):
    assert load(BASE, "model.adapter.rank=4", "data.canaries.pairs=3").model.adapter == Lora(rank=4)
    assert load(BASE, "data.canaries=null").data.canaries is None
    assert load(BASE, "model.adapter.targets=[q_proj, v_proj]").model.adapter == Lora(targets=("q_proj", "v_proj"))


def test_paths_follow_the_recipe_file_and_overrides_the_current_folder(load, tmp_path):
    def path(asked: Recipe) -> str | None:
        assert isinstance(asked.data.source, Source)
        return asked.data.source.path

    assert path(load(FILE)) == str(tmp_path / "recipes" / "notes.jsonl")
    assert path(load(FILE, "data.source.path=notes.jsonl")) == str(tmp_path / "notes.jsonl")
    assert path(load(FILE, "data.source.path=/data/notes.jsonl")) == "/data/notes.jsonl"
    assert load(BASE + "model: {base: ./here}").model.base == str(tmp_path / "recipes" / "here")
    assert load(BASE + "model: {base: maker/name}").model.base == "maker/name"


@pytest.mark.parametrize("name", PRESETS)
def test_commented_recipe_loads_to_its_preset(load, name, tmp_path):
    text = recipe.commented(name)
    expected = PRESETS[name][1].model_dump(mode="json")
    if name == "file":
        expected["data"]["source"]["path"] = str(tmp_path / "recipes" / expected["data"]["source"]["path"])
    assert load(text) == recipe.from_dict(expected)


def test_commented_recipe_states_and_explains_every_setting():
    lines = [line.strip() for line in recipe.commented("clinic").splitlines()]
    settings = recipe.flatten(PRESETS["clinic"][1].model_dump())
    for key in settings:
        place = next(i for i, line in enumerate(lines) if line.startswith(key.split(".")[-1] + ":"))
        assert key.endswith(".kind") or lines[place - 1].startswith("#"), key


def test_dump_and_load_keep_the_digest(load):
    asked = load(BASE, "model.adapter.alpha=16", "train.learning_rate=3e-5")
    again = load(recipe.dump(asked))
    assert again == asked
    assert recipe.digest(again) == recipe.digest(asked)
    assert recipe.digest(load(BASE)) == recipe.digest(PRESETS["clinic"][1])
    assert recipe.digest(asked) != recipe.digest(load(BASE))


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml")), ids=lambda p: p.name
)
def test_recipes_of_the_project_load(path):
    assert recipe.load(path)


# The federation section.

FEDERATED = BASE + "federation: {}\n"


def test_a_federation_has_defaults(load):
    asked = load(FEDERATED).federation
    assert (asked.rounds, asked.algorithm, asked.lora, asked.secure_sum, asked.privacy) == (
        5,
        "fedavg",
        "freeze-a",
        False,
        None,
    )
    assert load(BASE).federation is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rounds=0"], "federation.rounds must be greater than or equal to 1, got 0"),
        (["algorithm=fedsgd"], "federation.algorithm must be 'fedavg', 'fedprox', .* or 'fedadam', got 'fedsgd'"),
        (["lora=ffa"], "federation.lora must be 'freeze-a', 'average', 'product', 'residual' or 'merged', got 'ffa'"),
        (["compress=zip"], "federation.compress must be 'none', 'lossless', 'bf16', 'int8' or 'top-k', got 'zip'"),
        (["server_beta1=1"], "federation.server_beta1 must be less than 1, got 1"),
        (["top_k=0"], "federation.top_k must be greater than 0, got 0"),
        (["learning_rates={a: 0}"], "federation.learning_rates.* must be greater than 0, got 0"),
        (["deadline=0"], "federation.deadline must be greater than 0, got 0"),
        (["round=3"], "unknown key federation.round; did you mean federation.rounds"),
        (["rounds=7"], r"train.steps must be a multiple of federation.rounds \(7\), got 300"),
        (["lora=product", "algorithm=scaffold"], "lora: product .* needs algorithm: fedavg or fedprox, got scaffold"),
        (["lora=residual", "algorithm=fedadam"], "lora: residual .* needs algorithm: fedavg or fedprox, got fedadam"),
        (["lora=merged", "secure_sum=true"], "lora: merged needs each site's own factors"),
        (["lora=product", "clip_norm=1"], "lora: product needs each site's own factors"),
        (["lora=residual"], "federation.lora: residual adds to the base .* say model.dtype: float32, got auto"),
        (["secure_sum=true", "compress=int8"], "secure_sum adds whole numbers; compress must be none, got int8"),
        (["secure_sum=true", "algorithm=scaffold"], "scaffold sends a second vector"),
        (["algorithm=scaffold", "weights=equal", "privacy={epsilon: 8}"], "scaffold sends a second vector"),
        (["privacy={epsilon: 8}"], "privacy hides one site among equals; say weights: equal"),
        (["privacy={}", "weights=equal"], "federation.privacy: exactly one of epsilon and noise_multiplier"),
        (["privacy={epsilon: 8}", "weights=equal", "clip_norm=1"], "leave out federation.clip_norm"),
        (
            ["privacy={epsilon: 8, noise: distributed}", "weights=equal"],
            "distributed hides nothing unless updates are only seen as a sum; say secure_sum: true",
        ),
        (
            ["privacy={epsilon: 8}", "weights=equal", "secure_sum=true", "per_round=4"],
            "sites cannot be drawn in secret; leave out per_round",
        ),
        (["privacy={epsilon: 8}", "weights=equal", "quorum=2"], "leave out quorum"),
        (["quorum=3", "per_round=2"], r"quorum must be <= per_round \(2\), got 3"),
        (["secure_sum=true", "quorum=2"], "leave out quorum"),
        (["threshold=2"], "say secure_sum: true"),
        (["threshold=1"], "federation.threshold must be greater than or equal to 2, got 1"),
    ],
)
def test_a_federation_that_does_not_fit_together_is_refused(load, overrides, message):
    with pytest.raises(RecipeError, match=message):
        load(FEDERATED, *(f"federation.{one}" for one in overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.shard=true"], "with federation say shard: false"),
        (["model.quantize=4bit"], "federation needs the same base at every site; say model.quantize: null"),
        (["train.steps=301"], r"train.steps must be a multiple of federation.rounds \(5\), got 301"),
    ],
)
def test_a_recipe_that_a_federation_cannot_follow_is_refused(load, overrides, message):
    with pytest.raises(RecipeError, match=message):
        load(FEDERATED, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["federation.local=epoch", "train.steps=301"],
        ["federation.only=hospital", "train.steps=301"],
        ["federation.lora=merged", "model.dtype=float32"],
        ["federation.lora=residual", "model.adapter={kind: full}"],
        [
            "federation.weights=equal",
            "federation.secure_sum=true",
            "federation.privacy={epsilon: 8, noise: distributed}",
        ],
        ["federation.weights=equal", "federation.per_round=4", "federation.privacy={noise_multiplier: 1}"],
    ],
)
def test_a_federation_that_fits_together_loads(load, overrides):
    assert load(FEDERATED, *overrides).federation


@pytest.mark.parametrize(
    ("text", "promises"),
    [
        (FEDERATED, True),
        (FILE + "federation: {}\n", False),
        (FILE + "federation: {weights: equal, privacy: {epsilon: 8}}\n", True),
    ],
)
def test_a_promise_to_sites_is_a_promise(load, text, promises):
    assert load(text).promises == promises
