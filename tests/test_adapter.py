"""Adapters as files: only what was learnt, only on their own base, and several of one base in one batch."""

import json
import shutil

import pytest
import torch
from adapting import BASES, BINARY, LENGTHS, METHODS, NUMBER, THREE, adapted, answers, copy_of, ragged, small, tokens
from checkpoints import edit_json, edit_tensors, one_line

from hyenadna import HyenaDNA
from hyenadna.errors import CheckpointError, InputError, NotFiniteError, ProbeError, SequenceTooLong, UsageError
from hyenadna.finetune import adapter
from hyenadna.finetune.adapter_batch import AdapterBatch

CARD = "# A classifier\n"


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "base"
    small().save_pretrained(folder)
    return folder


@pytest.fixture
def base(base_folder):
    return HyenaDNA.from_pretrained(base_folder)


def saved(model, folder, base="../base", **options):
    adapter.save(model, folder, base=str(base), card=CARD, training={"rows": 12}, **options)
    return folder


@pytest.mark.parametrize(("method", "task"), zip(METHODS, [BINARY, BASES, NUMBER, THREE], strict=True))
def test_a_saved_model_loads_as_it_was(method, task, base, base_folder, tmp_path):
    model = adapted(method, task, base=base, pool="attention")
    folder = saved(model, tmp_path / "a", base_folder)
    loaded = adapter.load(folder)
    assert (loaded.task, loaded.adaptation) == (task, model.adaptation)
    assert not loaded.training
    assert torch.equal(answers(loaded, ragged(), LENGTHS), answers(model, ragged(), LENGTHS))
    for name, tensor in model.own_state().items():
        assert torch.equal(loaded.own_state()[name], tensor)


def test_the_standardisation_of_a_head_is_saved(base, tmp_path):
    model = adapted("head", base=base)
    model.head.standardise(torch.randn(20, 16))
    loaded = adapter.load(saved(model, tmp_path / "a"), base=base)
    assert torch.equal(answers(loaded, ragged(), LENGTHS), answers(model, ragged(), LENGTHS))


def test_a_folder_holds_what_was_learnt_and_nothing_of_the_base(base, tmp_path):
    folder = saved(adapted("soft-prompt", base=base), tmp_path / "a")
    assert {file.name for file in folder.iterdir()} == {"adapter.json", "adapter.safetensors", "README.md"}
    description = json.loads((folder / "adapter.json").read_text())
    assert (
        description["base_sha256"]
        == json.loads((base_folder_of(base, tmp_path) / "config.json").read_text())["base_sha256"]
    )
    assert description["training"] == {"rows": 12} and (folder / "README.md").read_text() == CARD
    numbers = 6 * 16 + 2 * 16 + 2 + 2 * 16  # prompt, weights, biases, standardisation
    header = int.from_bytes((folder / "adapter.safetensors").read_bytes()[:8], "little")
    assert (folder / "adapter.safetensors").stat().st_size == 8 + header + 4 * numbers


def base_folder_of(base, tmp_path):
    base.save_pretrained(tmp_path / "again")
    return tmp_path / "again"


