"""Whether a diversity head says more than the entropy of the next base does, on contexts that it has not seen."""

import dataclasses

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from hyenadna.inference.bootstrap import RESAMPLES, Estimate

Values = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class DiversityEvaluation:
    """What was measured on held-out contexts, with 95 % bootstrap intervals over them."""

    contexts: int
    spearman: Estimate
    """Rank correlation of the head's score with the diversity of what was sampled."""
    spearman_entropy: Estimate
    """The same of the next base's entropy: the baseline that costs nothing."""
    spearman_difference: Estimate
    """Head minus entropy."""
    r2_entropy: Estimate
    """Share of the variance that a line in the entropy explains."""
    r2_increment: Estimate
    """How much more a plane in entropy and score explains; a score of noise gives about 1 / contexts."""

    @property
    def beats_entropy(self) -> bool:
        """Whether the interval of the difference in rank correlation lies above 0."""
        return self.spearman_difference.low > 0

    def text(self) -> str:
        """For people to read."""
        verdict = (
            "the head orders contexts better than the entropy of the next base does"
            if self.beats_entropy
            else "the head orders contexts no better than the entropy of the next base: --dynamic entropy costs nothing"
        )
        lines = [
            f"on {self.contexts:,} held-out contexts, with 95 % intervals",
            f"rank correlation with the diversity sampled: head     {self.spearman}",
            f"                                             entropy  {self.spearman_entropy}",
            f"                                             head - entropy  {self.spearman_difference}",
            f"variance explained by entropy                         {self.r2_entropy}",
            f"variance explained by the head on top of it           {self.r2_increment}",
            verdict,
        ]
        return "\n".join(lines)


def evaluate(score: Values, entropy: Values, diversity: Values, seed: int = 0) -> DiversityEvaluation:
    """Compare a score and the entropy as predictors of diversity; all (n,), of the same contexts."""
    drawn = np.random.default_rng(seed).integers(len(score), size=(RESAMPLES, len(score)))
    rows = np.concatenate((np.arange(len(score))[None], drawn))
    s, h, y = (values[rows] for values in (score, entropy, diversity))
    ranks = [np.asarray(rankdata(values, axis=1), dtype=np.float64) for values in (s, h, y)]
    head, alone = _correlation(ranks[0], ranks[2]), _correlation(ranks[1], ranks[2])
    yh, ys, hs = _correlation(y, h), _correlation(y, s), _correlation(h, s)
    with np.errstate(invalid="ignore", divide="ignore"):
        both = (yh**2 + ys**2 - 2 * yh * ys * hs) / (1 - hs**2)
    return DiversityEvaluation(
        contexts=len(score),
        spearman=_estimate(head),
        spearman_entropy=_estimate(alone),
        spearman_difference=_estimate(head - alone),
        r2_entropy=_estimate(yh**2),
        r2_increment=_estimate(both - yh**2),
    )


def _correlation(a: Values, b: Values) -> Values:
    """Pearson's, row by row."""
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1)), dtype=np.float64)


def _estimate(values: Values) -> Estimate:
    """The first is of the data, the others of resamples."""
    low, high = np.nanquantile(values[1:], (0.025, 0.975))
    return Estimate(float(values[0]), float(low), float(high))
