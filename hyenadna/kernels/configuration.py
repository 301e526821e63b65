"""One way in which a Triton kernel may be launched, so that it can be compiled ahead of time where there is no GPU."""

from typing import Any, NamedTuple


class Configuration(NamedTuple):
    """A kernel with everything that its machine code depends on."""

    name: str
    kernel: Any
    """The function under `triton.jit`."""
    signature: dict[str, str]
    """Triton's type of every argument, '*fp32' or 'i32'; 'constexpr' for those in `constants`."""
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    tensor_cores: bool
    """Whether its products are meant for the tensor cores."""
    spill_budget: int
    """Bytes of registers that each thread may spill to memory, stores and loads together."""
