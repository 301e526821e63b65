"""The model card of a fine-tuned model."""

from hyenadna import __version__
from hyenadna.finetune.config import command
from hyenadna.finetune.plan import Plan
from hyenadna.finetune.report import Report
from hyenadna.finetune.run_folder import Run
from hyenadna.finetune.train import State


def run_card(plan: Plan, run: Run, state: State) -> str:
    """README.md of what one run learnt, before it is measured on test rows."""
    assert state.best is not None
    return f"""{_head(plan, run)}
Epoch {state.best_epoch} of {state.epoch}, the one with the best validation: loss {state.best.loss:.4f},
{state.best.name} {state.best.metric:.3f}. These numbers chose the epoch and are therefore too good; the run folder's
report has those of the test rows.
"""


def card(plan: Plan, best: Run, report: Report) -> str:
    """README.md of the folder: what was learnt, from what, and how good it is."""
    return f"""{_head(plan, best)}
## On the test rows

```
{report.text()}
```

## Use

    hyena predict NEW.csv -m THIS_FOLDER

It was measured on rows like those above and says nothing of others: another species, assay or way of choosing the
negatives needs a test of its own. Not for clinical use.

## Licence

What was learnt carries the licence of whoever trained it; the base model and the rows keep theirs.
"""


def _head(plan: Plan, run: Run) -> str:
    config, data = plan.config, plan.splits[run.split]
    train, valid, test = plan.rows(run.split, run.seed)
    start = "with random weights, as a control, " if config.init == "random" else ""
    return f"""# {plan.task.kind} task, {config.method} on {config.model}

{", ".join(plan.task.labels[:20])}. Fine-tuned {start}with hyenadna {__version__} from the base
`{plan.base_sha256}`.

## Data

{data.source}: {len(train):,} rows trained, {len(valid):,} chose the epoch, {len(test):,} tested.
SHA-256 of rows and base: `{plan.origin(run.split, run.seed)}`.

## Training

    {command(config)}
"""
