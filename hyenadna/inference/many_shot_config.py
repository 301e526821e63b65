"""What `hyena probe` is told to do; each field's text is its help."""

import dataclasses
from pathlib import Path
from typing import Literal

from hyenadna.data.data_config import DataConfig
from hyenadna.errors import UsageError

Arm = Literal["true", "shuffled", "flipped", "unlabelled", "reverse-complement", "reinforced"]
ARMS: tuple[Arm, ...] = ("true", "shuffled", "flipped", "unlabelled", "reverse-complement", "reinforced")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeConfig(DataConfig):
    """A many-shot in-context probe.

    Raises
    ------
    UsageError              a value outside of what the field allows, or two fields that contradict each other
    """

    __pydantic_config__ = {"use_attribute_docstrings": True, "extra": "forbid"}

    model: str = "starter"
    """Model folder, training run or hub id; or the model that comes with the package."""
    out: Path = Path("hyena-probe")
    """Folder of the results. The same command continues a probe that stopped, and more --seeds or --arms go on."""
    arms: tuple[Arm, ...] = ARMS
    """What examples say: true labels; shuffled among the examples; flipped, each class called by the next one's word,
    which is then the right answer; unlabelled, sequences alone; reverse-complement, each example on both strands;
    reinforced, examples that the model itself labels right, checked by their true labels, beside as many others with
    true labels of the same confidence."""
    shots: tuple[int, ...] = ()
    """Examples of each class. Default: 0, 1, 2, 4 and so on up to what context and data hold."""
    layout: Literal["suited", "published"] | None = None
    """suited: nucleotides alone, which a frozen model knows; published: [SEP], and the labels A, N or A, G, N, for
    models that are tuned on such prompts. Default: the one that the model was tuned on, else suited."""
    separator: str | None = None
    """Between sequences and labels, another one than the layout's: a word of nucleotides, or sep for [SEP]."""
    label_words: tuple[str, ...] = ()
    """A word of nucleotides for each class, in the order of their names, instead of the layout's; all of one length."""
    queries: int = 200
    """Sequences of the test part that are asked, as many of each class as there are; the same behind all prompts."""
    seeds: int = 10
    """Different choices and orders of the examples."""
    seed: int = 0
    """Of the split where the data have none, of the queries, and the first of the seeds."""
    calibration: int = 20
    """Queries whose bases are shuffled, by which answers are calibrated; 0: none are, and nothing is calibrated."""
    max_length: int | None = None
    """Cut longer sequences to so many bases around their middle. Default: none is cut."""
    split_by: Literal["auto", "group", "cluster", "row"] = "auto"
    """What stays together where the data have no test part: as in `hyena finetune`. Training rows that are nearly a
    query are never shown, whoever made the parts, but with row they are."""
    test_share: float = 0.2
    """Share of the rows that is asked from, where the data have no test part."""
    batch_tokens: int | None = None
    """Tokens of a batch of queries (default: 8192, on a GPU 131072); changes no result."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int | None = None
    """CPU threads (default: the CPUs that this process may use)."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("queries", 1, 1_000_000), ("seeds", 1, 10_000), ("seed", 0, 2**31 - 1), ("calibration", 0, 100_000),
            ("max_length", 1, None), ("batch_tokens", 1, None), ("threads", 1, None),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not (least <= value and (most is None or value <= most)):
                allowed = f"at least {least}" + ("" if most is None else f", at most {most:,}")
                raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be {allowed}")
        if not 0 < self.test_share < 1:
            raise UsageError(f"--test-share is {self.test_share}; it must be above 0 and below 1")
        if not self.arms or set(self.arms) - set(ARMS) or len(set(self.arms)) < len(self.arms):
            raise UsageError(f"--arms {' '.join(self.arms) or 'is empty'}; give some of {', '.join(ARMS)}, each once")
        if list(self.shots) != sorted(set(self.shots)) or any(k < 0 for k in self.shots):
            raise UsageError(
                f"--shots {' '.join(map(str, self.shots))}: give numbers from 0 that ascend, such as 0 1 2 4"
            )

    @property
    def data_config(self) -> DataConfig:
        """Where the rows come from."""
        return DataConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(DataConfig)})
