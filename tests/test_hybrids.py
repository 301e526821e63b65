"""Every kind of block goes through everything that models can do: patterns of mixers times what is done with them."""

import dataclasses
import functools
import json

import pytest
import torch
from checkpoints import same_weights
from hybrids import CONTEXT, PATTERNS, hybrid, letters

from hyenadna import HyenaConfig, HyenaDNA
from hyenadna.errors import SequenceTooLong, ShapeError, UsageError
from hyenadna.model.config import Quantization, hybrid_reason, named_size
from hyenadna.model.packed_linear import packed_layers

L = 37


@functools.cache
def frozen(pattern: str) -> HyenaDNA:
    return hybrid(pattern).double().requires_grad_(False)


@pytest.fixture(params=PATTERNS)
def pattern(request):
    return request.param


@pytest.fixture
def model(pattern):
    return frozen(pattern)


def in_pieces(model, tokens, sizes, state=None, **options):
    """Logits of the whole, and the state behind it."""
    found = []
    for piece in tokens.split(sizes, dim=1):
        logits, state = model.extend(piece, state, **options)
        found.append(logits)
    return torch.cat(found, dim=1), state


def close(found, expected, atol=1e-11):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


class TestCausality:
    @torch.no_grad()
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_later_token_changes_nothing_before_it(self, pattern, dtype):
        model = hybrid(pattern).to(dtype)
        tokens = letters(2, L)
        before = model(tokens).logits
        for t in (0, 11, L - 2):
            changed = tokens.clone()
            changed[:, t + 1] = 7 + (tokens[:, t + 1] - 6) % 4
            after = model(changed).logits
            if set(model.config.layers) == {"L"} and model.config.feed_forward == "mlp":
                assert torch.equal(after[:, : t + 1], before[:, : t + 1])
            else:  # an FFT rounds all positions together
                close(after[:, : t + 1], before[:, : t + 1], 1e-12 if dtype == torch.float64 else 1e-4)
            assert (after[:, t + 1] - before[:, t + 1]).abs().amax() > 1e-3

    def test_no_gradient_reaches_what_comes_later(self, model):
        x = torch.randn(1, L, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = x
        for layer in model.backbone.layers:
            y = layer(y)
        (grad,) = torch.autograd.grad(y[0, 20].square().sum(), x)
        assert grad[0, 21:].abs().max() < 1e-12 and (grad[0, :21].abs().amax(dim=-1) > 1e-9).all()


class TestStates:
    @pytest.mark.parametrize(
        ("sizes", "ahead", "grad"),
        [
            ([1, 2, 3, 7, L - 13], 0, False),
            ([1, 2, 3, 7, L - 13], 20, True),
            ([L], CONTEXT, False),
            ([30, 1, 6], 3, True),
            ([1] * L, 0, False),
        ],
        ids=["pieces", "pieces-grad", "one", "long-first", "singles"],
    )
    def test_pieces_are_the_whole(self, model, sizes, ahead, grad):
        tokens = letters(3, L)
        with torch.set_grad_enabled(grad):
            logits, state = in_pieces(model, tokens, sizes, ahead=ahead)
            close(logits, model(tokens).logits)
        assert (state.length, state.rows) == (L, 3) and state.nbytes > 0

    @torch.no_grad()
    def test_in_float32(self, pattern):
        model, tokens = hybrid(pattern), letters(2, L)
        close(in_pieces(model, tokens, [1, 2, 3, 7, L - 13])[0], model(tokens).logits, 1e-4)

    def test_gradients_of_pieces_are_those_of_the_whole(self, pattern):
        model, tokens = hybrid(pattern).double(), letters(2, 20)
        weights = torch.randn(2, 20, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        parameters = list(model.parameters())
        of_pieces = torch.autograd.grad((in_pieces(model, tokens, [5, 1, 14])[0] * weights).sum(), parameters)
        of_whole = torch.autograd.grad((model(tokens).logits * weights).sum(), parameters)
        for one, other in zip(of_pieces, of_whole, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)

    @torch.no_grad()
    def test_branches(self, model):
        """Each branch goes its own way, token by token, and leaves the trunk as it was."""
        trunk, tails = letters(2, 9), letters(6, 12, seed=1)
        whole = model(torch.cat([trunk.repeat_interleave(3, dim=0), tails], dim=1)).logits[:, 9:]
        _, state = model.extend(trunk)
        for _ in range(2):
            found, branch = [], state.repeat(3)
            assert branch.rows == 6 and branch.length == 9
            for t in range(12):
                logits, branch = model.extend(tails[:, t : t + 1], branch)
                found.append(logits)
            close(torch.cat(found, dim=1), whole)
        close(model.extend(tails[::3], state)[0], whole[::3])

    @torch.no_grad()
    def test_selected_rows(self, model):
        trunk, rows, tails = letters(4, 9), torch.tensor([3, 0, 3]), letters(3, 5, seed=1)
        _, state = in_pieces(model, trunk, [8, 1])
        whole = model(torch.cat([trunk[rows], tails], dim=1)).logits[:, 9:]
        close(in_pieces(model, tails, [1, 4], state=state.select(rows))[0], whole)
        # writing behind the selected rows did not touch the others
        more = letters(4, 3, seed=2)
        close(model.extend(more, state)[0], model(torch.cat([trunk, more], dim=1)).logits[:, 9:])

    @torch.no_grad()
    @pytest.mark.parametrize("shared", [True, False])
    def test_what_stands_before_a_batch(self, model, shared):
        trunk, tails = letters(1 if shared else 3, 9), letters(3, 12, seed=1)
        whole = model(torch.cat([trunk.expand(3, -1), tails], dim=1)).logits[:, 9:]
        _, state = model.extend(trunk, ahead=5)
        close(model(tails, prefix=state).logits, whole)
        close(model(tails[:, :2], prefix=state).logits, whole[:, :2])
        close(model.extend(tails, state)[0], whole)  # the state was as before, and is spent now
        for use in (lambda: model.extend(tails, state), lambda: model(tails, prefix=state), lambda: state.repeat(2)):
            with pytest.raises(UsageError, match=r"is spent: .* take a branch with state\.repeat\(1\)"):
                use()

    @torch.no_grad()
    @pytest.mark.parametrize("first", [False, True])
    def test_autocast_may_come_and_go_between_pieces(self, pattern, first):
        model, tokens, state, found = hybrid(pattern), letters(2, L), None, []
        for number, piece in enumerate(tokens.split([10, 1, 1, 8, L - 20], dim=1)):
            with torch.autocast("cpu", torch.bfloat16, enabled=first == (number % 2 == 0)):
                logits, state = model.extend(piece, state)
            found.append(logits)
        close(torch.cat(found, dim=1), model(tokens).logits, 0.05)

    def test_a_model_that_was_used_in_inference_mode_still_learns(self, pattern):
        model, tokens = hybrid(pattern), letters(2, 5)
        with torch.inference_mode():
            _, state = model.extend(tokens)
            model.extend(tokens[:, :1], state)
        logits, _ = in_pieces(model, tokens, [4, 1])
        (logits.sum() + model(tokens).logits.sum()).backward()
        assert all(parameter.grad is not None for parameter in model.backbone.layers[0].mixer.parameters())

    def test_what_does_not_fit_is_refused(self, model):
        _, state = model.extend(letters(2, 40))
        with pytest.raises(SequenceTooLong, match="9 tokens behind 40 are 49; this model takes up to 48"):
            model.extend(letters(2, 9), state)
        with pytest.raises(ShapeError, match="the state has 2 rows for 3 sequences; it may have 1 or 3"):
            model.extend(letters(3, 1), state)
        with pytest.raises(UsageError, match="ahead is -1; allowed are 0 tokens and more"):
            model.extend(letters(2, 1), state, ahead=-1)
        with pytest.raises(UsageError, match="was to be repeated 0 times"):
            state.repeat(0)
        for rows, dtype in (([2], torch.int64), ([-1], torch.int64), ([], torch.int64), ([1, 0], torch.uint8)):
            with pytest.raises(UsageError, match=r"of a state of 2; give some of 0 to 1 as torch\.int64"):
                state.select(torch.tensor(rows, dtype=dtype))
        assert model.extend(letters(2, 8), state)[1].length == CONTEXT  # after all that was refused

    @torch.no_grad()
    def test_a_batch_is_its_items_whatever_the_pads(self, model):
        tokens = torch.cat([letters(3, 20), torch.full((3, 11), 4)], dim=1)
        together = model(tokens)
        alone = [model(tokens[row : row + 1, :20]) for row in range(3)]
        close(together.logits[:, :20], torch.cat([output.logits for output in alone]), 1e-12)
        close(model.hidden_states(tokens, 1)[1:2, :20], model.hidden_states(tokens[1:2, :20], 1), 1e-12)


class Preset(torch.nn.Module):
    """Stands for the embedding: the prompt before what the embedding gives."""

    def __init__(self, embedding, prompt):
        super().__init__()
        self.embedding, self.prompt = embedding, prompt

    def forward(self, tokens):
        return torch.cat([self.prompt.expand(len(tokens), -1, -1), self.embedding(tokens)], dim=1)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_soft_prompt_is_its_embeddings_before_every_sequence(pattern, checkpointed):
    model, tokens = hybrid(pattern).double(), letters(3, 11)
    model.backbone.checkpoint_activations = checkpointed
    prompt = torch.randn(6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    found = model(tokens, prefix=model.prefix(prompt, 11)).hidden
    with torch.no_grad():
        close(model(tokens, prefix=model.prefix(prompt, 11)).hidden, found)
    embeddings = model.backbone.embeddings
    weights, learnt = torch.randn_like(found), [prompt, *model.backbone.layers.parameters()]
    ours = torch.autograd.grad((found * weights).sum(), learnt)
    embeddings["word_embeddings"] = Preset(embeddings["word_embeddings"], prompt)
    exact = model.backbone(tokens)[:, 6:]
    close(found, exact)
    for one, other in zip(ours, torch.autograd.grad((exact * weights).sum(), learnt), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


class TestFiles:
    def test_saved_and_loaded(self, pattern, tmp_path):
        model = hybrid(pattern)
        model.save_pretrained(tmp_path / "m")
        loaded = HyenaDNA.from_pretrained(tmp_path / "m")  # which runs the probe
        assert same_weights(model, loaded) and loaded.config == model.config
        with torch.no_grad():
            tokens = letters(1, L)
            assert torch.equal(loaded(tokens).logits, model(tokens).logits)
            close(in_pieces(loaded, tokens, [30, 1, 6])[0], model(tokens).logits, 1e-4)

    @pytest.mark.parametrize("pattern", ["HL", "S", "HLS+remoe"])
    def test_quantised(self, pattern, tmp_path):
        from hyenadna.inference.quantize import quantize

        model, tokens = hybrid(pattern), letters(2, L)
        child = quantize(model, bits=4, group=16)
        config = model.config
        experts = config.experts if config.feed_forward == "remoe" else 1
        assert len(packed_layers(child)) == len(model.projections) == config.n_layer * (2 + 2 * experts)
        child.save_pretrained(tmp_path / "m")
        loaded = HyenaDNA.from_pretrained(tmp_path / "m")
        assert loaded.quantization == Quantization(4, 16)
        with torch.no_grad():
            logits, exact = child(tokens).logits, model(tokens).logits
            assert torch.equal(loaded(tokens).logits, logits)
            assert 0 < (logits - exact).norm() / exact.norm() < 0.5
            close(in_pieces(loaded, tokens, [30, 1, 6])[0], logits, 1e-4)

    @pytest.mark.parametrize("layout", ["hf", "original"])
    def test_published_layouts_refuse_what_they_cannot_hold(self, pattern, layout, tmp_path):
        from hyenadna.model.checkpoint import export

        if pattern == "H":
            export(hybrid(pattern), tmp_path / "m", layout)
            return
        with pytest.raises(
            UsageError, match=r"blocks are \w+.*, and the published layouts hold Hyena blocks with dense"
        ):
            export(hybrid(pattern), tmp_path / "m", layout)
        assert not list(tmp_path.iterdir())

    def test_a_config_of_before_means_the_same(self, tmp_path):
        model = hybrid("HH")
        model.save_pretrained(tmp_path / "m")
        path = tmp_path / "m" / "config.json"
        config = json.loads(path.read_text())
        for name in ("heads", "kv_heads", "rotary_base", "slopes", "experts", "active_experts"):
            del config[name]
        path.write_text(json.dumps(config))
        loaded = HyenaDNA.from_pretrained(tmp_path / "m")
        assert same_weights(model, loaded) and loaded.config == dataclasses.replace(
            model.config, kv_heads=4, experts=8, active_experts=1
        )


def test_info(tmp_path):
    from pretraining import hyena

    hybrid("HLSS+remoe").save_pretrained(tmp_path / "m")
    code, out, _ = hyena("info", tmp_path / "m", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["blocks_by_mixer"] == {"Hyena": 1, "Lightning Attention-2": 1, "softmax attention": 2}
    assert (facts["heads"], facts["kv_heads"], facts["experts"], facts["active_experts"]) == (4, 2, 3, 2)
    assert facts["parameters_by_part"]["routers"] == 4 * 3 * 16
    assert sum(facts["parameters_by_part"].values()) == facts["parameters"]
    said = hyena("info", tmp_path / "m")[1]
    assert "softmax attention      2" in said and "3 a block, each 16 wide, of which 2 on" in said


@pytest.mark.parametrize("size", ["tiny-1k-hs", "tiny-1k-remoe", "small-32k-hhhs", "small-32k-llls", "medium-160k-hls"])
def test_named_hybrids_have_a_reason_which_help_and_readme_tell(size, request):
    from hyenadna.cli.config_flags import _helps
    from hyenadna.pretrain.config import PretrainConfig

    fields = [field.name for field in dataclasses.fields(PretrainConfig)]
    config = named_size(size)
    assert config.blocks != "H" * config.n_layer and hybrid_reason(size)
    assert size in _helps(PretrainConfig)[fields.index("size")]
    assert f"| {size} | {config.blocks} |" in (request.config.rootpath / "README.md").read_text()
    assert hybrid_reason("tiny-1k") == ""


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"layers": "HXH"}, "layers is 'HXH'; allowed are 1 to 1024 letters out of 'HLS'"),
        ({"layers": "hs"}, "layers is 'hs'; allowed"),
        ({"layers": "HL", "heads": 3}, "heads is 3; it must divide d_model, 128"),
        ({"layers": "S", "heads": 0}, "heads is 0; allowed are 1 to 1024"),
        ({"layers": "S", "kv_heads": 3}, "kv_heads is 3; it must divide heads, 4"),
        ({"layers": "S", "d_model": 12}, "each has 3 of 12 channels; rotary positions need an even number"),
        ({"layers": "S", "rotary_base": 1.0}, "rotary_base is 1.0; allowed is over 1"),
        ({"layers": "S", "rotary_base": float("nan")}, "rotary_base is nan; allowed is over 1"),
        ({"layers": "L", "slopes": "steep"}, "slopes is 'steep'; allowed are context, alibi, linear"),
        ({"feed_forward": "moe"}, "feed_forward is 'moe'; allowed are mlp, remoe"),
        ({"feed_forward": "remoe", "active_experts": 9}, "active_experts is 9; it may be up to experts, 8"),
        ({"feed_forward": "remoe", "active_experts": 3}, "active_experts is 3; .* must divide d_inner, 512"),
        ({"feed_forward": "remoe", "experts": 0}, "experts is 0; allowed are 1 to 1024"),
    ],
)
def test_bad_input(fields, says):
    with pytest.raises(UsageError, match=says) as error:
        HyenaConfig(**fields)
    assert "\n" not in str(error.value)


def test_what_a_pattern_does_not_use_is_not_looked_at():
    HyenaConfig(d_model=10, d_inner=20, heads=3, kv_heads=2, active_experts=7, rotary_base=0.5)
    HyenaConfig(d_model=9, heads=3, kv_heads=2, layers="HL")
