"""Tuning in context: prompts against what they are made of, the positive control, the command, its files, bad input."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from checkpoints import small_model
from finetuning import leave_out_the_slow, planted, write_table
from typer.testing import CliRunner

from hyenadna import HyenaConfig, HyenaDNA
from hyenadna.cli.main import app
from hyenadna.data.alphabet import reverse_complement
from hyenadna.data.in_context_tasks import MotifTask, RowsTask, WordTask
from hyenadna.data.tokenizer import IGNORE, decode, encode
from hyenadna.errors import CheckpointError, InputError, SequenceTooLong, UsageError
from hyenadna.finetune import in_context as command
from hyenadna.finetune.adaptation import Adaptation
from hyenadna.finetune.config import FinetuneConfig
from hyenadna.finetune.in_context import resolved
from hyenadna.finetune.in_context_config import InContext
from hyenadna.finetune.in_context_model import Prompted, load, next_token_model
from hyenadna.finetune.in_context_prompts import PromptSource, episode, layout_of, right_answers
from hyenadna.finetune.in_context_train import InContextTrainer
from hyenadna.finetune.validation import Validation
from hyenadna.inference.likelihood import context_of
from hyenadna.inference.many_shot import probe
from hyenadna.inference.many_shot_prompt import Layout
from hyenadna.pretrain.configured_folder import read_yaml, to_yaml

LAYOUT = Layout(("A", "T"), "sep")


def test_targets_are_the_tokens_of_the_labels_at_the_positions_before_them() -> None:
    layout = Layout(("AC", "GT", "TT"), "G")
    rows = [encode(sequence) for sequence in ("A", "CC", "AAA", "CCCC", "GG", "T")]
    task = RowsTask("rows", rows, np.array([0, 1, 2, 0, 1, 2]), 3)
    drawn = PromptSource((task,), (layout,), 1).draw(20, np.random.default_rng(0))
    words = {tuple(word) for word in layout.label_tokens.tolist()}
    meanings = set()
    for tokens, targets in zip(drawn.tokens, drawn.targets, strict=True):
        asked = np.flatnonzero(targets != IGNORE)
        assert len(asked) == 8 and asked[-1] == len(tokens) - 1  # four examples of two tokens
        for first in asked[::2].tolist():
            assert tuple(targets[first : first + 2].tolist()) in words
            if first + 2 < len(tokens):
                np.testing.assert_array_equal(tokens[first + 1 : first + 3], targets[first : first + 2])
        # every sequence of the prompt is a row, no row comes twice, and its class always has the same word
        pieces, start = {}, 0
        for first in asked[::2].tolist():
            pieces[tuple(tokens[start:first].tolist())] = tuple(targets[first : first + 2].tolist())
            start = first + 4
        assert len(pieces) == 4
        meaning = {}
        for sequence, word in pieces.items():
            label = [tuple(row.tolist()) for row in rows].index(sequence) % 3
            assert meaning.setdefault(label, word) == word
        meanings.add(tuple(sorted(meaning.items())))
    assert len(meanings) > 3
    fixed = PromptSource((task,), (layout,), 1, permute=False).draw(5, np.random.default_rng(0))
    assert fixed.targets[0][fixed.targets[0] != IGNORE].size == 8


def test_layouts_are_those_that_the_probe_asks_in() -> None:
    assert layout_of("published", 3, "pad") == Layout.published(3)
    assert layout_of("suited", 3, "pad") == Layout.suited(3, "pad")
    with pytest.raises(UsageError, match="words for 2 or 3 classes"):
        layout_of("published", 4, "n")


def test_right_answers_are_those_of_the_label_words_alone() -> None:
    layout, targets = Layout(("AC", "GT"), None), np.array([IGNORE, 7, 8, IGNORE, 9, 10])
    said = np.full((6, 12), 0.01)
    said[:, 1] = 0.9  # another token is likelier than all of them
    for position, token in ((1, 7), (2, 8), (4, 9), (5, 8)):
        said[position, token] = 0.05
    assert right_answers(said, targets, layout).tolist() == [True, False]


def test_episodes_have_as_many_of_each_class_and_shuffled_ones_tell_nothing() -> None:
    random = np.random.default_rng(1)
    found = episode(MotifTask(motif=4, length=4, substituted=0.0), 8, 5, random)
    labels = np.array([example.label for example in found.examples])
    assert (labels.reshape(8, 2).sum(axis=1) == 1).all() and len(found.queries) == 5
    by_word = {example.tokens.tobytes(): example.label for example in found.examples}
    assert [by_word[query.tobytes()] for query in found.queries] == found.answers.tolist()
    agree = []
    for _ in range(30):
        shuffled = episode(MotifTask(motif=4, length=4, substituted=0.0), 8, 1, random, shuffled=True)
        words = [example.tokens.tobytes() for example in shuffled.examples]
        same = np.array([word == shuffled.queries[0].tobytes() for word in words])
        says = np.array([example.label for example in shuffled.examples])[same]
        agree.append((says == shuffled.answers[0]).mean())
    assert abs(np.mean(agree) - 0.5) < 0.1


def tiny(context: int, d_model: int = 64, seed: int = 0) -> HyenaDNA:
    """A Hyena layer, which says what stands where, and a softmax layer, which looks it up; large weights learn fast."""
    torch.manual_seed(seed)
    return HyenaDNA(
        HyenaConfig(
            d_model=d_model,
            d_inner=2 * d_model,
            layers="HS",
            filter_length=context + 2,
            filter_order=32,
            initializer_range=0.1,
        )
    )


def tuned(base: HyenaDNA, task, shots: int, *, seed: int = 0, **fields) -> HyenaDNA:
    """The model after training on prompts of a task."""
    config = resolved(FinetuneConfig(objective="in-context", threads=1, device="cpu", shots=shots, seed=seed, **fields))
    source = PromptSource((task,), (LAYOUT,), shots)
    model = next_token_model(base, Adaptation(read_out="next-token", dropout=0.0))
    trainer = InContextTrainer(model, source, source, config, seed=seed, batch_tokens=1 << 14)
    while not trainer.done:
        trainer.epoch()
    trainer.take_best()
    return base.eval()


def test_positive_control_of_words_whose_labels_only_the_prompt_tells() -> None:
    task = WordTask(length=1)
    model = tuned(tiny(100), task, 8, epochs=8, patience=8, prompts=256, batch_size=8, lr=2e-3)
    random = np.random.default_rng(5)
    true, shuffled = (
        probe(model, [episode(task, 8, 8, random, shuffled=chance) for _ in range(25)], LAYOUT, (2, 16))
        for chance in (False, True)
    )
    assert true.gain(2, 16).low > 0 and true.accuracy(16).value > 0.9
    assert shuffled.gain(2, 16).low < 0 < shuffled.gain(2, 16).high
    assert shuffled.accuracy(16).low < 0.5 < shuffled.accuracy(16).high


def test_the_epoch_is_chosen_by_the_loss_while_the_metric_is_at_chance(monkeypatch) -> None:
    config = resolved(FinetuneConfig(objective="in-context", epochs=9, patience=2, prompts=16, batch_size=8, shots=1))
    source = PromptSource((WordTask(length=1),), (LAYOUT,), 1)
    model = next_token_model(tiny(16), Adaptation(read_out="next-token", dropout=0.0))
    trainer = InContextTrainer(model, source, source, config, seed=0, batch_tokens=1 << 14)
    found = iter([(1.2, 0.02), (0.9, 0.01), (0.7, -0.01), (0.69, 0.0), (0.71, 0.05), (0.7, float("nan"))])
    monkeypatch.setattr(trainer, "validate", lambda: Validation(*next(found), "mcc"))
    while not trainer.done:
        trainer.epoch()
    assert (trainer.state.epoch, trainer.state.best_epoch, trainer.state.best.loss) == (6, 4, 0.69)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Iterator[Path]:
    """A folder with two tables, a model, and a run of each method."""
    folder = tmp_path_factory.mktemp("in-context")
    for seed, name in enumerate(("one", "two")):
        write_table(folder / f"{name}.csv", planted(200, length=12, seed=seed))
    small_model(layers="HS", filter_length=130).eval().save_pretrained(folder / "model")
    monkeypatch = pytest.MonkeyPatch()
    leave_out_the_slow(monkeypatch)
    for method, lr in (("full", 1e-3), ("lora", 1e-2), ("soft-prompt", 1e-1)):
        result = CliRunner().invoke(app, [*arguments(folder, method), "--lr", str(lr), "--json"])
        assert result.exit_code == 0, result.output
        (folder / f"{method}.json").write_text(result.stdout)
    yield folder
    monkeypatch.undo()


def arguments(folder: Path, method: str = "full") -> list[str]:
    return ["finetune", str(folder / "one.csv"), "--more-data", str(folder / "two.csv"), "synthetic/motif",
            "--objective", "in-context", "-m", str(folder / "model"), "-o", str(folder / method), "--method", method,
            "--shots", "2", "--prompts", "16", "--batch-size", "8", "--epochs", "2", "--prompt-length", "5",
            "--threads", "1", "--split-by", "row"]  # fmt: skip


def test_the_command_reports_every_task_before_and_after(made) -> None:
    result = json.loads((made / "full.json").read_text())
    report = result["report"]
    assert set(report["tasks"]) == {str(made / "one.csv"), str(made / "two.csv"), "synthetic/motif"}
    assert report["examples"] == [0, 1, 2, 4] and report["layout"] == "published"
    for found in report["tasks"].values():
        assert [len(found[when]) for when in ("before", "after")] == [4, 4]
        assert all(0 <= point["low"] <= point["value"] <= point["high"] <= 1 for point in found["after"])
    assert "hyena probe DATA -m" in result["text"] and "synthetic/motif" in result["text"]
    assert "--more-data" in report["command"] and "tuned in context" in (made / "full" / "README.md").read_text()


@pytest.mark.parametrize("method", ["full", "lora", "soft-prompt"])
def test_what_was_tuned_loads_as_a_model_that_reads_prompts(made, method) -> None:
    base, found = HyenaDNA.from_pretrained(made / "model"), load(made / method)
    assert found.training["layout"] == ("published" if method == "full" else "suited")
    tokens = torch.randint(7, 11, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole, plain = found.model(tokens).logits, base(tokens).logits
        first, state = found.model.extend(tokens[:1, :8], ahead=12)
        behind = found.model(tokens[:, 8:], prefix=state).logits
        one, _ = found.model.extend(tokens[:1, 8:], state.repeat(1))
    assert (whole - plain).abs().max() > 1e-4  # it has learnt something
    torch.testing.assert_close(first, whole[:1, :8], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one, whole[:1, 8:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(behind[:1], whole[:1, 8:], atol=1e-5, rtol=1e-4)
    answers = probe(found.model, [episode(MotifTask(), 2, 3, np.random.default_rng(0))], Layout.suited(2), (0, 4))
    assert np.isfinite(answers.raw).all()


def test_a_soft_prompt_stands_before_the_tokens_as_embeddings() -> None:
    base = small_model(layers="HS", filter_length=40).eval()
    words = torch.randint(7, 11, (1, 6), generator=torch.Generator().manual_seed(1))
    tokens = torch.randint(7, 11, (2, 10), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = Prompted(base, base.embedding(words[0]))(tokens).logits
        oracle = base(torch.cat([words.expand(2, -1), tokens], dim=1)).logits[:, 6:]
    torch.testing.assert_close(found, oracle, atol=1e-5, rtol=1e-4)


def test_a_model_that_was_not_tuned_loads_as_it_is_and_one_with_a_head_is_refused(made, tmp_path) -> None:
    found = load(made / "model")
    assert found.training == {} and not isinstance(found.model, Prompted)
    with pytest.raises(CheckpointError, match="no model folder"):
        load(tmp_path)
    result = CliRunner().invoke(app, ["predict", str(made / "one.csv"), "-m", str(made / "lora")])
    assert result.exit_code == 3 and "hyena probe DATA -m" in result.output


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(made, tmp_path, monkeypatch) -> None:
    epoch = InContextTrainer.epoch

    def stop(self, *args):
        if self.state.epoch == 1:
            raise KeyboardInterrupt
        return epoch(self, *args)

    fields = {"data": str(made / "one.csv"), "more_data": (str(made / "two.csv"), "synthetic/motif"), "lr": 1e-3}
    config = FinetuneConfig(
        objective="in-context", model=str(made / "model"), out=tmp_path / "run", shots=2, prompts=16, batch_size=8,
        epochs=2, threads=1, split_by="row", prompt_length=5, **fields,
    )  # fmt: skip
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(InContextTrainer, "epoch", stop)
        command.finetune(config)
    assert not (tmp_path / "run" / "report.json").exists()
    report = command.finetune(config).report
    assert report["tasks"] == json.loads((made / "full.json").read_text())["report"]["tasks"]
    one, other = (HyenaDNA.from_pretrained(path).state_dict() for path in (tmp_path / "run", made / "full"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    # and once it is over, the same command says the same and trains no more, whether or not it names the usual layout
    assert read_yaml(tmp_path / "run" / "finetune.yaml", FinetuneConfig).layout == "published"
    config = dataclasses.replace(config, layout="published")
    with monkeypatch.context() as patch:
        patch.setattr(InContextTrainer, "epoch", stop)
        assert command.finetune(config).report == report


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(made) -> None:
    words = arguments(made)
    words[words.index("-o") + 1] = str(made / "nothing")
    result = CliRunner().invoke(app, [*words, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "of 2 examples a class" in result.output and "of 128 that fit" in result.output
    assert not (made / "nothing").exists()


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"shots": 20}, InputError, r"the valid part of .*one.csv has 10 rows of the class '\w+'; --shots 20 needs 21"),
        ({"shots": 4}, SequenceTooLong, r"9 examples of up to 12 bases\); .* takes 128: take --shots 3, or a model"),
        ({"data": "synthetic/poem"}, UsageError, "no task synthetic/poem; synthetic ones are synthetic/motif"),
        ({"more_data": ("synthetic/bits", "synthetic/bits")}, UsageError, "synthetic/bits is given twice"),
    ],
)
def test_what_cannot_be_tuned_on_is_said_in_a_line(made, tmp_path, fields, error, message) -> None:
    given = {"data": str(made / "one.csv"), "shots": 2, "split_by": "row"} | fields
    config = FinetuneConfig(objective="in-context", model=str(made / "model"), out=tmp_path / "run", threads=1, **given)
    with pytest.raises(error, match=message):
        command.finetune(config)
    assert not (tmp_path / "run").exists()


def test_tables_without_classes_are_refused(made, tmp_path) -> None:
    rows = [(sequence, "same") for sequence, _ in planted(30, length=12)]
    numbers = [(sequence, str(row / 7)) for row, (sequence, _) in enumerate(planted(30, length=12))]
    for table, message in ((rows, "one class only, 'same'"), (numbers, "regression; prompts take classes")):
        data = str(write_table(tmp_path / "table.csv", table))
        config = FinetuneConfig(
            objective="in-context", model=str(made / "model"), data=data, out=tmp_path / "run", threads=1
        )
        with pytest.raises(InputError, match=message):
            command.finetune(config)


def test_settings_of_other_objectives_are_refused() -> None:
    for fields, message in (
        ({"objective": "in-context", "method": "head"}, "--method head has nothing to learn"),
        ({"objective": "in-context", "pool": "max"}, "--pool says nothing to --objective in-context"),
        ({"objective": "in-context", "shots": 0}, "--shots is 0; it must be at least 1"),
        ({"shots": 4}, "--shots says nothing to --objective labels"),
        ({"objective": "diversity", "more_data": ("a",)}, "--more-data says nothing to --objective diversity"),
        ({"read_out": "next-token"}, "take --objective in-context"),
    ):
        with pytest.raises(UsageError, match=message):
            FinetuneConfig(**fields)


def test_hyena_probe_takes_what_was_tuned(made, tmp_path) -> None:
    """The soft prompt leaves so many tokens less to the prompt of examples."""
    words = ["probe", str(made / "one.csv"), "-m", str(made / "soft-prompt"), "-o", str(tmp_path / "probe"), "--arms",
             "true", "--queries", "6", "--seeds", "1", "--calibration", "0", "--split-by", "row", "--threads", "1",
             "--json"]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "probe" / "report.json").read_text())
    assert report["context"] == context_of(HyenaDNA.from_pretrained(made / "model")) - 5
    assert "was tuned on the layout" not in result.output
    dry = CliRunner().invoke(app, [*words, "--layout", "published", "--dry-run"])
    assert "was tuned on the layout suited; it is asked in the layout published" in dry.output, dry.output


def test_a_tuned_model_is_tuned_again_and_asked_in_its_own_layout(made, tmp_path) -> None:
    for model, method, layout in (("model", "lora", "suited"), ("model", "full", "published"),
                                  ("full", "lora", "published")):  # fmt: skip
        config = FinetuneConfig(
            objective="in-context", data="synthetic/word", model=str(made / model), method=method, shots=2, threads=1
        )
        assert command.Plan.of(resolved(config)).config.layout == layout
    result = CliRunner().invoke(
        app, ["probe", str(made / "one.csv"), "-m", str(made / "full"), "-o", str(tmp_path / "probe"), "--arms", "true",
              "--queries", "6", "--seeds", "1", "--calibration", "0", "--split-by", "row", "--threads", "1"],
    )  # fmt: skip
    assert result.exit_code == 0 and "layout" not in result.output, result.output
    report = json.loads((tmp_path / "probe" / "report.json").read_text())
    assert (report["layout"]["separator"], report["layout"]["label_words"]) == ("sep", ["A", "N"])


def test_a_copy_of_a_row_on_either_strand_is_not_in_its_part(made) -> None:
    """Or what an example says of it would be what a label behind it is."""
    rows = [(sequence, label, part) for part in ("train", "valid", "test")
            for sequence, label in planted(20, length=12, seed=len(part) + (part == "test"))]  # fmt: skip
    copies = [(reverse_complement(sequence), label, part) for sequence, label, part in rows[::2]] + rows[::3]
    path = made / "copies.csv"
    path.write_text("sequence,label,split\n" + "".join(f"{','.join(row)}\n" for row in rows + copies))
    config = FinetuneConfig(objective="in-context", model=str(made / "model"), data=str(path), out=made / "x", shots=2)
    (task,) = command.Plan.of(resolved(config)).sources["train"].tasks
    drawn = task.draw(len({min(row[0], reverse_complement(row[0])) for row in rows[:20]}), np.random.default_rng(0))
    found = [decode(tokens) for tokens in drawn.sequences]
    assert len({*found, *map(reverse_complement, found)}) == 2 * len(found)
    with pytest.raises(UsageError, match=f"has {len(found)} rows"):
        task.draw(len(found) + 1, np.random.default_rng(0))


def test_a_run_of_before_this_objective_goes_on(tmp_path) -> None:
    config = FinetuneConfig(data="one.csv", method="lora")
    fields = yaml.safe_load(to_yaml(config))
    for name in InContext.ONLY_IN_CONTEXT:
        del fields[name]
    (tmp_path / "finetune.yaml").write_text(yaml.safe_dump(fields))
    assert read_yaml(tmp_path / "finetune.yaml", FinetuneConfig) == config
