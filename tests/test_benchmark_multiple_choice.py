"""The benchmark of multiple-choice scoring on a tiny model: what is measured, and that both sides answer alike."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from reticent.gradients.attention import use_segments

pytest.importorskip("lm_eval")
pytest.importorskip("simple_icd_10_cm")


@pytest.fixture
def script(benchmark_script, tiny, monkeypatch):
    script = benchmark_script("multiple_choice")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="</s>")
    model = tiny.build(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
        )
    )
    use_segments(model)
    monkeypatch.setattr(script, "load", lambda name: (model, tokenizer))
    return script


def test_rows_and_file(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "ITEMS_QUICK", 2)
    monkeypatch.setattr(script, "SHOTS", 1)
    found = script.main(["--quick", "--json", str(tmp_path / "new" / "rows.json")])
    assert [row["bound"] for row in found] == [2, 2, 2, None]
    assert all(row["same"] and row["difference"] < 1e-3 and row["sense"] == "at least" for row in found)
    written = json.loads((tmp_path / "new" / "rows.json").read_text())
    assert [row["metric"] for row in written["rows"]] == [row["metric"] for row in found]


def test_other_answers_do_not_hold(script, monkeypatch):
    both = script.back_ends()
    theirs = both[1].loglikelihood
    monkeypatch.setattr(
        both[1], "loglikelihood", lambda requests, **rest: [(logp - 1, hit) for logp, hit in theirs(requests, **rest)]
    )
    shape = script.shapes(3, None)[2]._replace(bound=1e-9)
    assert script.measured(shape, both, 1, 1).holds is False


def test_files_of_benchmarks_are_read(script, tmp_path):
    (tmp_path / "ori_pqal.json").write_text(
        json.dumps({"1": {"QUESTION": "Zim?", "CONTEXTS": ["Qua.", "Torv."], "final_decision": "maybe"}})
    )
    (tmp_path / "medmcqa.jsonl").write_text(
        json.dumps({"question": "Blen?", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": 3}) + "\n"
    )
    (yes,), (four,) = script.pubmedqa(tmp_path), script.medmcqa(tmp_path)
    assert script.asked(yes, False) == "Context: Qua.\nTorv.\nQuestion: Zim?\nAnswer:"
    assert script.answers(yes, False)[yes.answer] == " maybe"
    assert script.asked(four, True) == "Question: Blen?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    assert script.answers(four, True)[four.answer] == " C"
