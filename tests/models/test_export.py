"""What is exported loads without this package and is the run's model; anything else is refused."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from reticent.errors import ModelError
from reticent.gradients.engines import trained
from reticent.models import adapter, export
from reticent.models.load import load
from reticent.tokens import Tokens

TEXTS = [Tokens(np.arange(2, 14), np.arange(12) > 4), Tokens(np.arange(30, 21, -1), np.arange(9) > 0)]


@pytest.fixture
def base_of(tiny, tmp_path):
    """A folder with a tiny model of a family and type, and a tokenizer of numbers."""

    def make(family="llama-tied", dtype=torch.float32):
        folder = tmp_path / "base"
        tiny.build(tiny.families[family]()).to(dtype).save_pretrained(folder)
        tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(tiny.vocabulary)}, unk_token="0"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="0", eos_token="1").save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture
def trained_on(tmp_path):
    """Trains something on a base, by chance: an adapter, or everything."""

    def make(base, whole=False):
        model = load(base).model
        if whole:
            model = adapter.train_everything(model)
        else:
            model = adapter.add_lora(model, rank=2, alpha=4, dropout=0.0, targets="all-linear", seed=0)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(1)
            for parameter in trained(model).values():
                parameter.add_(0.05 * torch.randn_like(parameter))
        adapter.save(model, tmp_path / "trained", base="base")
        return tmp_path / "trained"

    return make


@pytest.fixture
def to(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def run(base, folder, to, kind="merged", texts=TEXTS):
    return export.export(base, folder, to, name="base", kind=kind, texts=texts)


def by_hand(base, folder, alpha=4, rank=2):
    """Every weight of the base, with the adapter's own alpha / rank B A added in float64."""
    weights = {name: one.double() for name, one in load_file(f"{base}/model.safetensors").items()}
    factors = load_file(folder / "adapter_model.safetensors")
    for name, a in factors.items():
        if name.endswith(".lora_A.weight"):
            b = factors[name.replace("lora_A", "lora_B")]
            layer = name.removeprefix("base_model.model.").replace(".lora_A", "")
            weights[layer] += alpha / rank * b.double() @ a.double()
    return weights


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids[None]).logits[0]


@pytest.mark.parametrize("family", ["llama-tied", "qwen3", "gpt2", "gemma"])
@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_what_is_exported_equals_the_run_s_model_in_every_family(base_of, trained_on, to, family, kind):
    base = base_of(family)
    found = run(base, trained_on(base), to, kind)
    assert found.exact.rms < 1e-6 and found.exact.same == 1 and found.rounded is None
    assert found.perplexity[0] == pytest.approx(found.perplexity[1], rel=1e-5) and found.texts == 2


