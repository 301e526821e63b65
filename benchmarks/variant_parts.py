"""The parts of the variant benchmark that score variants: each returns its numbers for the report.

Signs: the log-likelihood ratio (LLR) is that of the alternative over the reference allele, so a harmful variant is
expected to have a low one, and a common one a higher one than a rare one. All AUROC are given so that above 0.5 means
that the expectation holds. Differences are of AUROC on the same resamples.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from variant_contenders import Contender, Scored, Scores
from variant_matching import Matched, Matcher, slack
from variant_sets import (
    BRCA1_GENOME,
    CHR22,
    COMMON,
    MUTATIONS,
    RARE,
    Floats,
    Frequencies,
    Sequences,
    brca1,
    mutations,
    thousand_genomes,
)
from variant_statistics import Statistic, auroc, auroc_within, estimates, mean, mean_of, spearman

from hyenadna.data.intervals import Interval
from hyenadna.inference.bootstrap import Estimate

MARKOV, HUMAN, RANDOM = "Markov", "Markov, human chr20", "random weights"
"""The Markov model of `hyena score`, which is counted on the genome that is given; one that is counted on what the
starter model was trained on; and the mean of the contenders that were not trained."""
BLOCK = 10_000
"""Bases of the blocks in which variants of a population are drawn: near ones are inherited together."""
RANDOM_EACH = 10
"""Random insertions or deletions beside each real one."""


class Work(NamedTuple):
    """What every part is given."""

    data: Path
    contenders: Sequence[Contender]
    scores: Scores
    limit: int | None
    """Most rows of a part; evenly spread."""
    percentiles: bool

    def some(self, n: int) -> NDArray[np.int64]:
        """The numbers of the rows that are used."""
        return np.arange(n) if self.limit is None else np.unique(np.linspace(0, n - 1, min(n, self.limit)).astype(int))

    @property
    def trained(self) -> list[str]:
        """The names of those that were trained."""
        return [contender.name for contender in self.contenders if not contender.random]

    def differences(self) -> list[tuple[str, str]]:
        """Each trained model against the Markov models, and random weights if there are any."""
        randoms = [RANDOM] if len(self.trained) < len(self.contenders) else []
        return [(name, other) for name in self.trained for other in (MARKOV, HUMAN, *randoms)]

    def with_random(self, statistics: Mapping[str, Statistic]) -> dict[str, Statistic]:
        """The statistics by name, and the mean of those of the contenders with random weights."""
        random = [statistics[contender.name] for contender in self.contenders if contender.random]
        return {**statistics, RANDOM: mean_of(random)} if random else dict(statistics)


def plain(found: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    """For JSON."""
    return {name: {"value": one.value, "low": one.low, "high": one.high} for name, one in found.items()}


def of_brca1(work: Work) -> dict[str, Any]:
    """LOF against FUNC + INT and against FUNC by stratum, and the rank correlation with the function score."""
    genome = Sequences(work.data / BRCA1_GENOME)
    table = brca1(work.data, genome)
    rows = work.some(len(table.variants))
    variants = [table.variants[row] for row in rows]
    harm: dict[str, Floats] = {}
    flags: Counter[str] = Counter()
    for contender in work.contenders:
        strands = [work.scores.of_variants(contender, genome, variants, strand) for strand in ("forward", "reverse")]
        forward, reverse = (-scored.llr for scored in strands)
        harm[contender.name] = (forward + reverse) / 2
        if not contender.random:
            harm[f"{contender.name}, + strand"], harm[f"{contender.name}, - strand"] = forward, reverse
            harm[MARKOV] = -sum(scored.markov for scored in strands) / 2
            flags = Counter(
                flag for scored in strands for cell in scored.flags.tolist() for flag in cell.split(",") if flag
            )
    harm[HUMAN] = -work.scores.by_human_markov(work.data, genome, variants)
    harm |= {"consequence class": table.severity[rows], "phyloP": table.phylop[rows], "CADD": table.cadd[rows]}
    outcome, positions, function = table.outcome[rows], table.positions[rows], table.function_score[rows]
    cases = []
    for stratum, of_all in table.strata().items():
        inside = of_all[rows] & np.isfinite(np.stack(list(harm.values()))).all(axis=0)
        for contrast, chosen in (("LOF against FUNC + INT", inside), ("LOF against FUNC", inside & (outcome != "INT"))):
            lof = outcome[chosen] == "LOF"
            areas = work.with_random({name: auroc(lof, values[chosen]) for name, values in harm.items()})
            found = estimates(areas, positions[chosen], work.differences())
            cases.append(_case(stratum, contrast, "AUROC", int(lof.sum()), int((~lof).sum()), found)
                         | {"positions": len(set(positions[chosen].tolist()))})  # fmt: skip
        ranks = work.with_random({name: spearman(function[inside], -values[inside]) for name, values in harm.items()})
        found = estimates(ranks, positions[inside], work.differences())
        cases.append(_case(stratum, "function score", "Spearman", int(inside.sum()), None, found))
    return {"variants": len(rows), "flags": dict(flags), "drawn_together": "the variants of a position", "cases": cases,
            "scores": "-LLR; consequence class by rank of severity; phyloP and CADD as they are"}  # fmt: skip


def of_thousand_genomes(work: Work) -> dict[str, Any]:
    """Common against rare alleles within each class of mutation, by LLR, Markov and percentile.

    The alternative allele is the common one of some; so the same again where it is the rarer one, and with the
    derived allele in its place where the file knows the ancestral one. Then, whether the ancestral allele is the
    likelier one: the alternative or the reference, whatever their frequencies.
    """
    genome = Sequences(work.data / CHR22)
    snvs = thousand_genomes(work.data, genome)[0]
    rows = work.some(len(snvs.variants))
    table = Frequencies([snvs.variants[row] for row in rows], snvs.frequency[rows], snvs.ancestral[rows])
    llr: dict[str, Floats] = {}
    percentile: dict[str, Floats] = {}
    has_n = np.zeros(len(rows), dtype=bool)
    for contender in work.contenders:
        wanted = work.percentiles and not contender.random
        scored = work.scores.of_variants(contender, genome, table.variants, percentiles=wanted)
        llr[contender.name] = scored.llr
        if not contender.random:
            llr[MARKOV], has_n = scored.markov, scored.flagged("HAS_N")
        if wanted:
            percentile[f"{contender.name}, percentile"] = scored.percentile
    llr[HUMAN] = work.scores.by_human_markov(work.data, genome, table.variants)
    ref_is_derived, known = table.ancestral == "alt", table.ancestral != "unknown"
    no_swap = np.zeros(len(rows), dtype=bool)
    every = llr | percentile
    blocks = np.array([variant.start // BLOCK for variant in table.variants])
    cases = []
    for subset, inside, swapped, scores in (
        ("as in the file", np.ones(len(rows), dtype=bool), no_swap, every),
        ("ALT is the rarer allele", table.frequency < 0.5, no_swap, every),
        ("derived against ancestral", known, ref_is_derived, llr),
        ("no N in the window", ~has_n, no_swap, every),
    ):
        turned = {name: np.where(swapped, -values, values) for name, values in scores.items()}
        frequency = np.where(swapped, 1 - table.frequency, table.frequency)
        classes = np.array(mutations(table.variants, genome, swapped))
        common = frequency >= COMMON
        used = inside & (common | (frequency <= RARE))
        cases += _by_class(work, subset, "common against rare", used, common, classes, turned, blocks)
    classes = np.array(mutations(table.variants, genome))
    cases += _by_class(work, "any frequency", "ALT ancestral against REF ancestral", known, ref_is_derived, classes,
                       every, blocks)  # fmt: skip
    return {"variants": len(rows), "common": f"AF >= {COMMON:g}", "rare": f"AF <= {RARE:g}", "cases": cases,
            "ancestral_alleles": dict(Counter(table.ancestral.tolist())), "with_n_in_window": int(has_n.sum()),
            "drawn_together": f"the variants of {BLOCK:,} bases"}  # fmt: skip


def _by_class(
    work: Work,
    subset: str,
    contrast: str,
    rows: NDArray[np.bool_],
    positive: NDArray[np.bool_],
    classes: NDArray[np.str_],
    scores: Mapping[str, Floats],
    blocks: NDArray[np.int64],
) -> list[dict[str, Any]]:
    """The AUROC among the `rows` that have all scores: within classes of mutation, in each, and of all together."""
    known = rows & np.isfinite(np.stack(list(scores.values()))).all(axis=0)
    cases = []
    for name in ("within classes", *MUTATIONS, "classes mixed"):
        used = known & (classes == name) if name in MUTATIONS else known
        statistics = {
            score: auroc_within(positive[used], values[used], classes[used])
            if name == "within classes"
            else auroc(positive[used], values[used])
            for score, values in scores.items()
        }
        found = estimates(work.with_random(statistics), blocks[used], work.differences())
        cases.append(_case(f"{subset}: {name}", contrast, "AUROC", int(positive[used].sum()),
                           int((~positive[used]).sum()), found))  # fmt: skip
    return cases


def of_indels(work: Work) -> dict[str, Any]:
    """Real insertions and deletions against random ones of the same kind, length and repeat."""
    genome = Sequences(work.data / CHR22)
    table = thousand_genomes(work.data, genome)[1]
    # on chr22 three are deletions of hundreds of bases, which no window holds
    real = [variant for variant in table.variants if len(variant.ref + variant.alt) <= work.scores.window // 4]
    starts = [variant.start for variant in real]
    matched = Matcher(genome, Interval(genome.only, min(starts), max(starts) + 1), real).matched(RANDOM_EACH)
    chosen = work.some(len(real))
    beside = np.flatnonzero(np.isin(matched.of, chosen))
    variants = [real[row] for row in chosen] + [matched.variants[row] for row in beside]
    llr: dict[str, Floats] = {}
    for contender in work.contenders:
        scored: Scored = work.scores.of_variants(contender, genome, variants)
        llr[contender.name] = scored.llr
        if not contender.random:
            llr[MARKOV] = scored.markov
    llr[HUMAN] = work.scores.by_human_markov(work.data, genome, variants)
    of = np.concatenate((chosen, matched.of[beside]))
    is_real = np.arange(len(variants)) < len(chosen)
    own = np.array([slack(real[row], genome) for row in chosen])
    slacks = np.concatenate((own, matched.slack[beside]))
    strata = {
        "all": np.ones(len(variants), dtype=bool),
        "deletions": np.array([not variant.alt for variant in variants]),
        "insertions": np.array([not variant.ref for variant in variants]),
    }
    repeat = dict(zip(chosen.tolist(), own.tolist(), strict=True))
    strata["in a repeat"] = np.array([repeat[number] > 0 for number in of.tolist()])
    strata["in no repeat"] = ~strata["in a repeat"]
    known = np.isfinite(np.stack(list(llr.values()))).all(axis=0)
    cases = []
    for stratum, inside in strata.items():
        cases += _real_against_random(work, stratum, inside & known, is_real, of, llr | {"slack": slacks.astype(float)})
    return {"real": len(chosen), "random": len(beside), "random_each": RANDOM_EACH, "cases": cases,
            "matching": _matching(own, chosen, matched, beside), "drawn_together": "a real one with its random ones",
            "score": "LLR; slack, which both should have alike, as a control"}  # fmt: skip


def _real_against_random(
    work: Work,
    stratum: str,
    inside: NDArray[np.bool_],
    is_real: NDArray[np.bool_],
    of: NDArray[np.int64],
    scores: Mapping[str, Floats],
) -> list[dict[str, Any]]:
    positive, groups = is_real[inside], of[inside]
    cases = []
    for contrast, make in (
        ("real against its random ones", lambda values: auroc_within(positive, values, groups)),
        ("real against all random ones", lambda values: auroc(positive, values)),
    ):
        areas = {name: make(values[inside]) for name, values in scores.items()}
        found = estimates(work.with_random(areas), groups, work.differences())
        cases.append(_case(stratum, contrast, "AUROC", int(positive.sum()), int((~positive).sum()), found))
    # of each real one, how much more than the mean of its random ones; one row a real one
    numbers = [n for n in np.unique(groups) if positive[groups == n].any() and not positive[groups == n].all()]
    gaps = {
        name: np.array([values[inside & is_real & (of == n)].mean() - values[inside & ~is_real & (of == n)].mean()
                        for n in numbers])
        for name, values in scores.items()
    }  # fmt: skip
    means = work.with_random({name: mean(values) for name, values in gaps.items()})
    found = estimates(means, numbers, work.differences())
    cases.append(_case(stratum, "real less the mean of its random ones", "nats", len(numbers), None, found))
    return cases


def _matching(
    own: NDArray[np.int64], chosen: NDArray[np.int64], matched: Matched, beside: NDArray[np.int64]
) -> dict[str, Any]:
    """How well the random ones match."""
    wanted = dict(zip(chosen.tolist(), own.tolist(), strict=True))
    apart = [abs(wanted[int(matched.of[row])] - int(matched.slack[row])) for row in beside]
    return {"of_the_same_slack": float(np.mean(np.array(apart) == 0)), "largest_difference_of_slack": max(apart),
            "real_in_a_repeat": int((own > 0).sum()), "largest_slack": int(own.max())}  # fmt: skip


def _case(
    stratum: str, contrast: str, metric: str, positive: int, negative: int | None, found: Mapping[str, Estimate]
) -> dict[str, Any]:
    rows = {"rows": positive} if negative is None else {"positive": positive, "negative": negative}
    return {"stratum": stratum, "contrast": contrast, "metric": metric, **rows, "found": plain(found)}
