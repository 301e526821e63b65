"""Budgets of caches: their sums by hand, the choice by brute force, and what the model then says."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyenadna import HyenaConfig, HyenaDNA
from hyenadna.errors import UsageError
from hyenadna.inference.pyramid_kv import CacheBudget, budgets, cache_bytes, compress, keep_within, window_attention
from hyenadna.inference.quantized_cache import QuantizedSegment
from hyenadna.model.attention_state import QUERIES_KEPT, AttentionState, DenseSegment
from hyenadna.model.state import State


def hybrid(layers: str = "SHS", *, dtype: torch.dtype = torch.float64) -> HyenaDNA:
    """A model whose softmax layers attend to something."""
    torch.manual_seed(0)
    config = HyenaConfig(d_model=24, d_inner=48, layers=layers, heads=4, kv_heads=2, filter_length=402)
    model = HyenaDNA(config).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.weight") or "embeddings" in name:
                parameter.mul_(12)
    return model.requires_grad_(False)


def drawn(B: int, L: int, seed: int = 0) -> Tensor:
    return torch.randint(7, 11, (B, L), generator=torch.Generator().manual_seed(seed))


def caches(state: State) -> list[AttentionState]:
    return [layer for layer in state.layers if isinstance(layer, AttentionState)]


def cache(B: int, n: int, *, kv_heads: int = 2, heads: int = 4, K: int = 6) -> AttentionState:
    """A cache of random keys, values and queries."""
    generator = torch.Generator().manual_seed(3)
    keys, values = torch.randn(2, B, kv_heads, n, K, generator=generator, dtype=torch.float64)
    queries = 2 * torch.randn(B, heads, QUERIES_KEPT, K, generator=generator, dtype=torch.float64)
    return AttentionState((DenseSegment(keys, values),), None, 0, queries, n)


# budgets


def test_the_worked_example_of_the_paper() -> None:
    # 32 layers of 128 tokens, window 8: from 234 to 6 in front of the window
    kept = budgets(128, 32, 8192, window=8)
    assert (kept[0] - 8, kept[-1] - 8, sum(kept)) == (234, 6, 32 * 128)


def test_budgets_by_hand() -> None:
    # 56 a layer in front of the window: 109.2, 73.73, 38.27, 2.8, which the authors' code rounds to 118, 82, 46, 10
    assert budgets(64, 4, 512, window=8) == (117, 82, 46, 11)
    assert budgets(64, 4, 60, window=8) == (60, 60, 60, 60)
    assert budgets(63, 4, 64, window=8) == (64, 64, 64, 60)
    assert budgets(64, 1, 512, window=8) == (64,)
    assert budgets(64, 4, 512, window=8, beta=1) == (64, 64, 64, 64)
    assert budgets(64, 4, 512, window=8, schedule="uniform") == (64, 64, 64, 64)
    assert budgets(8, 3, 512, window=8) == (8, 8, 8)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300), st.integers(1, 12), st.integers(1, 1000), st.integers(1, 64), st.floats(1, 100), st.booleans()
)
def test_budgets_add_up_and_fall(
    more: int, layers: int, length: int, window: int, beta: float, arithmetic: bool
) -> None:
    tokens, schedule = window + more - 1, "arithmetic" if arithmetic else "uniform"
    kept = budgets(tokens, layers, length, window=window, schedule=schedule, beta=beta)  # type: ignore[arg-type]
    assert sum(kept) == layers * min(tokens, length)
    assert list(kept) == sorted(kept, reverse=True)
    assert max(kept) <= length and min(kept) >= min(window, length)


# the choice


def by_brute_force(held: AttentionState, keep: int, window: int, pool: int) -> list[list[list[int]]]:
    """Tokens kept by each row and head, one number at a time."""
    keys, _ = held.dense(held.rows)
    queries = held.last_queries(window)
    B, kv_heads, n, K = keys.shape
    group = queries.shape[1] // kv_heads
    chosen = []
    for b in range(B):
        chosen.append([])
        for h in range(kv_heads):
            score = [0.0] * (n - window)
            for head in range(h * group, (h + 1) * group):
                for j in range(window):
                    seen = range(n - window + j + 1)
                    power = [math.exp(float(queries[b, head, j] @ keys[b, h, i]) / math.sqrt(K)) for i in seen]
                    for i in range(n - window):
                        score[i] += power[i] / sum(power)
            pooled = []
            for i in range(n - window):
                around = score[max(0, i - pool // 2) : i + pool // 2 + 1]
                pooled.append(sum(around) / len(around))
            best = sorted(range(n - window), key=lambda i: -pooled[i])[: keep - window]
            chosen[b].append(sorted(best) + list(range(n - window, n)))
    return chosen


@pytest.mark.parametrize(("keep", "window", "pool"), [(12, 4, 1), (9, 8, 5), (20, 3, 7), (5, 5, 3)])
def test_the_choice_is_that_of_brute_force(keep: int, window: int, pool: int) -> None:
    held = cache(2, 30)
    keys, values = held.dense(2)
    expected = torch.tensor(by_brute_force(held, keep, window, pool))[..., None].expand(-1, -1, -1, 6)
    state = compress(State((held,), 30), CacheBudget(keep, window, pool=pool))
    (kept,) = caches(state)
    assert (kept.tokens, kept.position, state.length) == (keep, 30, 30)
    for given_one, whole in zip(kept.dense(2), (keys, values), strict=True):
        assert torch.equal(given_one, whole.gather(2, expected))


def test_attention_of_the_window_is_causal_and_adds_up() -> None:
    held = cache(1, 20)
    weights = window_attention(held.last_queries(5), held.dense(1)[0])
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 4, 5, dtype=torch.float64))
    assert torch.equal(weights[0, 0] > 0, torch.ones(5, 20).tril(15).bool())


def test_a_planted_needle_is_kept_by_the_smallest_budget() -> None:
    held = cache(1, 50)
    keys, values = (x.clone() for x in held.dense(1))
    keys[:, 1, 17] = 20 * held.last_queries(4)[:, 2:].mean(dim=(1, 2))  # what the heads of the second group ask for
    planted = AttentionState((DenseSegment(keys, values),), None, 0, held.queries, 50)
    state = compress(State((planted,), 50), CacheBudget(5, window=4, pool=1))
    assert torch.equal(caches(state)[0].dense(1)[0][:, 1, 0], keys[:, 1, 17])


# the model


def test_a_budget_of_all_tokens_changes_no_bit() -> None:
    model, tokens = hybrid(dtype=torch.float32), drawn(2, 90)
    _, state = model.extend(tokens[:, :80])
    full, state = state.repeat(1), compress(state, CacheBudget(80, window=16))
    for t in range(80, 90):
        expected, full = model.extend(tokens[:, t : t + 1], full)
        logits, state = model.extend(tokens[:, t : t + 1], state)
        assert torch.equal(logits, expected)
    pieces, _ = model.extend(tokens[:, :3], compress(state, CacheBudget(90, window=16)))
    assert torch.equal(pieces, model.extend(tokens[:, :3], full)[0])


def masked_forward(model: HyenaDNA, tokens: Tensor, seen: dict[int, Tensor]) -> Tensor:
    """Logits where layer l's queries behind the cache see but the kept keys: by a mask in every softmax layer."""
    mixers = {number: layer.mixer for number, layer in enumerate(model.backbone.layers) if number in seen}
    x = model.embedding(tokens)
    for number, block in enumerate(model.backbone.layers):
        normed = block.norm1(x)
        if number in mixers:
            mixer = mixers[number]
            q, k, v = mixer._heads(normed, 0)
            k, v = (part.repeat_interleave(2, dim=1) for part in (k, v))
            scores = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).masked_fill(~seen[number], -torch.inf)
            mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
            x = x + mixer.out_proj(mixed)
        else:
            x = x + block.mixer(normed)
        x = x + block.mlp(block.norm2(x))
    return model.backbone.ln_f(x) @ model.output_weight.T


