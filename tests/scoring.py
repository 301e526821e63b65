"""A small genome, VCF files of it, and a scorer whose numbers are made up: what tests of `hyena score` share."""

import math
import os
import random
import signal
import sys
import zlib
from collections import namedtuple
from functools import cache
from pathlib import Path

from hyenadna.data.reference_check import Genome
from hyenadna.inference.score_config import ScoreConfig
from hyenadna.inference.score_vcf import Scored, scorable, score_vcf

HEADER = (
    "##fileformat=VCFv4.2\n##contig=<ID=1,length=3000>\n##contig=<ID=2,length=900>\n"
    '##INFO=<ID=DP,Number=1,Type=Integer,Description="Depth, of all">\n'
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tone\n"
)
Score = namedtuple("Score", "llr markov percentile flags")
"""As VariantScore, whose module loads torch."""
ABOUT = {"model": "made up", "window": 64, "performance": "not measured"}
JOB = {"input": "in.vcf", "window": 64}


@cache
def bases() -> dict[str, str]:
    """The genome: no base of it is N but some of contig 2."""
    draw = random.Random(3)
    one, two = ("".join(draw.choices("ACGT", k=length)) for length in (3000, 900))
    return {"1": one, "2": two[:500] + "N" * 20 + two[520:]}


def write_fasta(path: Path) -> Path:
    path.write_text("".join(f">{name}\n{text}\n" for name, text in bases().items()))
    return path


def line(position: int, alt: str | None = None, ref: str | None = None, contig: str = "1", info: str = "DP=7") -> str:
    """A record; by default an SNV with the genome's own REF."""
    ref = bases()[contig][position - 1] if ref is None else ref
    alt = "ACGT"["ACGT".index(ref[0]) - 1] if alt is None else alt
    return f"{contig}\t{position}\trs{position}\t{ref}\t{alt}\t30.0\tPASS\t{info}\tGT\t0/1\n"


def records(number: int) -> list[str]:
    """Sorted SNVs, deletions and records of two alleles, all over contig 1."""
    genome, made = bases()["1"], []
    for index in range(number):
        position = 20 + index * 2900 // number
        ref = genome[position - 1 : position + (2 if index % 7 == 3 else 0)]
        others = [base for base in "ACGT" if base != ref[0]]
        alt = ref[0] if len(ref) > 1 else ",".join(others[: 1 + (index % 5 == 1)])
        made.append(line(position, alt, ref))
    return made


def write_vcf(path: Path, made: list[str], header: str = HEADER) -> Path:
    path.write_text(header + "".join(made))
    return path


class MadeUp:
    """Scores that depend on the variant alone; `dies` is called before the batches from number `after` on."""

    def __init__(self, dies=None, after: int = 0) -> None:
        self.dies, self.after, self.batches, self.variants = dies, after, 0, 0

    def score(self, variants):
        if self.dies is not None and self.batches >= self.after:
            self.dies()
        self.batches, self.variants = self.batches + 1, self.variants + len(variants)
        return [self.one(variant) for variant in variants]

    @staticmethod
    def one(variant):
        end = variant.start + len(variant.ref)
        if bases()[variant.contig][variant.start : end].replace("N", variant.ref[0]) != variant.ref:
            return Score(math.nan, math.nan, math.nan, ("REF_MISMATCH",))
        number = zlib.crc32(repr(tuple(variant)).encode())
        is_indel = len(variant.ref) != len(variant.alt)
        percentile = math.nan if is_indel else number % 1000 / 10
        return Score(number % 9973 / 997 - 5, number % 99 / 50 - 1, percentile, ("INDEL",) if is_indel else ())


def configured(folder: Path, **fields) -> ScoreConfig:
    """Of in.vcf and ref.fa in a folder, whose result goes to out.vcf there."""
    given = {"data": str(folder / "in.vcf"), "fasta": folder / "ref.fa", "out": str(folder / "out.vcf"), "window": 64}
    return ScoreConfig(**(given | fields))


def run(config: ScoreConfig, scorer=None, job=JOB, **how) -> Scored:
    genome = Genome(config.fasta)
    with scorable(config, genome) as source:
        return score_vcf(config, source, scorer or MadeUp(), genome, ABOUT, job, **how)


if __name__ == "__main__":  # folder, name of the result, and after which batch, or write of it, the process is killed
    from hyenadna.data.bgzf import BlockWriter
    from hyenadna.inference import score_vcf as module

    module.BATCH_RECORDS = 20
    folder, out, batch, written = sys.argv[1:]

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    class Dying(BlockWriter):
        def write(self, text: bytes) -> None:
            super().write(text)
            Dying.left -= 1
            if not Dying.left:
                die()

    Dying.left = int(written)
    module.BlockWriter = Dying
    run(configured(Path(folder), out=out), MadeUp(die, int(batch)))