def test_merged_weights_are_the_base_with_alpha_over_rank_b_a_added(base_of, trained_on, to):
    base = base_of()
    folder = trained_on(base)
    run(base, folder, to)
    found, expected = load_file(to / "model.safetensors"), by_hand(base, folder)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name].double(), expected[name], rtol=0, atol=1e-7) for name in expected)
    before = load_file(f"{base}/model.safetensors")
    assert sum(not torch.equal(found[name], before[name]) for name in before) == 14  # seven layers in each of two


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks in an outdated way
def test_an_adapter_loads_with_peft_alone_and_names_its_base_and_no_folder(base_of, trained_on, to):
    base = base_of()
    folder = trained_on(base)
    run(base, folder, to, "adapter")
    config = json.loads((to / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base" and config["peft_type"] == "LORA"
    assert (to / "adapter_model.safetensors").exists() and not (to / "README.md").exists()
    ids = torch.arange(2, 20)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(to)).eval()
    whole = AutoModelForCausalLM.from_pretrained(base)
    whole.load_state_dict({name: one.float() for name, one in by_hand(base, folder).items()}, strict=False)
    torch.testing.assert_close(logits(theirs, ids), logits(whole.eval(), ids), rtol=0, atol=1e-5)


def test_a_base_of_16_bits_is_stored_in_16_bits_rounded_once(base_of, trained_on, to):
    base = base_of(dtype=torch.bfloat16)
    folder = trained_on(base)
    found = run(base, folder, to)
    assert found.dtype == "bfloat16" and found.exact.rms < 1e-6 and 0 < found.rounded.divergence < export.DIVERGENCE
    assert 1e-4 < found.lost < 0.1 < found.tuned
    stored, expected = load_file(to / "model.safetensors"), by_hand(base, folder)
    # Where float32 lies at the edge of two 16-bit numbers, float64 may round to the other one: hardly ever.
    differ = sum(int((stored[name] != expected[name].float().bfloat16()).sum()) for name in expected)
    assert {one.dtype for one in stored.values()} == {torch.bfloat16} and differ <= 2
    assert json.loads((to / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(to).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_weights_are_exported_in_the_type_of_the_base(base_of, trained_on, to, dtype):
    base = base_of(dtype=dtype)
    found = run(base, trained_on(base, whole=True), to)
    assert found.size.adapter == 0 and found.size.share == 1 and found.exact.rms < 1e-6 and found.tuned is None
    assert AutoModelForCausalLM.from_pretrained(to).dtype == dtype


def test_whole_weights_are_no_adapter(base_of, trained_on, to):
    base = base_of()
    with pytest.raises(ModelError, match="whole weights and no adapter; export it with --kind merged"):
        run(base, trained_on(base, whole=True), to, "adapter")


def test_large_weights_are_sharded_and_load(base_of, trained_on, to, monkeypatch):
    monkeypatch.setattr(export, "_SHARD", "20KB")
    base = base_of()
    found = run(base, trained_on(base), to)
    assert len(list(to.glob("model-*.safetensors"))) > 2 and (to / "model.safetensors.index.json").exists()
    assert found.exact.same == 1


def test_the_folder_has_all_that_the_model_needs(base_of, trained_on, to):
    base = base_of()
    run(base, trained_on(base), to)
    names = {path.name for path in to.iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert AutoTokenizer.from_pretrained(to).encode("3 5") == [3, 5]
    assert base not in "".join(path.read_text() for path in to.glob("*.json"))


def test_a_quantisation_of_the_base_is_not_said_of_plain_weights(base_of, tmp_path):
    model = load(base_of()).model
    model.config.quantization_config = {"quant_method": "gguf"}
    export._save(model, tmp_path / "out", "base")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


# ---------------------------------------------------------------------------------------------------------- damaged


def rewrite(path, change):
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def drop(weights):
    del weights[next(name for name in weights if "q_proj" in name)]


def scale(weights):
    name = next(name for name in weights if "v_proj" in name)
    weights[name] = weights[name] * 1.01


def swap(weights):
    first, second = (next(name for name in weights if f".{i}." in name and "up_proj" in name) for i in (0, 1))
    weights[first], weights[second] = weights[second], weights[first].clone()


def add(weights):
    weights["model.no_such.weight"] = torch.zeros(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", [drop, scale, swap, add])
def test_a_damaged_save_of_whole_weights_is_found(base_of, trained_on, to, monkeypatch, change, dtype):
    save = export._save

    def damaged(model, folder, name):
        save(model, folder, name)
        rewrite(folder / "model.safetensors", change)

    monkeypatch.setattr(export, "_save", damaged)
    base = base_of(dtype=dtype)
    with pytest.raises(ModelError, match="the exported model is not the run's"):
        run(base, trained_on(base), to)


@pytest.mark.parametrize("change", [drop, scale, swap])
def test_a_damaged_save_of_an_adapter_is_found(base_of, trained_on, to, monkeypatch, change):
    base = base_of()
    folder = trained_on(base)
    save = adapter.save

    def damaged(model, folder, *, base):
        save(model, folder, base=base)
        rewrite(folder / "adapter_model.safetensors", change)

    monkeypatch.setattr(adapter, "save", damaged)
    with pytest.raises(ModelError, match="the exported model is not the run's"):
        run(base, folder, to, "adapter")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("times", [0, 2])
def test_an_adapter_merged_twice_or_not_at_all_is_found(base_of, trained_on, to, monkeypatch, times, dtype):
    merge = BaseTuner.merge_and_unload

    def scaled(self, *arguments, **options):
        for name, one in self.named_parameters():
            if ".lora_B." in name:
                one.data.mul_(times)
        return merge(self, *arguments, **options)

    monkeypatch.setattr(BaseTuner, "merge_and_unload", scaled)
    base = base_of(dtype=dtype)
    with pytest.raises(ModelError, match="merging the adapter into the base changed the logits"):
        run(base, trained_on(base), to)


def test_another_tokenizer_is_found(base_of, trained_on, to, monkeypatch):
    save = PreTrainedTokenizerFast.save_pretrained

    def other(self, folder, **options):
        self.chat_template = "{{ messages }}"
        return save(self, folder, **options)

    base = base_of()
    folder = trained_on(base)
    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", other)
    with pytest.raises(ModelError, match="the tokenizer loads as another one"):
        run(base, folder, to)


def test_a_file_that_cannot_be_read_is_found(base_of, trained_on, to, monkeypatch):
    save = export._save

    def cut(model, folder, name):
        save(model, folder, name)
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])

    monkeypatch.setattr(export, "_save", cut)
    base = base_of()
    with pytest.raises(ModelError, match="what was written cannot be loaded"):
        run(base, trained_on(base), to)


def test_weights_that_are_no_numbers_are_found(base_of, trained_on, to, monkeypatch):
    monkeypatch.setattr(export, "_read", lambda model, ids, **options: torch.full((3, 4), torch.nan))
    base = base_of()
    with pytest.raises(ModelError, match="changed the logits by nan"):
        run(base, trained_on(base), to, texts=[])


# -------------------------------------------------------------------------------------------------------- comparing


def test_agreement_by_hand():
    ours = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    theirs = torch.tensor([[0.0, 3.0], [0.0, 4.0]])
    found = export.compare(ours, theirs)
    assert found.rms == pytest.approx((18 / 25) ** 0.5) and found.largest == 0.75
    p = 1 / (1 + np.exp(-3))
    assert found.divergence == pytest.approx((p * 3 - (1 - p) * 3) / 2, rel=1e-5)
    assert found.same == 0.5 and found.positions == 2


def test_plain_log_probabilities_are_those_of_the_run(base_of):
    base = base_of("llama")
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    ours = export.CausalModel(load(base).model).log_probs(TEXTS)
    for own, theirs in zip(ours, export.log_probs(plain, TEXTS), strict=True):
        np.testing.assert_allclose(own.logp, theirs, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_base_s_own_configuration_says_the_type(base_of, dtype):
    assert export.dtype_of(base_of(dtype=dtype)) == dtype


def test_probes_are_public_and_always_the_same(base_of):
    tokenizer = load(base_of()).tokenizer
    first, second = (export.probes(tokenizer, 64) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert max(int(one.max()) for one in first) < 64
