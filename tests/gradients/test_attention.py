"""Records in one row do not see each other; what cannot be kept apart is refused by name."""

import pytest
import torch
from transformers import BloomConfig, Gemma2Config, GptOssConfig, Lfm2Config, LlamaConfig

from reticent.errors import ModelError
from reticent.gradients import attention
from reticent.gradients.attention import Segment, causal, segments, use_segments
from reticent.gradients.rows import pack

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "pad_token_id": None,
}
FAMILIES = ["llama", "llama-tied", "qwen3", "neox", "mistral", "gemma"]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_packed_row_reads_each_record_as_if_alone(tiny, family):
    model = tiny.model(family, dtype=torch.float64)
    alone = tiny.plain(model)
    ((row,),) = pack(tiny.units(6), max_tokens=1000, loss="sum")
    with segments(causal(row.records)):
        packed = model(input_ids=row.ids, position_ids=row.positions, use_cache=False).logits[0]
    for start, end in zip((0, *row.records[:-1]), row.records, strict=True):
        torch.testing.assert_close(
            packed[start:end], alone(input_ids=row.ids[:, start:end]).logits[0], rtol=0, atol=1e-5
        )


@torch.no_grad()
def test_a_short_window_matters(tiny):
    """Guards the Mistral case above: with the window ignored its logits would differ."""
    model = tiny.model("mistral")
    ids = torch.arange(2, 22)[None]
    with segments(causal([20])):
        windowed = model(input_ids=ids).logits
    model.config.sliding_window = None
    for layer in model.model.layers:
        layer.self_attn.sliding_window = None
    with segments(causal([20])):
        assert (model(input_ids=ids).logits - windowed).abs().max() > 0.01


def test_a_row_without_segments_is_refused(tiny):
    with pytest.raises(ModelError, match="without its segments"):
        tiny.model()(input_ids=torch.zeros(1, 4, dtype=torch.long))


def test_segments_of_another_length_are_refused(tiny):
    with pytest.raises(ModelError, match="without its segments"), segments(causal([3])):
        tiny.model()(input_ids=torch.zeros(1, 4, dtype=torch.long))


def test_a_padded_batch_is_refused(tiny):
    with pytest.raises(ModelError, match="without its segments"), segments(causal([4])):
        tiny.model()(input_ids=torch.zeros(2, 4, dtype=torch.long))


def test_a_cached_continuation_is_refused(tiny):
    model = tiny.model()
    with segments(causal([4])):
        cache = model(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=True).past_key_values
    with pytest.raises(ModelError, match="without its segments"), segments(causal([1])):
        model(input_ids=torch.zeros(1, 1, dtype=torch.long), past_key_values=cache)


def test_a_model_that_was_not_prepared_is_refused(tiny):
    model = tiny.build(tiny.families["llama"]())
    with pytest.raises(ModelError, match="use_segments did not prepare"), segments(causal([2, 4])):
        model(input_ids=torch.zeros(1, 4, dtype=torch.long))


def test_segments_end_with_their_block_even_after_an_error(tiny):
    with pytest.raises(ZeroDivisionError), segments(causal([4])):
        raise ZeroDivisionError
    with pytest.raises(ModelError, match="without its segments"):
        tiny.model()(input_ids=torch.zeros(1, 4, dtype=torch.long))


def test_a_tree_longer_than_the_window_is_refused(tiny):
    tree = Segment(0, 8, torch.eye(8, dtype=torch.bool))
    with pytest.raises(ModelError, match="longer than the attention window 5"), segments([tree]):
        tiny.model("mistral")(input_ids=torch.zeros(1, 8, dtype=torch.long))


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (
            BloomConfig(hidden_size=32, n_layer=1, n_head=4, vocab_size=64),
            "BloomForCausalLM does not take an attention",
        ),
        (Gemma2Config(**SIZES), "Gemma2ForCausalLM caps attention scores"),
        (GptOssConfig(**{**SIZES, "num_local_experts": 2}), "GptOssAttention changes attention scores"),
        (Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]), "Lfm2ForCausalLM mixes tokens outside attention"),
        (
            LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
            r"LlamaForCausalLM turns positions by the longest record of a row \(rope type dynamic\)",
        ),
    ],
    ids=["own-attention", "softcap", "sinks", "convolution", "dynamic-rope"],
)
def test_what_cannot_keep_records_apart_is_refused_by_name(tiny, config, match):
    with pytest.raises(ModelError, match=match):
        use_segments(tiny.build(config))


def test_preparing_leaves_no_hook(tiny):
    assert not tiny.model().get_input_embeddings()._forward_hooks


def slow_varlen(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
):
    """The formula record by record, with the arguments of torch's varlen_attn; checks what the kernel trusts."""
    assert cu_seq_q is cu_seq_k and cu_seq_q.dtype == torch.int32
    assert max_q == max_k == cu_seq_q.diff().max()
    assert enable_gqa or query.shape[1] == key.shape[1]
    group = query.shape[1] // key.shape[1]
    left, right = (torch.inf if side < 0 else side for side in window_size)
    out = []
    for start, end in zip(cu_seq_q.tolist()[:-1], cu_seq_q.tolist()[1:], strict=True):
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        ahead = torch.arange(end - start) - torch.arange(end - start)[:, None]
        hidden = (ahead > right) | (-ahead > left)
        scores = q @ k.repeat_interleave(group, 0).mT * (scale or q.shape[-1] ** -0.5)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out.append((weights @ v.repeat_interleave(group, 0)).transpose(0, 1))
    return torch.cat(out)


