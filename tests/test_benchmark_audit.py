"""The benchmark of the audit on a tiny model: what is measured, and what is written."""

import json


def test_rows_and_file(benchmark_script, tiny, monkeypatch, tmp_path):
    script = benchmark_script("audit")
    monkeypatch.setattr(script, "of_its_size", lambda: tiny.model())
    monkeypatch.setattr(script, "TOKENS", 20)
    monkeypatch.setattr(script, "ROW", 64)
    monkeypatch.setattr(script, "FEW", 3)
    monkeypatch.setattr(script, "RECORDS_QUICK", 12)
    monkeypatch.setattr(script, "alone", lambda function, *values: (2**20, 2**21))
    claims = script.main(["--quick", "--model", "random", "--json", str(tmp_path / "new" / "audit.json")])
    assert [row.bound for row in claims] == [1.3, None, None, 1.1, None]
    written = json.loads((tmp_path / "new" / "audit.json").read_text())
    assert [row["metric"] for row in written["rows"]] == [row.metric for row in claims]
    assert len(written["seconds"]["bare"]) == 3


def test_both_sides_read_the_same_rows(benchmark_script, tiny, tmp_path):
    script = benchmark_script("audit")
    model, read = tiny.model(), []
    model.register_forward_pre_hook(lambda m, args, kwargs: read.append(kwargs["input_ids"].tolist()), with_kwargs=True)
    script.TOKENS, script.ROW = 20, 64
    records = [*script.Random(0, 9, 64)]
    script.bare(model, records)
    plain = read.copy()
    read.clear()
    script.Cache.write(tmp_path / "scores", script.CausalModel(model, max_tokens=64), records)
    assert read == plain and len(read) == 3
