import csv

import numpy as np
import pytest

from hyenadna import files, plots
from hyenadna.errors import WriteError
from hyenadna.pretrain.run_folder import METRICS


def run_metrics(steps):
    metrics = {name: np.linspace(1.0, 2.0, steps) for name in METRICS}
    metrics["valid_bits_per_base"] = np.where(np.arange(steps) % 3 == 2, 1.95, np.nan)
    metrics["tokens"] = np.arange(1.0, steps + 1)
    metrics["length"] = np.where(np.arange(steps) < steps // 2, 64.0, 1024.0)
    return metrics


@pytest.mark.parametrize("steps", [1, 2, 500])
def test_training_curves(tmp_path, steps):
    metrics = run_metrics(steps)
    drawn, panels = plots.stacked_figure((3, 1.5, 1))
    plots.training_curves(panels, metrics)
    raw, smooth, valid = panels[0].lines
    assert np.array_equal(raw.get_ydata(), metrics["bits_per_base"])
    window = max(1, steps // 100)
    means = [metrics["bits_per_base"][i : i + window].mean() for i in range(steps - window + 1)]
    assert np.allclose(smooth.get_ydata(), means) and smooth.get_xdata()[-1] == steps
    assert len(valid.get_ydata()) == steps // 3 and not np.isnan(valid.get_ydata()).any()
    assert [panel.get_ylabel() for panel in panels] == ["bits per base", "gradient norm", "window (bp)"]
    plots.write_png(drawn, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_numbers_lie_beside_the_figure(tmp_path):
    drawn, ax = plots.figure()
    plots.length_axis(ax, 40_000)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "8", "64", "1k", "32k"]
    plots.save(drawn, tmp_path / "a.png", ["x", "y"], [[1, 2.5], [2, None], [3, float("nan")]])
    with (tmp_path / "a.tsv").open() as file:
        assert list(csv.reader(file, delimiter="\t")) == [["x", "y"], ["1", "2.5"], ["2", ""], ["3", ""]]


def test_time_by_length(tmp_path):
    drawn, ax = plots.figure()
    seconds = {"ours": np.array([1e-3, 1e-1]), "theirs": np.array([np.nan, 1.0])}
    plots.time_by_length(ax, [1_024, 1_000_002], seconds, np.array([1e-4, 1e-2]))
    ours, theirs, floor = ax.lines
    assert list(ours.get_ydata()) == [1e-3, 1e-1] and list(theirs.get_xdata()) == [1_000_002]
    assert list(floor.get_ydata()) == [1e-4, 1e-2] and floor.get_label() == "copying the bytes that must move"
    assert ax.get_xscale() == ax.get_yscale() == "log"
    plots.write_png(drawn, tmp_path / "times.png")


def test_no_space_for_a_figure(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(WriteError, match=r"a\.png could not be written: No space left"):
        plots.write_png(plots.figure()[0], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
