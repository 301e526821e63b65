"""What came out of a many-shot probe: accuracy by number of examples and arm, differences, and what likelihood says."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyenadna.files import write_json
from hyenadna.inference import many_shot_scores as scores
from hyenadna.inference.bootstrap import Estimate
from hyenadna.inference.many_shot_arms import right_answers
from hyenadna.inference.many_shot_baselines import NAMES, Baselines
from hyenadna.inference.many_shot_cells import NONE, Cell, Journal
from hyenadna.inference.many_shot_task import ProbeTask
from hyenadna.plots import write_tsv

_COMPARED = ("shuffled", "flipped", "unlabelled", "reverse-complement", "reinforced")
_LEFT, _CELL = 20, 18
_SIGNIFICANT = 0.05


class Report:
    """A probe's cells, summed up.

    Parameters
    ----------
    task : ProbeTask
    shots : dict of arm to its numbers of examples a class
    seeds : sequence of int
        Those that are reported.
    journal : Journal
        With all cells that could be had.
    """

    def __init__(
        self, task: ProbeTask, shots: Mapping[str, Sequence[int]], seeds: Sequence[int], journal: Journal
    ) -> None:
        self.task, self.shots, self.seeds, self.journal = task, shots, seeds, journal
        arms = [*shots, *(["matched"] if "reinforced" in shots else [])]
        wanted = {*arms, NONE}
        self.cells = [
            cell for key, cell in journal.cells.items() if key.arm in wanted and (key.seed in seeds or key.arm == NONE)
        ]
        self.raw = {arm: self._curve(arm, calibrate=False) for arm in arms}
        self.calibrated = {arm: self._curve(arm, calibrate=True) for arm in arms}
        self.baselines = self._baselines()

    def write(self, folder: Path, about: dict[str, Any]) -> dict[str, Any]:
        """Write report.json, cells.tsv and the plot; returns what report.json holds, and the text."""
        from hyenadna.inference.many_shot_plots import write_plot

        rows = [self._of_cell(cell) for cell in self.cells]
        found = {
            **about,
            "classes": list(self.task.classes),
            "queries": len(self.task.queries),
            "answers": np.bincount(self.task.answers, minlength=len(self.task.classes)).tolist(),
            "chance": 1 / len(self.task.classes),
            "seeds": list(self.seeds),
            "notes": list(self.task.notes),
            "tokens_read": sum(cell.answers.tokens_read for cell in self.cells),
            "tokens_of_whole_prompts": self._whole_tokens(),
            "accuracy": self._accuracies(),
            "gains": self._gains(),
            "differences": self._differences(),
            "likelihood_and_accuracy": self._correlations(rows),
            "reinforced_ended": {str(seed): end._asdict() for seed, end in self.journal.ended.items()},
            "cells": rows,
        }
        write_json(folder / "report.json", found)
        columns = [name for name in rows[0] if name != "about"] if rows else []
        write_tsv(folder / "cells.tsv", columns, [[row[name] for name in columns] for row in rows])
        write_plot(folder / "accuracy.png", self.calibrated, self.baselines, 1 / len(self.task.classes))
        return found | {"text": self.text(found) + f"\n{folder}: report.json, cells.tsv, accuracy.png"}

    def _curve(self, arm: str, *, calibrate: bool) -> scores.Curve:
        by_shots: dict[int, dict[int, NDArray[np.float64]]] = {}
        none = next((cell for cell in self.cells if cell.key.arm == NONE), None)
        # without examples nothing was flipped
        if none is not None and arm != "flipped":
            by_shots[0] = dict.fromkeys(self.seeds, self._correct(none, calibrate))
        for cell in sorted((cell for cell in self.cells if cell.key.arm == arm), key=lambda cell: cell.key[::-1]):
            by_shots.setdefault(cell.key.shots, {})[cell.key.seed] = self._correct(cell, calibrate)
        return scores.Curve(by_shots)

    def _correct(self, cell: Cell, calibrate: bool) -> NDArray[np.float64]:
        said = cell.answers.calibrated if calibrate else cell.answers.raw
        return scores.share_correct(said, self._right(cell.key.arm))

    def _right(self, arm: str) -> NDArray[np.int64]:
        return right_answers(arm, self.task.answers, len(self.task.classes))

    def _baselines(self) -> dict[str, scores.Curve]:
        """The simple models on the examples of the prompts with true labels."""
        shots = [k for k in max(self.shots.values(), key=len) if k]
        if not shots:
            return {}
        models = Baselines(self.task)
        curves: dict[str, scores.Curve] = {name: scores.Curve({k: {} for k in shots}) for name in NAMES}
        for seed in self.seeds:
            blocks = self.task.blocks(shots, seed)
            for number, k in enumerate(shots, 1):
                for name, right in models.correct(np.concatenate(blocks[:number])).items():
                    curves[name].by_shots[k][seed] = right
        return curves

    def _of_cell(self, cell: Cell) -> dict[str, Any]:
        """The scores of one cell, with Wilson intervals; likelihoods in nats."""
        said, right, n = cell.answers, self._right(cell.key.arm), len(self.task.queries)
        row: dict[str, Any] = {**cell.key._asdict(), "queries": n}
        for name, probabilities in (("calibrated", said.calibrated), ("raw", said.raw)):
            correct = float(scores.share_correct(probabilities, right).sum())
            low, high = scores.wilson(correct, n)
            row |= {f"accuracy_{name}": correct / n, f"low_{name}": low, f"high_{name}": high}
            row |= {f"nll_{name}": scores.negative_log_likelihood(probabilities, right)}
            row |= {f"ece_{name}": scores.calibration_error(probabilities, right)}
        row["nll_word"] = float(-said.log_likelihoods[np.arange(n), right].mean())
        row["words_mass"] = float(np.exp(said.log_likelihoods).sum(axis=1).mean())
        row["prior"] = " ".join(f"{share:.4f}" for share in said.prior)
        row |= {"prompt_tokens": said.prompt_tokens, "tokens_read": said.tokens_read}
        rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()}
        return rounded | {"about": cell.about}

    def _accuracies(self) -> list[dict[str, Any]]:
        rows = []
        for arm, curve in (*self.calibrated.items(), *self.baselines.items()):
            for k in sorted(curve.by_shots):
                row = {"arm": arm, "shots": k, "seeds": len(curve.by_shots[k]), "accuracy": _said(curve.accuracy(k))}
                if arm in self.raw:
                    row["accuracy_raw"] = _said(self.raw[arm].accuracy(k))
                rows.append(row)
        return rows

    def _gains(self) -> list[dict[str, Any]]:
        """From the fewest examples to the most, of the seeds that have both."""
        found = []
        for arm, curve in self.calibrated.items():
            shots = sorted(k for k in curve.by_shots if k)
            if len(shots) > 1:
                gain = _difference(curve.by_shots[shots[-1]], curve.by_shots[shots[0]])
                found.append({"arm": arm, "from": shots[0], "to": shots[-1], **gain})
        return found

    def _differences(self) -> list[dict[str, Any]]:
        """Arm minus arm at the same number of examples, of the same seeds and queries."""
        pairs = [("true", arm) for arm in _COMPARED] + [("reinforced", "matched")]
        pairs += [("true", name) for name in NAMES]
        curves, found = self.calibrated | self.baselines, []
        for one, other in pairs:
            if one not in curves or other not in curves:
                continue
            for k in sorted({*curves[one].by_shots} & {*curves[other].by_shots} - {0}):
                difference = _difference(curves[one].by_shots[k], curves[other].by_shots[k])
                found.append({"arm": one, "minus": other, "shots": k, **difference})
        return found

    def _correlations(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Spearman's rank correlation over cells of -ln p(right word) with the accuracy, both as they are."""
        found: dict[str, Any] = {}
        groups = {"all arms": [row for row in rows if row["arm"] != NONE]}
        groups["true labels"] = [row for row in rows if row["arm"] == "true"]
        for name, some in groups.items():
            if not some:
                continue
            columns = [np.array([row[key] for row in some]) for key in ("nll_word", "accuracy_raw")]
            rho, p = scores.rank_correlation(columns[0], columns[1])
            found[name] = {"cells": len(some), "rho": rho, "p": p, "says": _in_words(rho, p)}
        return found

    def _whole_tokens(self) -> int:
        """What reading every prompt anew before each of its queries would take."""
        gap = len(self.task.layout.separator_tokens)
        asked = sum(len(query) + gap for query in [*self.task.query_tokens, *self.task.contentless])
        number = len(self.task.queries) + len(self.task.contentless)
        return sum(cell.answers.prompt_tokens * number + asked for cell in self.cells)

    def text(self, found: Mapping[str, Any]) -> str:
        """For a person."""
        layout, task = self.task.layout, self.task
        words = ", ".join(f"{name} {word}" for name, word in zip(task.classes, layout.label_words, strict=True))
        how = "calibrated" if task.contentless else "not calibrated"
        head = (
            f"{len(task.queries):,} queries, {len(self.seeds)} seeds; words {words}; separator "
            f"{layout.separator or 'none'}; a guess is right in {1 / len(task.classes):.3f}\n"
            f"accuracy, {how}, by examples of each class, with 95 % intervals over seeds and queries"
        )
        return "\n".join([head, *self._table(), *self._sentences(found)])

    def _table(self) -> Iterator[str]:
        curves = self.calibrated | self.baselines
        shots = sorted({k for curve in curves.values() for k in curve.by_shots})
        yield " " * _LEFT + "".join(f"{k:>{_CELL},}" for k in shots)
        for arm, curve in curves.items():
            cells = [_short(curve.accuracy(k)) if k in curve.by_shots else "-" for k in shots]
            yield f"{arm:<{_LEFT}}" + "".join(f"{cell:>{_CELL}}" for cell in cells)

    def _sentences(self, found: Mapping[str, Any]) -> Iterator[str]:
        for one in found["gains"]:
            yield f"{one['arm']}, from k = {one['from']} to {one['to']}: {self._signed(one)}"
        last: dict[tuple[str, str], dict[str, Any]] = {}
        for one in found["differences"]:
            last[one["arm"], one["minus"]] = one
        for (arm, other), one in last.items():
            yield f"{arm} - {other} at k = {one['shots']}: {self._signed(one)}"
        for name, one in found["likelihood_and_accuracy"].items():
            yield f"likelihood of the right word and accuracy, {one['cells']} cells, {name}: {one['says']}"
        read, whole = found["tokens_read"], found["tokens_of_whole_prompts"]
        if read:
            yield f"{read:,} tokens read; prompts read anew for every query would be {whole / read:.1f} times as many"

    def _signed(self, row: Mapping[str, Any]) -> str:
        said, seeds = row["difference"], row["seeds"]
        few = "" if seeds == len(self.seeds) else f", of {seeds} of the seeds"
        return f"{said['value']:+.3f} [{said['low']:+.3f}, {said['high']:+.3f}]{few}"