def test_what_follows_sees_the_kept_tokens_at_their_own_positions() -> None:
    model, tokens = hybrid(), drawn(1, 60)
    _, state = model.extend(tokens[:, :50])
    budget = CacheBudget(20, window=8, pool=3)
    wanted = budgets(20, 2, 50, window=8)
    seen = {}
    for number, keep, held in zip((0, 2), wanted, caches(state), strict=True):
        kept = torch.tensor(by_brute_force(held, keep, 8, 3))[0].repeat_interleave(2, dim=0)  # (heads, keep)
        mask = torch.ones(4, 60, 60).tril().bool()
        mask[:, 50:, :50] = torch.zeros(4, 50).scatter(1, kept, 1.0)[:, None].bool()
        seen[number] = mask[None]
    expected = masked_forward(model, tokens, seen)[:, 50:]
    state = compress(state, budget)
    assert tuple(held.tokens for held in caches(state)) == wanted
    branch, out = state.repeat(1), []
    for t in range(50, 60):
        logits, state = model.extend(tokens[:, t : t + 1], state)
        out.append(logits)
    torch.testing.assert_close(torch.cat(out, dim=1), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.extend(tokens[:, 50:], branch)[0], expected, rtol=1e-9, atol=1e-9)


def after(model: HyenaDNA, tokens: Tensor, budget: CacheBudget | None) -> Tensor:
    """Logits of the last 20 tokens, behind what the budget keeps of the others."""
    _, state = model.extend(tokens[:, :-20])
    if budget is not None:
        state = compress(state, budget)
    return model.extend(tokens[:, -20:], state)[0]


