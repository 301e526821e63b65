"""What chooses between Triton and torch, and what is said when Triton cannot run."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hyenadna.errors import KernelError, UsageError
from hyenadna.kernels import backend

X = torch.zeros(1)


def test_torch_runs_on_the_cpu_and_without_a_word(capsys):
    assert backend.chosen(X) == "torch"
    assert capsys.readouterr().err == ""


def test_the_environment_chooses_and_the_context_overrides_it(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("HYENA_KERNELS", "triton")
    assert backend.chosen(X) == "triton"
    with backend.use("torch"):
        assert backend.chosen(X) == "torch"
        with backend.use("triton"):
            assert backend.chosen(X) == "triton"
        assert backend.chosen(X) == "torch"
    assert backend.chosen(X) == "triton"


def test_a_misspelt_choice_is_refused(monkeypatch):
    monkeypatch.setenv("HYENA_KERNELS", "tritn")
    with pytest.raises(UsageError, match="HYENA_KERNELS is 'tritn'; it may be auto, triton or torch"):
        backend.chosen(X)


@pytest.mark.parametrize(
    ("x", "why"), [(X, "the tensors are on cpu, not on a GPU"), (X.double(), "the kernels compute in float32")]
)
def test_triton_where_it_cannot_run_is_refused_and_not_replaced(monkeypatch, x, why):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with backend.use("triton"), pytest.raises(UsageError, match=f"cannot run here: {why}.*HYENA_KERNELS=torch can"):
        backend.chosen(x)


def test_without_triton_installed_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    with backend.use("triton"), pytest.raises(UsageError, match="pip install triton"):
        backend.chosen(X)


def test_a_failing_kernel_is_reported_with_the_way_around_it():
    with (
        pytest.raises(
            KernelError, match=r"kernel of fft_conv failed on cpu: no such instruction; .*HYENA_KERNELS=torch"
        ),
        backend.reported("fft_conv", X),
    ):
        raise RuntimeError("no such instruction\nand many more lines")


def test_want_of_memory_and_our_own_errors_are_left_as_they_are():
    for error in (torch.OutOfMemoryError("full"), UsageError("wrong")):
        with pytest.raises(type(error), match=str(error)), backend.reported("fft_conv", X):
            raise error


def test_half_precision_is_fast_and_float32_exact():
    assert [backend.precision_of(x) for x in (torch.float32, torch.bfloat16, torch.float16)] == [
        "exact",
        "fast",
        "fast",
    ]


def test_choosing_a_backend_reaches_other_threads(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with backend.use("triton"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(backend.chosen, X).result() == "triton"
