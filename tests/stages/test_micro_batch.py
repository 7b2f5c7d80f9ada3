"""`train.micro_batch_tokens: auto` and `model.quantize` from the command line."""

from reticent.training import fit

AUTO = ("-s", "train.micro_batch_tokens=auto")


def test_a_run_searches_the_micro_batch_and_then_trains(place):
    place.call("prepare", "my.yaml", *AUTO)
    told = place.call("train", "runs/my").output
    assert told.count("tokens, as many as fit (train.micro_batch_tokens: auto)") == 2  # twin and private
    assert place.releases() == place.steps
    assert not place.leaked(told)


def test_nothing_is_spent_when_no_micro_batch_fits(place, monkeypatch):
    place.call("prepare", "my.yaml", *AUTO, "-s", "audit.twin=false")
    monkeypatch.setattr(fit, "available", lambda: 0)
    place.refused("train", "runs/my", match="even 512 tokens at once do not fit")
    assert not place.run.ledger_path("private").exists()


def test_check_says_that_it_is_searched_for(place):
    assert "searched for before training" in place.call("check", "my.yaml", *AUTO).output
    assert "2048 tokens" in place.call("check", "my.yaml").output


def test_quantising_without_a_gpu_is_refused(place):
    place.call("prepare", "my.yaml", "-s", "model.quantize=4bit")
    place.refused("train", "runs/my", match="model.quantize: 4bit needs")