def _difference(one: Mapping[int, NDArray[np.float64]], other: Mapping[int, NDArray[np.float64]]) -> dict[str, Any]:
    """The mean difference over the seeds that have both, and how many these are."""
    common = [seed for seed in one if seed in other]
    missing = Estimate(float("nan"), float("nan"), float("nan"))
    value = scores.mean_over(np.stack([one[seed] - other[seed] for seed in common])) if common else missing
    return {"seeds": len(common), "difference": _said(value)}


def _said(estimate: Estimate) -> dict[str, float]:
    return {name: round(value, 6) for name, value in dataclasses.asdict(estimate).items()}


def _short(estimate: Estimate) -> str:
    low, high = (f"{end:.2f}".removeprefix("0") for end in (estimate.low, estimate.high))
    return f"{estimate.value:.3f} [{low}, {high}]"


def _in_words(rho: float, p: float) -> str:
    if rho != rho:
        return "too few different cells for a rank correlation"
    number = f"Spearman's rho of -ln p and accuracy {rho:+.2f} (p {p:.2g}, were cells independent)"
    if p >= _SIGNIFICANT:
        return f"{number}: no relation is found, as by Agarwal et al. 2024"
    return f"{number}: likelier words go with {'more' if rho < 0 else 'fewer'} right answers"
