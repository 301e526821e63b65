"""GUE, the benchmark of DNABERT-2 (Zhou et al. 2024), by name: a folder a task with train.csv, dev.csv, test.csv."""

from pathlib import Path

from hyenadna.errors import InputError, UsageError

PREFIX = "gue/"


def locate(task: str, data_dir: Path | None) -> Path:
    """The folder of a task, such as prom/prom_core_tata, in `data_dir` or in a folder GUE there.

    Raises
    ------
    UsageError              no `data_dir`: there is no package that fetches GUE
    InputError              it does not hold the task; the ones that it holds are named
    """
    if data_dir is None:
        raise UsageError(
            f"{PREFIX}{task} is read from disk: fetch GUE from the DNABERT-2 repository, unpack it, "
            "and name its folder by --data-dir"
        )
    roots = [data_dir / between for between in ("", "GUE", "gue")]
    for root in roots:
        if task and tasks_in(root / task) == [""]:
            return root / task
    there = sorted({found for root in roots for found in tasks_in(root) if found})
    raise InputError(
        f"--data-dir {data_dir} does not hold the task {task!r}; "
        + (
            f"it holds {', '.join(there)}"
            if there
            else "wanted is a folder GROUP/TASK with train.csv, dev.csv, test.csv"
        )
    )


def tasks_in(root: Path) -> list[str]:
    """Names of the tasks below `root`, at most two folders deep, sorted; '' is `root` itself."""
    depths = ("", "*/", "*/*/")
    files = (file for depth in depths for ending in (".csv", ".csv.gz") for file in root.glob(f"{depth}train{ending}"))
    return sorted({"" if file.parent == root else file.parent.relative_to(root).as_posix() for file in files})
