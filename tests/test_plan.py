import dataclasses

import pytest

from hyenadna.errors import UsageError
from hyenadna.pretrain import plan
from hyenadna.pretrain.config import PretrainConfig
from hyenadna.pretrain.plan import new_model, resolved, stages

GIB = 1 << 30


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A CPU machine of 8 cores and 16 GiB."""
    monkeypatch.setattr(plan, "available_cpus", lambda: 8)
    monkeypatch.setattr(plan, "total_memory", lambda: 16 * GIB)


def config(**fields):
    return PretrainConfig(device="cpu", **fields)


def test_nothing_is_left_open():
    run = resolved(config())
    open_fields = {field.name for field in dataclasses.fields(run) if getattr(run, field.name) is None}
    of_the_size = {"layers", "feed_forward", "experts", "active_experts"}
    assert open_fields == {"tokens", "warmup_steps", "contigs", "split_bed"} | of_the_size
    assert (run.max_length, run.warmup_share, run.dtype) == (1024, 0.3, "float32") and run.filter_lr <= run.lr
    assert resolved(run) == run
    assert (run.valid_every, run.checkpoint_every) == (run.steps // 10, run.steps // 20)


def test_what_is_given_stands():
    given = {
        "max_length": 256, "batch_tokens": 1024, "micro_batch_tokens": 512, "steps": 7, "lr": 1e-4, "threads": 3,
        "valid_every": 2, "checkpoint_every": 4, "dtype": "bfloat16", "checkpoint_activations": True, "warmup_steps": 1,
    }  # fmt: skip
    run = resolved(config(**given))
    assert {name: getattr(run, name) for name in given} == given and run.warmup_share is None


def test_steps_of_tokens():
    assert resolved(config(tokens=1e6, batch_tokens=2048)).steps == 488
    assert resolved(config(tokens=1)).steps == 1


def test_narrow_rate_for_wide_models():
    wide, narrow = resolved(config(size="tiny-1k-d256")), resolved(config(size="tiny-1k"))
    assert wide.lr == pytest.approx(narrow.lr / 2)


def test_processes_share_cores_and_batch():
    run = resolved(config(devices=2, batch_tokens=4096))
    assert run.threads == 4 and run.batch_tokens == 4096
    warmup, micro_batches = stages(run)
    assert micro_batches == 1 and all(stage.windows % 2 == 0 for stage in warmup.stages)
    assert resolved(config(size="small-32k", devices=2)).batch_tokens == 2 * 32_768


def test_a_step_fits_the_memory(monkeypatch):
    given = {"max_length": 1024, "batch_tokens": 1 << 20, "steps": 10}
    small = resolved(config(**given))
    monkeypatch.setattr(plan, "total_memory", lambda: 256 * GIB)
    large = resolved(config(**given))
    assert large.micro_batch_tokens == 1 << 20 and not large.checkpoint_activations
    assert 1024 <= small.micro_batch_tokens < 1 << 20
    assert plan._memory(small, new_model(small).config) < 0.6 * 16 * GIB
    warmup, micro_batches = stages(small)
    assert micro_batches == (1 << 20) // small.micro_batch_tokens
    assert warmup.stages[-1].windows == 1024  # the batch stays what it was


def test_blocks_are_recomputed_where_memory_asks_for_it():
    run = resolved(config(size="medium-160k", steps=10))
    assert run.checkpoint_activations and run.micro_batch_tokens == 160_000
    assert resolved(config(size="medium-160k", steps=10, checkpoint_activations=False)).checkpoint_activations is False


def test_a_run_that_moves_keeps_what_the_machine_had_chosen(monkeypatch):
    given = {"max_length": 1024, "batch_tokens": 1 << 20, "steps": 10}
    small = resolved(config(**given))
    monkeypatch.setattr(plan, "total_memory", lambda: 256 * GIB)
    moved = resolved(config(**given), small)
    assert moved.micro_batch_tokens == small.micro_batch_tokens
    assert resolved(config(**given, micro_batch_tokens=2048), small).micro_batch_tokens == 2048


def test_a_micro_batch_without_a_window_is_refused():
    with pytest.raises(UsageError, match=r"--micro-batch-tokens 1,000 holds no window of 1,024 bases; .* 1,024"):
        resolved(config(micro_batch_tokens=1000))


def test_the_seed_alone_decides_the_first_weights():
    one, same, other = (new_model(resolved(config(max_length=64, seed=seed))).state_dict() for seed in (1, 1, 2))
    assert all(one[name].equal(same[name]) for name in one)
    assert not one["backbone.layers.0.mixer.in_proj.weight"].equal(other["backbone.layers.0.mixer.in_proj.weight"])
    model = new_model(resolved(config(max_length=1000, dropout=0.25, filter_shift=0.0)))
    assert (model.config.filter_length, model.config.embed_dropout, model.config.filter_shift) == (1002, 0.25, 0.0)
