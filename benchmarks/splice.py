"""Fine-tuning on the splice junctions against one-hot logistic regression and a random forest of scikit-learn.

Both as scikit-learn has them by default (the forest with 500 trees), trained on the training rows of the same splits;
the report of the run itself has the logistic regression whose strength the validation rows chose. The difference is
paired by row and resampled by distinct sequence. Writes a JSON file.

    hyena finetune --pool positions --splits 10 --epochs 10 --patience 5 --lr 3e-3 --out splice-full
    python benchmarks/splice.py splice-full
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import commit
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from hyenadna import machine
from hyenadna.data.labelled import LabelledSequences
from hyenadna.files import write_json
from hyenadna.finetune.plan import Plan
from hyenadna.finetune.run_folder import RunFolder
from hyenadna.inference.bootstrap import Bootstrap, Estimate

TREES = 500
RESULTS = Path(__file__).parent / "results" / "splice.json"


def one_hot(rows: LabelledSequences) -> np.ndarray:
    return np.array([[letter == base for letter in sequence for base in "ACGT"] for sequence in rows.sequences], float)


def measure(folder: RunFolder) -> dict[str, Any]:
    """Accuracy of each model on all test rows, and of the run minus the other two."""
    config = folder.stored()
    assert config is not None, f"{folder.path} holds no run"
    plan = Plan.of(config)
    right: dict[str, list[np.ndarray]] = {"run": [], "one-hot logistic regression": [], "random forest": []}
    sequences: list[str] = []
    for split, run in enumerate(folder.runs(len(plan.splits), 1)):
        train, _, test = plan.rows(split)
        y, wanted = np.array(train.labels), np.array(test.labels)
        right["run"].append(np.array(plan.task.labels)[run.predictions().argmax(1)] == wanted)
        for name, model in (
            ("one-hot logistic regression", LogisticRegression(max_iter=1000)),
            ("random forest", RandomForestClassifier(TREES, random_state=split, n_jobs=1)),
        ):
            right[name].append(model.fit(one_hot(train), y).predict(one_hot(test)) == wanted)
        sequences += test.sequences
    of_row = np.unique(sequences, return_inverse=True)[1]
    columns = [np.bincount(of_row), *(np.bincount(of_row, np.concatenate(parts)) for parts in right.values())]
    bootstrap = Bootstrap.of(np.stack(columns, axis=1).astype(float))
    report = json.loads((folder.path / "report.json").read_text(encoding="utf-8"))
    return {
        "command_of_run": report["settings"]["command"],
        "rows": len(sequences),
        "sequences": len(bootstrap.blocks),
        "accuracy_by_split": {name: [float(part.mean()) for part in parts] for name, parts in right.items()},
        "accuracy": {name: str(difference(bootstrap, k, None)) for k, name in enumerate(right, 1)},
        "run_minus": {name: str(difference(bootstrap, 1, k)) for k, name in enumerate(right, 1) if k > 1},
    }


def difference(bootstrap: Bootstrap, of: int, other: int | None) -> Estimate:
    """Share of rows that are right in one column of the sums, minus that in another."""
    return bootstrap.estimate(lambda sums: (sums[:, of] - (0 if other is None else sums[:, other])) / sums[:, 0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of hyena finetune")
    parser.add_argument("--out", type=Path, default=RESULTS)
    flags = parser.parse_args()
    found = {"benchmark": "splice", "commit": commit(), "machine": machine.describe(), **measure(RunFolder(flags.run))}
    write_json(flags.out, found)
    print(json.dumps({name: found[name] for name in ("accuracy", "run_minus")}, indent=2))


if __name__ == "__main__":
    main()