def test_equal_adapters_are_equal_files(base, tmp_path):
    folders = [saved(adapted(base=base), tmp_path / name) for name in "ab"]
    for name in ("adapter.json", "adapter.safetensors"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_a_model_fine_tuned_as_a_whole_lies_in_its_own_folder(tmp_path):
    model = adapted("full")
    folder = saved(model, tmp_path / "full", base="starter")
    whole = HyenaDNA.from_pretrained(folder)  # and is a model for every other command
    assert torch.equal(answers(adapter.load(folder), ragged(), LENGTHS), answers(model, ragged(), LENGTHS))
    assert torch.equal(whole.embedding.weight, model.base.embedding.weight)
    assert json.loads((folder / "model" / "config.json").read_text())["training"] == {"rows": 12, "from": "starter"}
    shutil.rmtree(folder / "model")
    with pytest.raises(CheckpointError, match="model"):
        adapter.load(folder)


def test_saving_leaves_the_model_as_it_was(base, tmp_path):
    model = adapted("lora", base=base).train()
    before, generator = copy_of(model.state_dict()), torch.get_rng_state()
    saved(model, tmp_path / "a")
    assert model.training and torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert {name for name, p in model.named_parameters() if p.requires_grad} and not base.embedding.weight.requires_grad


class TestTheBase:
    @pytest.mark.parametrize("how", ["given", "beside the adapter", "from the working directory"])
    def test_it_is_found(self, how, base, base_folder, tmp_path, monkeypatch):
        shutil.copytree(base_folder, tmp_path / "models" / "base")
        name = {
            "beside the adapter": "../models/base",
            "from the working directory": "models/base",
        }.get(how, "nowhere")
        folder = saved(adapted(base=base), tmp_path / "a", name)
        if how == "from the working directory":
            monkeypatch.chdir(tmp_path)
        model = adapter.load(folder, base=base if how == "given" else None)
        if how == "given":
            assert model.base is base
        assert torch.equal(answers(model, ragged(), LENGTHS), answers(adapted(), ragged(), LENGTHS))

    def test_another_is_refused(self, base, tmp_path):
        folder = saved(adapted(base=base), tmp_path / "a")
        other = small()
        other.embedding.weight.data[0, 0] += 1e-6
        with pytest.raises(
            CheckpointError, match=r"adapts '../base' with SHA-256 \w{16}…, but .* has \w{16}…"
        ) as error:
            adapter.load(folder, base=other)
        one_line(error)

    def test_another_in_its_place_is_refused(self, base, tmp_path):
        folder = saved(adapted(base=base), tmp_path / "a", "../base")
        small(d_inner=48).save_pretrained(tmp_path / "base")
        with pytest.raises(CheckpointError, match=r"base' with SHA-256 .*, but .*/a/../base has"):
            adapter.load(folder)

    def test_the_same_weights_with_another_configuration_are_refused(self, base, tmp_path):
        folder = saved(adapted(base=base), tmp_path / "a")
        other = small(filter_shift=0.5)
        with pytest.raises(ProbeError, match="or the base's configuration is another"):
            adapter.load(folder, base=other)

    def test_one_that_is_nowhere_is_told_with_where_it_was_looked_for(self, base, tmp_path):
        folder = saved(adapted(base=base), tmp_path / "a", "lost model")
        with pytest.raises(CheckpointError, match=r"not found; looked for .*/a/lost model and lost model: there is no"):
            adapter.load(folder)

    def test_in_half_precision_it_is_not_recognised(self, base, tmp_path):
        folder = saved(adapted(base=base), tmp_path / "a")
        with pytest.raises(UsageError, match=r"the base is in torch.bfloat16, .* take it in float32"):
            adapter.load(folder, base=small().bfloat16())

    def test_updates_on_it_do_not_change_what_it_is(self, base):
        assert adapter.identity(adapted("lora", base=base).base) == adapter.identity(base)


class TestDamage:
    @pytest.fixture
    def folder(self, base, tmp_path):
        return saved(adapted(base=base), tmp_path / "a")

    def test_no_adapter(self, tmp_path):
        with pytest.raises(
            CheckpointError, match=r"there is no folder .*/x; an adapter is a folder with an adapter.json"
        ):
            adapter.load(tmp_path / "x")
        (tmp_path / "notes.txt").touch()
        with pytest.raises(CheckpointError, match=r"has no adapter.json \(it holds notes.txt\)"):
            adapter.load(tmp_path)

    def test_a_runs_folder_stands_for_the_adapter_in_it(self, base, folder):
        run = folder.rename(folder.with_name("adapter")).parent
        assert adapter.load(run, base=base).task == BINARY

    def test_a_folder_that_was_set_aside_when_the_process_died_is_read(self, base, folder):
        folder.rename(folder.with_name(".a.old"))
        assert adapter.load(folder, base=base).task == BINARY

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"format_version": 2}, "has format_version 2; this hyenadna reads 1: install a newer one"),
            ({"adaptation": {"method": "magic"}}, "does not describe an adapter: method Input should be 'full'"),
            ({"adaptation": {"prompt_length": -1}}, "prompt_length is -1"),
            ({"task": {"kind": "binary"}}, "does not describe an adapter: labels Field required"),
        ],
    )
    def test_a_description_that_is_none(self, folder, base, fields, message):
        edit_json(folder / "adapter.json", **fields)
        with pytest.raises(CheckpointError, match=message) as error:
            adapter.load(folder, base=base)
        one_line(error)

    def test_a_description_with_something_missing(self, folder, base):
        description = json.loads((folder / "adapter.json").read_text())
        del description["task"], description["probe"]
        (folder / "adapter.json").write_text(json.dumps(description))
        with pytest.raises(CheckpointError, match="does not describe an adapter; missing: task, probe"):
            adapter.load(folder, base=base)

    def test_other_tensors(self, folder, base):
        edit_tensors(folder / "adapter.safetensors", lambda tensors: tensors.pop("prompt.embeddings"))
        with pytest.raises(
            CheckpointError, match=r"that its adapter.json describes; missing: prompt.embeddings \(6, 16"
        ):
            adapter.load(folder, base=base)

    def test_a_truncated_file(self, folder, base):
        path = folder / "adapter.safetensors"
        path.write_bytes(path.read_bytes()[:-5])
        with pytest.raises(CheckpointError, match="could not be read as safetensors"):
            adapter.load(folder, base=base)

    def test_changed_weights_fail_the_probe(self, folder, base):
        edit_tensors(folder / "adapter.safetensors", lambda tensors: tensors["head.linear.weight"].mul_(1.1))
        with pytest.raises(ProbeError, match=r"does not give the answer in adapter.json; it differs by"):
            adapter.load(folder, base=base)

    @pytest.mark.parametrize("probe", [{}, {"sequence": "ACGT", "outputs": "x"}, {"sequence": "A", "outputs": [1, 2]}])
    def test_a_probe_that_is_none(self, folder, base, probe):
        edit_json(folder / "adapter.json", probe=probe)
        with pytest.raises(ProbeError, match="probe"):
            adapter.load(folder, base=base)