def test_more_tokens_and_more_bits_are_closer_to_the_full_cache() -> None:
    model, tokens = hybrid(dtype=torch.float32), drawn(4, 320)
    full = after(model, tokens, None)

    def error(budget: CacheBudget) -> float:
        return float((after(model, tokens, budget) - full).square().mean().sqrt())

    by_tokens = [error(CacheBudget(tokens, window=16)) for tokens in (16, 64, 128, 240, 300)]
    assert by_tokens == sorted(by_tokens, reverse=True)
    assert by_tokens[0] > 0 == by_tokens[-1]
    by_bits = [error(CacheBudget(300, window=16, bits=bits)) for bits in (2, 4, 8)]
    assert by_bits[0] > 2 * by_bits[1] > 4 * by_bits[2] > 0
    eight = after(model, tokens, CacheBudget(300, window=16, bits=8))
    assert float((eight - full).abs().max()) < 1e-2


def test_rows_are_compressed_as_they_are_alone() -> None:
    model, tokens = hybrid(dtype=torch.float32), drawn(3, 100)
    for budget in (CacheBudget(30, window=8), CacheBudget(30, window=8, bits=4)):
        together = after(model, tokens, budget)
        for row in range(3):
            torch.testing.assert_close(together[row : row + 1], after(model, tokens[row : row + 1], budget))


def test_a_compressed_state_branches_and_shares() -> None:
    model, tokens = hybrid(dtype=torch.float32), drawn(3, 80)
    _, state = model.extend(tokens[:1, :60])
    state = compress(state, CacheBudget(24, window=8, bits=4))
    branch = state.repeat(3)
    assert caches(branch)[0].segments[0] is caches(state)[0].segments[0]
    logits, branch = model.extend(tokens[:, 60:], branch)
    for row in range(3):
        alone, _ = model.extend(tokens[row : row + 1, 60:], state.repeat(1))
        torch.testing.assert_close(logits[row : row + 1], alone)
    chosen = compress(branch, CacheBudget(24, window=8, bits=4)).select(torch.tensor([2, 0]))
    assert caches(chosen)[0].rows == 2 and isinstance(caches(chosen)[0].segments[0], QuantizedSegment)


@pytest.mark.parametrize("bits", [None, 8])
def test_a_growing_cache_is_kept_within_its_budget(bits: int | None) -> None:
    model, budget = hybrid(dtype=torch.float32), CacheBudget(24, window=8, bits=bits)  # type: ignore[arg-type]
    assert budget.most == 32
    logits, state = model.extend(drawn(2, 100))
    state = compress(state, budget)
    sizes = []
    for t in range(40):
        logits, state = model.extend(drawn(2, 1, seed=t), state)
        state = keep_within(state, budget)
        held = sum(cache.tokens for cache in caches(state))
        sizes.append(held)
        assert held < 2 * budget.most and state.length == 101 + t
    assert sizes[:9] == [50, 52, 54, 56, 58, 60, 62, 48, 50]
    assert logits.isfinite().all()


# bytes


