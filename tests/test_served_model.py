"""A model with its adapters, as it is loaded from folders."""

import itertools
import json

import numpy as np
import pytest
import torch
from adapting import NUMBER, THREE, adapted
from checkpoints import one_line, same_weights, small_model
from packing import quantized
from served_models import computed, served

from hyenadna import HyenaDNA
from hyenadna.data.tokenizer import encode
from hyenadna.errors import CheckpointError, UsageError
from hyenadna.finetune import adapter
from hyenadna.finetune.predict import Predictor
from hyenadna.serve.jobs import PredictJob
from hyenadna.serve.served_model import ServedAdapter, ServedModel, padded_lengths


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base, a prompt and low-rank updates of it, and a model that was trained as a whole."""
    root = tmp_path_factory.mktemp("served")
    small_model().save_pretrained(root / "base")
    base = HyenaDNA.from_pretrained(root / "base")
    save(adapted("soft-prompt", THREE, base=base), root / "run" / "adapter", reverse_complement=True)
    save(adapted("lora", NUMBER, base=base), root / "levels")
    save(adapted("full", base=small_model(layers="HH")), root / "whole" / "adapter")
    return root


def save(model, folder, **training):
    folder.parent.mkdir(exist_ok=True)
    base = "../../base" if folder.name == "adapter" else "../base"
    adapter.save(model, folder, base=base, card="# A classifier\n", training=training)


def predictions(model, name):
    [items] = computed(PredictJob(model=model, sequences=[("one", "ACGTTGCA" * 4)], adapter=name))
    return items[0]


def test_a_model_with_adapters(folders):
    model = ServedModel.load(folders / "base", {"run": folders / "run", "levels": folders / "levels"})
    assert model.name == "base"
    assert model.adapters["run"].reverse_complement
    assert not model.adapters["levels"].reverse_complement
    expected = Predictor(adapter.load(folders / "run"), reverse_complement=True)([encode("ACGTTGCA" * 4)])[0]
    np.testing.assert_allclose(list(predictions(model, "run")["probabilities"].values()), expected, atol=1e-6)
    [expected] = Predictor(adapter.load(folders / "levels"))([encode("ACGTTGCA" * 4)])
    assert predictions(model, "levels")["prediction"] == pytest.approx(expected[0], rel=1e-6)


def test_what_clients_are_told(folders):
    model = ServedModel.load(folders / "base", {"run": folders / "run"})
    told = json.loads(json.dumps(model.description))
    assert told["name"] == "base"
    assert (told["context"], told["layers"], told["width"], told["bits"]) == (68, 3, 16, 32)
    assert told["bits_per_weight"] == 32
    assert told["parameters"] == sum(parameter.numel() for parameter in small_model().parameters())
    assert told["adapters"] == {
        "run": {
            "task": "multiclass",
            "labels": ["a", "b", "c"],
            "method": "soft-prompt",
            "context": 62,
            "windows": True,
            "reverse_complement": True,
        }
    }
    assert str(folders) not in json.dumps(told)


def test_a_model_that_was_fine_tuned_as_a_whole_is_the_base_of_its_own_head(folders):
    model = ServedModel.load(folders / "whole")
    assert same_weights(model.network, HyenaDNA.from_pretrained(folders / "whole" / "adapter" / "model"))
    assert list(model.adapters) == ["whole"]
    assert predictions(model, None)["prediction"] in ("no", "yes")
    with pytest.raises(UsageError, match=r"--adapter whole=.*run: the head of .*whole has this name"):
        ServedModel.load(folders / "whole", {"whole": folders / "run"})


def test_a_run_is_served_with_the_model_that_it_adapts(folders):
    model = ServedModel.load(folders / "levels", {"run": folders / "run"})
    assert list(model.adapters) == ["levels", "run"]
    assert same_weights(model.network, HyenaDNA.from_pretrained(folders / "base"))
    both = ServedModel.load(folders / "base", {"levels": folders / "levels"})
    assert predictions(model, "levels") == predictions(both, "levels")


def test_an_adapter_of_another_model_is_refused(folders):
    with pytest.raises(CheckpointError, match="works on the very model that it was trained on") as error:
        ServedModel.load(folders / "whole", {"run": folders / "run"})
    one_line(error)
    with pytest.raises(CheckpointError, match="adapter"):
        ServedModel.load(folders / "base", {"none": folders / "base"})
    with pytest.raises(CheckpointError, match="no folder"):
        ServedModel.load(folders / "nowhere")
    with pytest.raises(UsageError, match="loaded with base="):
        served(other=ServedAdapter(adapted("head")))


def test_a_model_without_adapters_predicts_nothing():
    model = ServedModel.load("starter")
    assert (model.name, model.adapters, model.context) == ("starter", {}, 1024)
    with pytest.raises(UsageError, match="starter is served without adapters"):
        PredictJob(model=model, sequences=[])


def test_a_quantised_model_with_the_adapters_of_its_parent(folders, tmp_path):
    quantized(HyenaDNA.from_pretrained(folders / "base")).save_pretrained(tmp_path / "small")
    model = ServedModel.load(tmp_path / "small", {"run": folders / "run", "levels": folders / "levels"})
    told, whole = model.description, ServedModel.load(folders / "base").description
    assert (told["bits"], told["parameters"]) == (4, whole["parameters"])
    assert 4 < told["bits_per_weight"] < 8
    own = adapter.load(folders / "run", base=HyenaDNA.from_pretrained(tmp_path / "small"))
    expected = Predictor(own, reverse_complement=True)([encode("ACGTTGCA" * 4)])[0]
    np.testing.assert_allclose(list(predictions(model, "run")["probabilities"].values()), expected, atol=1e-6)


def test_half_precision_is_for_the_products_alone(folders):
    model = ServedModel.load(folders / "base", {"run": folders / "run"}, dtype=torch.bfloat16)
    assert model.network.embedding.weight.dtype == torch.float32
    whole = ServedModel.load(folders / "base", {"run": folders / "run"})
    one, other = (list(predictions(m, "run")["probabilities"].values()) for m in (model, whole))
    assert one != other
    np.testing.assert_allclose(one, other, atol=0.05)


@pytest.mark.parametrize("longest", [1, 20, 33, 1024, 70_000])
def test_padded_lengths_are_few_and_near_each_other(longest):
    lengths = padded_lengths(longest)
    assert lengths == sorted(set(lengths))
    assert lengths[-1] == longest
    assert all(larger <= smaller + smaller / 8 for smaller, larger in itertools.pairwise(lengths))
    assert len(lengths) <= 2 + 9 * max(1, np.log2(longest / 32))


def test_a_length_is_padded_to_the_next(folders):
    model = served()
    assert [model.padded_length(n) for n in (1, 32, 33, 40, 61, 68)] == [32, 32, 36, 40, 64, 68]
