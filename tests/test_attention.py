"""Softmax attention, against complex numbers and a softmax written out in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hyenadna.model.attention import AttentionMixer, causal_attention
from hyenadna.model.attention_state import QUERIES_KEPT, AttentionState, DenseSegment

BASE = 500.0


def mixer(
    *, heads: int = 4, kv_heads: int = 2, d_model: int = 24, dtype: torch.dtype = torch.float64
) -> AttentionMixer:
    torch.manual_seed(0)
    made = AttentionMixer(d_model, heads=heads, kv_heads=kv_heads, rotary_base=BASE).to(dtype)
    with torch.no_grad():
        made.in_proj.weight.mul_(3)  # scores that differ
    return made


def drawn(B: int, L: int, *, d_model: int = 24, seed: int = 1) -> Tensor:
    return torch.randn(B, L, d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def written_out(attention: AttentionMixer, x: Tensor) -> Tensor:
    """The mixer by complex rotations and one softmax a query, head by head; (B, L, D), with gradients."""
    x = x.double()
    L = x.shape[1]
    heads, kv_heads, K = attention.heads, attention.kv_heads, attention.head_width
    weight, bias = attention.in_proj.weight.double(), attention.in_proj.bias.double()
    rotation = torch.tensor(
        [[complex(math.cos(a), math.sin(a)) for a in (t * BASE ** (-2 * i / K) for i in range(K // 2))]
         for t in range(L)], dtype=torch.complex128,
    )  # fmt: skip

    def head(number: int, *, turned: bool) -> Tensor:
        rows = slice(number * K, (number + 1) * K)
        values = x @ weight[rows].T + bias[rows]
        if not turned:
            return values
        z = torch.complex(values[..., : K // 2], values[..., K // 2 :]) * rotation
        return torch.cat([z.real, z.imag], dim=-1)

    out = []
    for h in range(heads):
        serving = h // (heads // kv_heads)
        q, k = head(h, turned=True), head(heads + serving, turned=True)
        v = head(heads + kv_heads + serving, turned=False)
        rows = []
        for t in range(L):
            scores = torch.stack([(q[:, t] * k[:, s]).sum(-1) / math.sqrt(K) for s in range(t + 1)], dim=-1)
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            rows.append((weights[..., None] * v[:, : t + 1]).sum(1))
        out.append(torch.stack(rows, dim=1))
    return torch.cat(out, dim=-1) @ attention.out_proj.weight.double().T + attention.out_proj.bias.double()


def in_pieces(attention: AttentionMixer, x: Tensor, pieces: list[int]) -> tuple[Tensor, AttentionState]:
    state, out = None, []
    for piece in x.split(pieces, dim=1):
        mixed, state = attention.extend(piece, state)
        out.append(attention.out_proj(mixed))
    assert state is not None
    return torch.cat(out, dim=1), state


@pytest.mark.parametrize("grouped", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("L", [1, 2, 19])
def test_attention_is_that_written_out(grouped: tuple[int, int], L: int) -> None:
    attention, x = mixer(heads=grouped[0], kv_heads=grouped[1]), drawn(2, L)
    exact = written_out(attention, x)
    torch.testing.assert_close(attention(x), exact, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(attention(x), exact, rtol=1e-12, atol=1e-12)


def test_float32_is_exact_to_its_rounding() -> None:
    attention, x = mixer(dtype=torch.float32), drawn(2, 40)
    exact = written_out(attention, x.float())
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            y = attention(x.float())
        assert y.dtype == torch.float32
        torch.testing.assert_close(y.double(), exact, rtol=0, atol=3e-6)


def test_gradients_are_those_of_the_sums_written_out() -> None:
    attention, x = mixer(), drawn(2, 7).requires_grad_()
    weights = drawn(2, 7, seed=2)

    def gradients(y: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((y * weights).sum(), [x, *attention.parameters()])

    exact = gradients(written_out(attention, x))
    pieces = gradients(in_pieces(attention, x, [3, 1, 1, 2])[0])
    for whole, part, by_hand in zip(gradients(attention(x)), pieces, exact, strict=True):
        torch.testing.assert_close(whole, by_hand, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(part, by_hand, rtol=1e-10, atol=1e-12)


def test_grouped_heads_are_repeated_heads() -> None:
    grouped, repeated = mixer(heads=6, kv_heads=2), mixer(heads=6, kv_heads=6)
    K = grouped.head_width
    q, k, v = grouped.in_proj.weight.split([6 * K, 2 * K, 2 * K])
    q_bias, k_bias, v_bias = grouped.in_proj.bias.split([6 * K, 2 * K, 2 * K])
    with torch.no_grad():
        each = [part.unflatten(0, (2, K)).repeat_interleave(3, dim=0).flatten(0, 1) for part in (k, v, k_bias, v_bias)]
        repeated.in_proj.weight.copy_(torch.cat([q, each[0], each[1]]))
        repeated.in_proj.bias.copy_(torch.cat([q_bias, each[2], each[3]]))
        repeated.out_proj.load_state_dict(grouped.out_proj.state_dict())
        x = drawn(2, 11)
        torch.testing.assert_close(grouped(x), repeated(x), rtol=1e-12, atol=1e-12)
        one, other = in_pieces(grouped, x, [9, 1, 1])[0], in_pieces(repeated, x, [9, 1, 1])[0]
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(
    "pieces", [[1] * 50, [50], [1, 49], [3, 20, 1, 26], [45, 5], [40, *[1] * 10], [20, 5, 5, *[1] * 20]]
)
def test_pieces_give_what_the_whole_gives(pieces: list[int], gradients: bool) -> None:
    attention, x = mixer(), drawn(2, 50)
    with torch.set_grad_enabled(gradients):
        y, state = in_pieces(attention, x, pieces)
        torch.testing.assert_close(y, attention(x), rtol=1e-12, atol=1e-12)
    assert (state.position, state.tokens, state.rows) == (50, 50, 2)
    whole = attention.extend(x, None)[1]
    for given, expected in zip(state.dense(2), whole.dense(2), strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state.last_queries(50), whole.last_queries(50), rtol=1e-12, atol=1e-12)


def test_a_sequence_behind_a_state_goes_on_from_it_and_leaves_it_as_it_is() -> None:
    attention, x = mixer(), drawn(3, 30)
    for n in (4, 12, 27):  # a past that is shorter and one that is longer than what follows
        before = x[:1, :n]
        together = torch.cat([before.expand(3, -1, -1), x[:, n:]], dim=1)
        expected = attention(together)[:, n:]
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                state = attention.extend(before, None)[1]
                for _ in range(2):
                    torch.testing.assert_close(attention(x[:, n:], state), expected, rtol=1e-12, atol=1e-12)
                rows = (part for part in x[:, n:].reshape(-1, 24).split(7))
                mixed = attention.mix(rows, 3, 30 - n, None, state)
                assert mixed.T.is_contiguous()
                y = attention.out_proj(mixed.T).view(3, 30 - n, 24)
                torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_queries_in_blocks_see_what_they_see_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, n, 6, generator=generator, dtype=torch.float64) for n in (13, 40, 40))
    at_once = causal_attention(q, k, v)
    exact = causal_attention(torch.cat([k[:, :, :27], q], dim=2), k, v)[:, 27:]
    torch.testing.assert_close(at_once, exact, rtol=1e-12, atol=1e-12)
    fused, masks = F.scaled_dot_product_attention, []

    def recording(*operands: Tensor, attn_mask: Tensor) -> Tensor:
        masks.append(attn_mask.numel())
        return fused(*operands, attn_mask=attn_mask)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recording)
    monkeypatch.setattr("hyenadna.model.attention._MASKED_AT_ONCE", 200)
    torch.testing.assert_close(causal_attention(q, k, v), exact, rtol=1e-12, atol=1e-12)
    assert len(masks) == 3 and max(masks) <= 200


def test_a_batch_is_its_sequences_alone_and_pads_change_nothing_before_them() -> None:
    attention, x = mixer(), drawn(3, 20)
    padded = x.clone()
    padded[1, 12:] = 7.0
    with torch.no_grad():
        together = attention(padded)
        for row, length in ((0, 20), (1, 12), (2, 20)):
            alone = attention(x[row : row + 1, :length])
            torch.testing.assert_close(together[row : row + 1, :length], alone, rtol=1e-12, atol=1e-12)


def test_a_later_token_changes_nothing_before_it_and_has_no_gradient() -> None:
    attention, x = mixer(), drawn(1, 12).requires_grad_()
    (gradient,) = torch.autograd.grad(attention(x)[0, 5].sum(), x)
    assert gradient[0, :6].abs().min() > 0
    assert torch.count_nonzero(gradient[0, 6:]) == 0


def test_positions_are_relative_and_exact_far_out() -> None:
    # the same tokens a million positions on attend to each other alike; in float32 angles would be off by 0.03
    attention, x = mixer(dtype=torch.float32), drawn(1, 9).float()
    heads = [attention._heads(x, position)[:2] for position in (0, 1_000_000)]
    near, far = (q @ k.repeat_interleave(2, dim=1).transpose(2, 3) for q, k in heads)
    torch.testing.assert_close(far, near, rtol=0, atol=1e-4)


def test_branches_share_one_row_and_do_not_disturb_each_other() -> None:
    attention, x = mixer(), drawn(1, 20)
    ways = drawn(3, 40, seed=3)
    with torch.no_grad():
        trunk = in_pieces(attention, x, [18, 1, 1])[1]
        branch = trunk.repeat(3)
        assert branch.rows == 3 and branch.parts()[0].rows == 1
        assert branch.dense(1)[0].data_ptr() != trunk.dense(1)[0].data_ptr()  # joined anew
        assert branch.segments[0] is trunk.segments[0]
        expected = [attention(torch.cat([x, way[None]], dim=1))[:, 20:] for way in ways]
        y = []
        for t in range(40):  # the trunk goes its own way in between
            mixed, branch = attention.extend(ways[:, t : t + 1], branch)
            _, trunk = attention.extend(drawn(1, 1, seed=t), trunk)
            y.append(attention.out_proj(mixed))
        torch.testing.assert_close(torch.cat(y, dim=1), torch.cat(expected), rtol=1e-12, atol=1e-12)
        more = branch.repeat(2)
        assert more.rows == 6 and more.segments[0] is branch.segments[0]
        next_ones = drawn(6, 4, seed=4)
        mixed, _ = attention.extend(next_ones, more)
        for row in range(6):
            whole = torch.cat([x[0], ways[row // 2], next_ones[row]])[None]
            torch.testing.assert_close(attention.out_proj(mixed[row]), attention(whole)[0, 60:], rtol=1e-12, atol=1e-12)


def test_a_branch_at_every_token_leaves_few_parts() -> None:
    attention, x, state = mixer(), drawn(1, 150), None
    with torch.no_grad():
        mixed = []
        for t in range(150):
            y, state = attention.extend(x[:, t : t + 1], state if state is None else state.repeat(1))
            mixed.append(y)
            assert len(state.parts()) <= 2 + math.log2(t + 1) and state.tokens == t + 1
        y = attention.out_proj(torch.cat(mixed, dim=1))
        torch.testing.assert_close(y, attention(x), rtol=1e-12, atol=1e-12)


def test_rows_are_selected_in_any_order_as_copies() -> None:
    attention, x = mixer(), drawn(3, 15)
    later = drawn(4, 2, seed=5)
    with torch.no_grad():
        state = in_pieces(attention, x, [12, 1, 2])[1]
        rows = torch.tensor([2, 0, 0, 1])
        chosen = state.select(rows)
        attention.extend(drawn(3, 1, seed=6), state)  # writes into its own memory
        out = [attention.extend(later[:, :1], chosen)]
        out.append(attention.extend(later[:, 1:], out[0][1]))
        y = attention.out_proj(torch.cat([mixed for mixed, _ in out], dim=1))
        expected = attention(torch.cat([x[rows], later], dim=1))[:, 15:]
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_bytes_are_those_of_the_tensors_and_room_doubles() -> None:
    attention = mixer()  # 2 heads of keys of 6 channels, 4 of queries
    with torch.no_grad():
        state = attention.extend(drawn(1, 10), None)[1]
        token, kept = 2 * 2 * 6 * 8, 4 * QUERIES_KEPT * 6 * 8
        assert state.nbytes == 10 * token + kept
        memory = []
        for t in range(100):
            state = attention.extend(drawn(1, 1, seed=t), state)[1]
            assert state.recent is not None
            memory.append(state.recent.data_ptr())
            room = state.recent.shape[3]
            assert state.nbytes == (10 + room) * token + kept
            assert room <= max(32, 2 * (t + 1))
        assert len(set(memory)) <= 3  # 32, 66, 134
        branch = state.repeat(5)
        assert branch.nbytes == (10 + 100) * token + 5 * kept


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_torchs_fused_kernel_takes_every_form(dtype: torch.dtype, gradients: bool) -> None:
    # and so nothing of the size of all pairs is held; where it cannot run, this context raises
    attention, x = mixer(dtype=dtype), drawn(2, 9).to(dtype)
    with torch.set_grad_enabled(gradients), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        state = attention.extend(x, None)[1]
        for length in (3, 9):
            y = attention(x[:, :length], state)
            assert y.dtype == dtype
            if gradients:
                y.sum().backward(retain_graph=True)


def test_half_precision_is_within_its_rounding() -> None:
    attention, x = mixer(dtype=torch.float32), drawn(2, 30).float()
    with torch.no_grad():
        exact = attention(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            whole, (pieces, state) = attention(x), in_pieces(attention, x, [28, 1, 1])
    assert state.dense(2)[0].dtype == torch.bfloat16
    for y in (whole, pieces):
        assert float((y.float() - exact).abs().max() / exact.abs().max()) < 2e-2


def test_a_segment_tells_its_size() -> None:
    segment = DenseSegment(torch.zeros(2, 3, 5, 4), torch.zeros(2, 3, 5, 4))
    assert (segment.rows, segment.tokens, segment.nbytes) == (2, 5, 2 * 2 * 3 * 5 * 4 * 4)
    assert segment.select(torch.tensor([1])).rows == 1
