"""Results in Python: tables with the planted numbers, from any working directory; and the notebook, as a reader runs it."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_stages, tiny_with
from report_tree import ONE_SEED, built

from stages import results
from stages.measures import memorisation

TABLES = ("runs", "rounds", "images", "leaks", "curves")
NOTEBOOK = ROOT / "docs/notebook.ipynb"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The folder of a finished experiment."""
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        run_stages(tiny_with())
    return root


def test_tables_hold_what_was_planted(tmp_path):
    with built(tmp_path, {"plain": [60, 80], "iet": [15, 25]}, (0, 1)), pytest.MonkeyPatch.context() as patch:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        patch.chdir(elsewhere)
        for project in (tmp_path, "..", str(tmp_path)):
            found = results.load(project)
            runs = found.runs
            assert list(zip(runs.arm, runs.seed, runs.weights, runs.excess, strict=True)) == [
                ("plain", 0, "raw", 60), ("plain", 0, "ema", 61), ("plain", 1, "raw", 80), ("plain", 1, "ema", 81),
                ("iet", 0, "raw", 15), ("iet", 0, "ema", 16), ("iet", 1, "raw", 25), ("iet", 1, "ema", 26),
            ]  # fmt: skip
            assert (runs.threshold == 0.5).all() and (runs.protocol == "l2_from_gen").all()
            assert runs.optimizer_steps.tolist() == [3] * 4 + [8] * 4 and runs.moved.tolist() == [0] * 4 + [2] * 4
            assert runs["round"].tolist() == [1] * 4 + [2] * 4 and found.rounds.shape[0] == 8
        assert Path.cwd() == elsewhere and not list(elsewhere.iterdir())
        curves = found.curves
        assert len(curves) == 4 * 2 * 2 * 5 and list(curves.columns[:3]) == ["arm", "seed", "round"]
        at = curves[
            (curves.arm == "iet") & (curves.seed == 1) & (curves.weights == "ema") & (curves.protocol == "code_sq")
        ]
        assert at.excess.tolist() == [25 + 1 + 20 + d for d in (-20, -10, 0, 10, 20)]
        images = found.images
        assert len(images) == 4 * 20 and set(images["round"]) == {1, 2}
        of_run = images[(images.arm == "plain") & (images.seed == 1) & (images.weights == "raw")]
        assert (
            of_run.nearest_train.tolist() == [i % 5 for i in range(10)]
            and of_run.train_l2_from_gen[of_run.image == 7].item() == 0.123
        )
        leaks = found.leaks
        assert leaks[leaks.weights == "raw"].drop_duplicates(["index", "count", "twin"])[
            ["index", "count", "twin"]
        ].values.tolist() == [[2, 2, 7]]


def test_every_round_is_in_the_tables_of_rounds_and_not_in_that_of_runs(tmp_path):
    import yaml
    from report_tree import write_scores

    with built(tmp_path, ONE_SEED):
        write_scores(tmp_path, "iet-seed0", 33, 1)
        settings = yaml.safe_load((tmp_path / "params.yaml").read_text()) | {"sample_rounds": "all"}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        found = results.load(tmp_path)
        rounds = found.rounds[(found.rounds.arm == "iet") & (found.rounds.weights == "raw")]
        assert (
            rounds["round"].tolist() == [1, 2]
            and rounds.excess.tolist() == [33, 15]
            and rounds.steps.tolist() == [4, 8]
        )
        runs = found.runs
        assert runs[(runs.arm == "iet") & (runs.weights == "raw")].excess.tolist() == [15]
        assert len(found.images) == 3 * 20 and len(found.curves) == 3 * 20


def test_every_column_is_explained(project):
    """The docstring of each table names the columns that it has."""
    found, docs = results.load(project), {name: getattr(results.Results, name).__doc__ for name in TABLES}
    docs["rounds"] += docs["runs"]
    docs["curves"] += docs["runs"]
    docs["images"] = docs["images"].replace("<protocol>", " ".join(memorisation.PROTOCOLS))
    for name in TABLES:
        table, words = getattr(found, name), set(re.findall(r"[\w.]+", docs[name]))
        assert (len(table) or name == "leaks") and list(table.columns[:2]) == ["arm", "seed"]
        explained = words | {
            f"{side}_{protocol}" for side in ("train", "heldout") for protocol in memorisation.PROTOCOLS
        }
        assert [column for column in table.columns[2:] if column not in explained] == [], name
    assert found.images.groupby(["arm", "weights"]).size().to_dict() == {
        (arm, w): 50 for arm in found.settings["arms"] for w in ("raw", "ema")
    }
    leaked = found.leaks[(found.leaks.arm == "ddpm") & (found.leaks.weights == "raw")]
    assert (
        leaked["count"].sum() == found.runs[(found.runs.arm == "ddpm") & (found.runs.weights == "raw")]["count"].item()
    )


def test_what_is_missing_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is no folder, expected that of an experiment"):
        results.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"there is no params.yaml in .*: go to the root of the project first"):
        results.load(tmp_path)
    (tmp_path / "params.yaml").write_text(json.dumps(tiny_with()))
    with pytest.raises(ValueError, match=r"is missing: run `snakemake` or `dvc repro`"):
        _ = results.load(tmp_path).curves


# The notebook.


def cells():
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def run_notebook(cwd, more="", **env):
    """Runs the cells in their order in a process of their own, as nbclient does; `more` is a last cell. Returns what they print.

    nbclient and a kernel are no packages of the project. Where they are installed, they run the notebook as well.
    """
    env = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **env}
    if all(map(importlib.util.find_spec, ("nbclient", "ipykernel"))):
        import nbclient
        import nbformat

        with pytest.MonkeyPatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            nbclient.NotebookClient(nbformat.read(NOTEBOOK, 4), resources={"metadata": {"path": str(cwd)}}).execute()
    source = "\n\n".join(["".join(cell["source"]) for cell in cells()] + [more])
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=cwd, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_notebook_is_kept_without_outputs():
    assert len(cells()) >= 4
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells())


LAST = """
print(sorted(audit.leaks["index"]), audit.low <= 10 <= audit.high, axes.get_legend_handles_labels()[1])
"""


def test_the_notebook_runs_where_it_lies_and_from_elsewhere(project, tmp_path):
    """Of a finished experiment. Every one of the ten planted images is on the list; further hits are what held-out images show as chance."""
    (project / "docs").mkdir()
    for cwd, env in ((project / "docs", {}), (tmp_path, {"REDISTRIBUTE_PROJECT": str(project)})):
        said = run_notebook(cwd, LAST, **env).splitlines()
        assert "images beyond chance" in said[0]
        listed, rest = said[-1].split("]", 1)
        assert set(range(10)) <= {int(index) for index in np.array(listed.strip("[").split(","))}
        assert "True" in rest and "'iet_agc_plus, seed 3'" in rest
    assert not list(tmp_path.iterdir())