def test_bytes_are_those_of_the_tensors() -> None:
    held = cache(2, 200)
    state = State((held,), 200)
    assert cache_bytes(state) == 2 * 2 * 2 * 200 * 6 * 8
    dense = compress(State((held,), 200), CacheBudget(72, window=8))
    assert cache_bytes(dense) == 2 * 2 * 2 * 72 * 6 * 8
    packed = compress(State((held,), 200), CacheBudget(72, window=8, bits=2))
    # 64 tokens before the window; each channel of the keys one group, each token of the values one
    keys, values = 2 * 2 * 6 * (64 // 4 + 4), 2 * 2 * 64 * (2 + 4)
    assert cache_bytes(packed) == keys + values + 2 * 2 * 2 * 8 * 6 * 8
    segment, recent = caches(packed)[0].segments
    assert isinstance(segment, QuantizedSegment)
    assert segment.nbytes == keys + values
    tensors = [x for part in (segment.keys, segment.values) for x in part if isinstance(x, Tensor)]
    assert segment.nbytes + recent.nbytes == cache_bytes(packed)
    assert segment.nbytes == sum(x.nbytes for x in tensors)


@pytest.mark.parametrize("tokens", [72, 200])
def test_what_was_packed_or_evicted_leaves_memory(tokens: int) -> None:
    packed = compress(State((cache(1, 200, kv_heads=1),), 200), CacheBudget(tokens, window=8, bits=2))
    recent = caches(packed)[0].segments[1]
    assert isinstance(recent, DenseSegment)
    assert sum(x.untyped_storage().nbytes() for x in recent) == recent.nbytes == 2 * 8 * 6 * 8


def test_quantised_segments_are_near_on_the_right_axes() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 3, 2, 150, 16, generator=generator)
    keys[..., 5] += 30  # a channel with a level of its own
    values[:, :, 70] *= 30  # a token with a spread of its own
    for bits, largest in ((8, 0.02), (4, 0.3), (2, 1.5)):
        segment = QuantizedSegment.of(keys, values, bits)  # type: ignore[arg-type]
        assert (segment.rows, segment.tokens) == (3, 150)
        for given_one, whole in zip(segment.dense(), (keys, values), strict=True):
            assert given_one.shape == whole.shape and given_one.dtype == torch.float32
        error = (segment.dense()[0] - keys).abs()
        assert float(error[..., :5].max()) < largest
        error = (segment.dense()[1] - values).abs()
        assert float(error[:, :, :70].max()) < largest
    rows = torch.tensor([2, 0])
    for chosen, whole in zip(segment.select(rows).dense(), segment.dense(), strict=True):
        assert torch.equal(chosen, whole[rows])


def test_constant_keys_are_exact() -> None:
    keys = torch.full((1, 1, 40, 4), 1.5)
    for x in QuantizedSegment.of(keys, -keys, 2).dense():
        torch.testing.assert_close(x.abs(), keys)


# bad input


@pytest.mark.parametrize(
    ("given_values", "message"),
    [
        ({"tokens": 0}, "a cache budget of 0 tokens does not hold its window of 32; give at least as many"),
        ({"tokens": 31}, "a cache budget of 31 tokens does not hold its window of 32"),
        ({"tokens": 300, "window": 0}, "the window of a cache budget is 0; allowed are 1 to 128 tokens"),
        ({"tokens": 300, "window": 129}, "the window of a cache budget is 129; allowed are 1 to 128"),
        ({"tokens": 64, "pool": 4}, "the pool of a cache budget is 4; it must be odd and at least 1"),
        ({"tokens": 64, "schedule": "cubic"}, "is 'cubic'; allowed are arithmetic, uniform"),
        ({"tokens": 64, "bits": 3}, "the bits of a cache budget are 3; allowed are 8, 4 and 2, or none"),
    ],
)
def test_bad_budgets_are_refused(given_values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CacheBudget(**given_values)  # type: ignore[arg-type]


def test_bad_schedules_are_refused() -> None:
    for layers, length, window, beta in ((0, 9, 1, 20), (1, 0, 1, 20), (1, 9, 0, 20), (1, 9, 65, 20), (1, 9, 1, 0.5)):
        with pytest.raises(UsageError, match=f"budgets were asked for {layers} layers of 64 tokens out of {length}"):
            budgets(64, layers, length, window=window, beta=beta)


def test_a_model_without_caches_and_a_spent_state_are_refused() -> None:
    budget = CacheBudget(32)
    _, state = hybrid("HH").extend(drawn(1, 40))
    for work in (compress, keep_within):
        with pytest.raises(UsageError, match="without softmax layers, among 2; it takes one with the letter S"):
            work(state, budget)
    _, state = hybrid().extend(drawn(1, 40))
    compress(state, budget)
    with pytest.raises(UsageError, match="spent"):
        compress(state, budget)
