"""GenomicBenchmarks (Gresova et al. 2023) by name: found in a folder, or fetched through their own package."""

import contextlib
import shutil
import sys
import zipfile
from pathlib import Path
from textwrap import shorten

from hyenadna.data.layouts import exists, parts_in
from hyenadna.errors import DownloadError, InputError, MissingExtra
from hyenadna.files import cache_folder, lock, replace_folder
from hyenadna.progress import notice

PREFIX = "genomic-benchmarks/"
NAMES = (
    "demo_coding_vs_intergenomic_seqs", "demo_human_or_worm", "drosophila_enhancers_stark",
    "dummy_mouse_enhancers_ensembl", "human_enhancers_cohn", "human_enhancers_ensembl", "human_ensembl_regulatory",
    "human_nontata_promoters", "human_ocr_ensembl",
)  # fmt: skip
"""The sets that the package fetches."""
_VERSION = 0


def locate(name: str, data_dir: Path | None) -> Path:
    """Where the data set `name` lies, as `hyenadna.data.layouts.parts_in` takes it.

    Parameters
    ----------
    name : str
        One of `NAMES`, or another set that lies in `data_dir`.
    data_dir : Path or None
        A folder that holds NAME/{train,test}/CLASS/*.txt, or NAME.train.csv and NAME.test.csv, itself or in a folder
        genomic_benchmarks; nothing is fetched then. None: the cache, which is filled from the network.

    Raises
    ------
    InputError              the set is not in `data_dir`, or is unknown
    MissingExtra            it must be fetched, and the package genomic-benchmarks is not installed
    DownloadError           the download failed
    WriteError              no room in the cache
    """
    if data_dir is not None:
        return _in_folder(name, data_dir)
    if name not in NAMES:
        raise InputError(f"{PREFIX}{name} is unknown; known are {', '.join(NAMES)} (others from --data-dir)")
    folder = cache_folder() / "genomic-benchmarks"
    with lock(folder / f".{name}.lock"):
        if not (folder / name).exists():
            _fetch(name, folder)
    return folder / name


def _in_folder(name: str, data_dir: Path) -> Path:
    tried = [data_dir / between / name for between in ("", "genomic_benchmarks", "genomic-benchmarks")]
    if found := next(filter(exists, tried), None):
        return found
    raise InputError(
        f"--data-dir {data_dir} does not hold {name}: wanted is {name}/train and {name}/test with a folder for each "
        f"class, or {name}.train.csv and {name}.test.csv, there or in a folder genomic_benchmarks"
    )


def _fetch(name: str, folder: Path) -> None:
    """Put the set into `folder`, whole or not at all."""
    try:
        from genomic_benchmarks.loc2seq import download_dataset
    except ImportError as error:
        raise MissingExtra(
            f"{PREFIX}{name} must be fetched. Install the 'genomic-benchmarks' extra: "
            "pip install hyenadna[genomic-benchmarks]; or give the folder that holds it by --data-dir"
        ) from error
    import yaml

    notice(f"fetching {PREFIX}{name} into {folder}")
    temporary = folder / f".{name}.part"
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
    try:
        # the package reports on stdout, which belongs to results
        with contextlib.redirect_stdout(sys.stderr):
            fetched = download_dataset(name, version=_VERSION, dest_path=temporary, cache_path=temporary / "references")
        parts_in(Path(fetched))
        replace_folder(Path(fetched), folder / name)
    except (OSError, ValueError, KeyError, InputError, zipfile.BadZipFile, yaml.YAMLError) as error:
        raise DownloadError(
            f"{PREFIX}{name} could not be fetched: {shorten(str(error), 200) or type(error).__name__}; "
            "try again, or fetch it on another machine and give its folder by --data-dir"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
