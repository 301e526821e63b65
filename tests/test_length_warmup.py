import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyenadna.errors import UsageError
from hyenadna.pretrain.length_warmup import doubled_lengths, length_warmup


def stages_of(**given):
    defaults = {"warmup_from": 64, "max_length": 1024, "steps": 100, "batch_tokens": 8192, "micro_batches": 1}
    return length_warmup(**defaults | given)


def test_doubles_up_to_a_million_itself():
    lengths = doubled_lengths(64, 1_000_000)
    assert lengths == (
        64,
        128,
        256,
        512,
        1024,
        2048,
        4096,
        8192,
        16384,
        32768,
        65536,
        131072,
        262144,
        524288,
        1_000_000,
    )


def test_stages_by_share_and_by_steps():
    by_share = stages_of(share=0.4)
    assert [(s.length, s.first_step, s.steps, s.windows) for s in by_share.stages] == [
        (64, 0, 10, 128),
        (128, 10, 10, 64),
        (256, 20, 10, 32),
        (512, 30, 10, 16),
        (1024, 40, 60, 8),
    ]
    assert stages_of(stage_steps=10) == by_share
    assert by_share.steps == 100 and by_share.tokens == 100 * 8192


def test_stage_of_a_step():
    warmup = stages_of(stage_steps=10)
    found = [warmup.at(step).length for step in (0, 9, 10, 39, 40, 99, 100, 5000)]
    assert found == [64, 64, 128, 512, 1024, 1024, 1024, 1024]


def test_windows_are_a_multiple_of_the_micro_batches():
    warmup = stages_of(max_length=1000, batch_tokens=8000, micro_batches=6, share=0.4)
    assert [stage.windows for stage in warmup.stages] == [120, 60, 30, 12, 6]


def test_no_window_for_the_longest_stage_is_refused():
    with pytest.raises(UsageError, match=r"8,192 tokens has no window of 4,096 bases for each of 4 .*16,384"):
        stages_of(max_length=4096, micro_batches=4, share=0.4)


def test_a_run_that_ends_before_its_last_stage_is_refused():
    with pytest.raises(UsageError, match=r"40 steps end before the length warm-up does, at step 40"):
        stages_of(steps=40, stage_steps=10)
    assert stages_of(steps=41, stage_steps=10).stages[-1].steps == 1


def test_a_short_run_passes_over_stages():
    one = stages_of(steps=1, share=0.3)
    assert [(stage.length, stage.steps) for stage in one.stages] == [(1024, 1)]
    few = stages_of(steps=6, share=0.5)
    assert few.stages[-1].length == 1024 and few.steps == 6 and len(few.stages) < 5


def test_no_warm_up():
    for without in ({"share": 0.0}, {"warmup_from": 1024, "share": 0.3}, {"warmup_from": 1024, "stage_steps": 10}):
        assert [(stage.length, stage.steps) for stage in stages_of(**without).stages] == [(1024, 100)]


@given(
    warmup_from=st.integers(2, 3000),
    max_length=st.integers(2, 1_000_000),
    steps=st.integers(1, 5000),
    windows=st.integers(1, 50),
    micro_batches=st.integers(1, 16),
    share=st.floats(0, 0.99),
)
def test_stages_cover_every_run(warmup_from, max_length, steps, windows, micro_batches, share):
    warmup_from = min(warmup_from, max_length)
    batch_tokens = max_length * micro_batches * windows + windows
    try:
        warmup = length_warmup(
            warmup_from=warmup_from,
            max_length=max_length,
            steps=steps,
            batch_tokens=batch_tokens,
            micro_batches=micro_batches,
            share=share,
        )
    except UsageError:
        assert round(share * steps) >= steps  # nothing was left for the longest length
        return
    seen = [warmup.at(step) for step in range(steps)]
    assert all(stage.first_step <= step < stage.first_step + stage.steps for step, stage in enumerate(seen))
    lengths = [stage.length for stage in seen]
    assert lengths == sorted(lengths) and lengths[-1] == max_length and warmup.steps == steps
    assert set(lengths) <= set(doubled_lengths(warmup_from, max_length))
    assert warmup.tokens == sum(stage.windows * stage.length for stage in seen)
    for stage in warmup.stages:
        assert stage.windows % micro_batches == 0
        # not one more group of windows would fit
        assert stage.windows * stage.length <= batch_tokens < (stage.windows + micro_batches) * stage.length