@pytest.fixture
def kernel(monkeypatch):
    """Lets this CPU pass for a GPU whose kernel is `slow_varlen`; returns the arguments of its calls."""
    calls = []

    def varlen(*args, scale=None, window_size=(-1, -1), enable_gqa=False):
        calls.append((*args, window_size))
        return slow_varlen(*args, scale=scale, window_size=window_size, enable_gqa=enable_gqa)

    monkeypatch.setattr(attention, "_varlen", varlen)
    monkeypatch.setattr(attention, "_has_flash", lambda device: True)
    return calls


def read(model, row):
    """Logits of a row and the gradient of their weighted sum to each parameter."""
    model.requires_grad_(True)
    with segments(causal(row.records)):
        logits = model(input_ids=row.ids, position_ids=row.positions, use_cache=False).logits
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    return logits, dict(
        zip(
            (name for name, _ in model.named_parameters()),
            torch.autograd.grad((logits * weights).sum(), list(model.parameters())),
            strict=True,
        )
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernel_for_gpus_reads_and_learns_as_the_batches_do(tiny, kernel, monkeypatch, family):
    model = tiny.model(family, dtype=torch.float64)
    ((row,),) = pack(tiny.units(6), max_tokens=1000, loss="sum")
    logits, gradients = read(model, row)
    assert not kernel  # float64 never takes it
    monkeypatch.setattr(attention, "_HALF", (torch.float64,))
    by_kernel, gradients_by_kernel = read(model, row)
    assert len(kernel) == 2  # layers
    # Not exact: rotary positions and norms compute in float32.
    torch.testing.assert_close(by_kernel, logits, rtol=0, atol=1e-5)
    assert tiny.distance(gradients_by_kernel, gradients) <= 1e-5 * tiny.norm(gradients)


@torch.no_grad()
def test_all_layers_share_the_ends_of_the_records(tiny, kernel):
    with segments(causal([3, 4, 11])):
        tiny.model(dtype=torch.bfloat16)(input_ids=torch.arange(11)[None], use_cache=False)
    calls = kernel[-2:]  # those before are of use_segments
    assert calls[0][3] is calls[1][3]
    assert calls[0][3].tolist() == [0, 3, 4, 11]
    assert calls[0][5:] == (7, 7, (-1, 0))


@torch.no_grad()
@pytest.mark.parametrize(("end", "expected"), [(5, (-1, 0)), (6, (4, 0))])
def test_a_window_counts_the_token_itself_and_binds_only_longer_records(tiny, kernel, end, expected):
    with segments(causal([end])):
        tiny.model("mistral", dtype=torch.float16)(input_ids=torch.arange(end)[None], use_cache=False)
    assert kernel[-1][-1] == expected


@pytest.mark.parametrize(
    ("takes", "change"),
    [
        (True, {}),
        (True, {"dtype": torch.float16, "window": 2, "dim": 256}),
        (False, {"dtype": torch.float32}),
        (False, {"dropout": 0.1}),
        (False, {"mask": torch.ones(4, 4, dtype=torch.bool).tril()}),
        (False, {"dim": 12}),
        (False, {"dim": 264}),
        (False, {"value_dim": 16}),
    ],
)
def test_only_plain_causal_half_precision_takes_the_kernel(kernel, takes, change):
    asked = {"dtype": torch.bfloat16, "window": None, "dropout": 0.0, "mask": None, "dim": 8, **change}
    query = torch.zeros(6, 2, asked["dim"], dtype=asked["dtype"])
    value = torch.zeros(6, 2, asked.get("value_dim", asked["dim"]), dtype=asked["dtype"])
    row = attention._Row([Segment(0, 2), Segment(2, 6, asked["mask"])])
    assert (attention._kernel(query, value, row, asked["window"], asked["dropout"]) is not None) == takes


def test_a_cpu_never_takes_the_kernel():
    query = torch.zeros(4, 2, 8, dtype=torch.bfloat16)
    assert attention._kernel(query, query, attention._Row(causal([4])), None, 0.0) is None


def of_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    assert is_causal
    return slow_varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size=(-1, 0))


def of_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)):
    return slow_varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)


@pytest.mark.parametrize(("varlen", "window"), [(of_2_10, None), (of_2_11, None), (of_2_11, 3), (slow_varlen, 3)])
def test_every_version_of_the_kernel_is_asked_for_the_same(varlen, window):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(11, heads, 8, generator=generator, dtype=torch.float64) for heads in (4, 2, 2))
    row = attention._Row(causal([3, 11]))
    bound, left = row.bound(q.device), -1 if window is None else 2
    expected = slow_varlen(q, k, v, bound, bound, 8, 8, scale=0.2, window_size=(left, 0), enable_gqa=True)
    torch.testing.assert_close(attention._flash(varlen, q, k, v, row, window, 0.2), expected)


def test_a_version_without_windows_reads_short_records_only(kernel, monkeypatch):
    monkeypatch.setattr(attention, "_varlen", of_2_10)
    query, row = torch.zeros(4, 2, 8, dtype=torch.bfloat16), attention._Row(causal([4]))
    assert attention._kernel(query, query, row, None, 0.0) is of_2_10
    assert attention._kernel(query, query, row, 3, 0.0) is None


@pytest.mark.skipif(attention._varlen is None, reason="torch 2.9 has no varlen_attn")
@pytest.mark.parametrize("window", [None, 3])
def test_torch_takes_the_call(window):
    """Shapes only: torch's kernel runs on no CPU."""
    q, k, v = (
        torch.empty(11, heads, 8, dtype=torch.bfloat16, device="meta", requires_grad=True) for heads in (4, 2, 2)
    )
    attended = attention._flash(attention._varlen, q, k, v, attention._Row(causal([3, 11])), window, 0.2)
    assert attended.shape == q.shape
    attended.sum().backward()
    assert [x.grad.shape for x in (q, k, v)] == [q.shape, k.shape, v.shape]
