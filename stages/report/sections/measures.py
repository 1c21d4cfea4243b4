"""Measures that declare, in plain data, what the report needs: a section, entries of summary.json, cells of the tables.

Such a measure is a phase that declares

    PHASE = {
        "title":    heading of its section
        "columns":  see stages.report.columns
        "figures":  left out, or a list of {"kind": "histogram", "file": ..., "column": ..., "label": ...}
    }

and writes for each run it measures, into artifacts/results/<phase>/<run>/,

    scores.json          {weights: {column: number or null}}
    the files of figures   Parquet with the column weights and the figure's column, one row per image

No code here knows the name of any phase.
"""

import numpy as np
import pandas as pd

from stages import phases
from stages.report import columns, figures, html
from stages.report.entries import mean_and_sd, weights_of
from stages.run import files


def folder_of(phase, place):
    """Where a phase keeps what it measured of a run, or of a round of it."""
    return files.ARTIFACTS / "results" / phase / place


class Measure:
    """The section of one phase; it has what a file of this folder has."""

    def __init__(self, phase):
        self.phase, self.declared = phase, phases.declared(phase)
        self.ANCHOR, self.TITLE = phase, self.declared["title"]

    def summary(self, report, arm, weights):
        """{phase: mean of each column over the arm's seeds}; {} for an arm or kind of weights that it does not measure."""
        runs = self._places(report, arm)
        if not any((folder_of(self.phase, run) / "scores.json").exists() for run in runs):
            return {}
        found = {run: read_scores(self.phase, folder_of(self.phase, run), weights) for run in runs}
        lacking = [run for run, numbers in found.items() if not numbers]
        if lacking and len(lacking) < len(runs):
            raise ValueError(
                f"{folder_of(self.phase, lacking[0]) / 'scores.json'} has no {weights} weights, as other seeds have: run its "
                f"{self.phase} phase again"
            )
        return {} if lacking else {self.phase: means(list(found.values()))}

    def _places(self, report, arm):
        """Where its results of an arm lie, one per seed: those of the last round that is sampled, or of the run."""
        return report.places(arm) if self.declared["per"] == "sampled" else report.runs(arm)

    def section(self, report):
        rows = [
            {"arm": arm, "weights": weights, **columns.cells(self.phase, entry)}
            for arm in report.arms
            for weights in weights_of(report.metrics[arm])
            if (entry := report.metrics[arm][weights].get(self.phase))
        ]
        if not rows:
            return ""
        parts = [html.table(rows), html.legend(columns.meanings(self.phase))]
        if drawings := self.declared.get("figures", []):
            parts.append(html.panels(self._figure(report, **drawing) for drawing in drawings))
        return html.section(self.ANCHOR, self.TITLE, "\n".join(parts))

    def _figure(self, report, kind, file, column, label):
        """A figure as declared: one outline per arm, for the headline's weights and the first seed."""
        assert kind == "histogram", f"PHASE of {self.phase} has a figure of kind {kind}, expected histogram"
        weights, values = report.headline.weights, {}
        for arm in report.arms:
            path = folder_of(self.phase, self._places(report, arm)[0]) / file
            if path.exists():
                table = files.load_table(path, ["weights", column])
                of_arm = table[table.weights == weights][column].to_numpy(float)
                values[arm] = of_arm[np.isfinite(of_arm)]
        caption = f"Share of an arm's images by {label}, {weights} weights, seed {report.first_seed}."
        return html.figure(figures.histogram(values, report.arms, label), caption)


def read_scores(phase, folder, weights):
    """The columns that a phase declares, of one run and kind of weights.

    Returns   dict column -> number, or NaN where it is not known; {} where the phase does not measure these weights
    Raises    ValueError: the file is missing, or lacks a column
    """
    of_weights = files.load_json(folder / "scores.json").get(weights, {})
    lacking = [name for name in columns.of(phase) if of_weights and name not in of_weights]
    if lacking:
        raise ValueError(
            f"{folder / 'scores.json'} has no {', '.join(lacking)} for {weights} weights: run its {phase} phase again"
        )
    numbers = {name: of_weights[name] for name in columns.of(phase) if of_weights}
    return {name: np.nan if value is None else float(value) for name, value in numbers.items()}


def means(scores):
    """Means over seeds, as entries.mean_and_sd gives them.

    scores   list of dicts of numbers, one per seed, all with the same columns
    """
    return mean_and_sd(pd.DataFrame(scores), list(scores[0]))