class TestWriting:
    def test_an_adapter_is_replaced_only_when_asked_for(self, base, tmp_path):
        folder = saved(adapted(base=base), tmp_path / "a")
        with pytest.raises(UsageError, match="is not empty"):
            saved(adapted("head", base=base), folder)
        saved(adapted("full"), folder, overwrite=True)
        saved(adapted("head", base=base), folder, overwrite=True)
        assert adapter.load(folder, base=base).adaptation.method == "head"
        assert not (folder / "model").exists()

    def test_nothing_is_replaced_that_hyenadna_did_not_write(self, base, tmp_path):
        folder = saved(adapted(base=base), tmp_path / "a")
        (folder / "notes.txt").touch()
        with pytest.raises(UsageError, match=r"holds notes.txt, which hyenadna did not write there"):
            saved(adapted(base=base), folder, overwrite=True)

    def test_answers_that_are_not_finite_are_not_saved(self, base, tmp_path):
        model = adapted("head", base=base)
        model.head.linear.bias.data[0] = float("nan")
        with pytest.raises(NotFiniteError, match="answers that are not finite; it was not saved"):
            saved(model, tmp_path / "a")
        assert not (tmp_path / "a").exists()


class TestAdapterBatch:
    """Heads, prompts of several lengths, LoRA and tasks of every kind, item by item."""

    @pytest.fixture
    def models(self, base):
        return [
            adapted("head", BASES, base=base),
            adapted("lora", NUMBER, base=base),
            adapted("soft-prompt", THREE, base=base, prompt_length=50),
            adapted("soft-prompt", BINARY, base=base, prompt_length=6, read_out="label-tokens"),
            adapted("lora", BINARY, base=base, pool="last", lora_projections=("fc1",)),
            adapted("soft-prompt", BINARY, base=base, prompt_length=0, pool="max"),
        ]

    WHICH = torch.tensor([0, 1, 2, 3, 4, 5, 2, 1, 0])
    LENGTHS = torch.tensor([60, 13, 1, 5, 40, 30, 12, 33, 2])

    def test_each_item_is_as_alone(self, models):
        batch = ragged(self.LENGTHS)
        together = AdapterBatch(models)(batch, self.LENGTHS, self.WHICH)
        for row, (number, length) in enumerate(zip(self.WHICH.tolist(), self.LENGTHS, strict=True)):
            alone = answers(models[number], batch[row : row + 1, :length], length[None])[0]
            torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-5)

    def test_the_order_does_not_matter(self, models):
        batch, order = ragged(self.LENGTHS), torch.tensor([4, 2, 8, 0, 1, 7, 3, 6, 5])
        first = AdapterBatch(models)(batch, self.LENGTHS, self.WHICH)
        second = AdapterBatch(models)(batch[order], self.LENGTHS[order], self.WHICH[order])
        for row, at in enumerate(order.tolist()):
            torch.testing.assert_close(second[row], first[at], rtol=0, atol=1e-5)

    def test_heads_and_prompts_go_through_the_base_together(self, models, monkeypatch):
        batches = []
        original = HyenaDNA.forward
        monkeypatch.setattr(
            HyenaDNA, "forward", lambda self, t, **k: batches.append(tuple(t.shape)) or original(self, t, **k)
        )
        AdapterBatch(models)(ragged(self.LENGTHS), self.LENGTHS, self.WHICH)
        assert batches == [(6, 60), (2, 33), (1, 40)]

    def test_some_adapters_may_have_no_items(self, models):
        batch = AdapterBatch(models)
        only = batch(tokens(2, 5), torch.tensor([5, 4]), torch.tensor([4, 4]))
        assert [tuple(answer.shape) for answer in only] == [(2,), (2,)]

    def test_adapters_do_not_touch_each_other(self, models):
        before = [copy_of(model.own_state()) for model in models]
        AdapterBatch(models)(ragged(self.LENGTHS), self.LENGTHS, self.WHICH)
        for state, model in zip(before, models, strict=True):
            assert all(torch.equal(tensor, model.own_state()[name]) for name, tensor in state.items())

    def test_an_item_longer_than_its_own_prompt_leaves_room_for(self, models):
        with pytest.raises(SequenceTooLong, match="13 bases; this model takes up to 12 behind a prompt of 50"):
            AdapterBatch(models)(tokens(2, 13), torch.tensor([13, 13]), torch.tensor([2, 0]))

    def test_bases_that_are_not_one(self, models):
        with pytest.raises(UsageError, match="7 adapters that do not share a base"):
            AdapterBatch([*models, adapted("head")])
        with pytest.raises(UsageError, match="0 adapters"):
            AdapterBatch([])

    @pytest.mark.parametrize("which", [[0, 6], [0], [-1, 0]])
    def test_an_adapter_that_there_is_not(self, models, which):
        with pytest.raises(UsageError, match="each must name one of 0 to 5"):
            AdapterBatch(models)(tokens(2, 5), torch.tensor([5, 5]), torch.tensor(which))

    def test_lengths_that_do_not_fit(self, models):
        with pytest.raises(InputError, match="lengths"):
            AdapterBatch(models)(tokens(2, 5), torch.tensor([5, 7]), torch.tensor([0, 0]))
