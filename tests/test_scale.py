"""The full number of images, once, with a tiny network: `make slow`."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, Project


@pytest.mark.slow
def test_65536_images_in_parts(tmp_path):
    project = Project.create(tmp_path / "project", TINY)
    project.edit(
        arms={"ddpm": project.params()["arms"]["ddpm"]},
        sample__num_images=65536,
        sample__parts=5,  # 128 batches in 5 parts: parts of unequal size
        sample__batch_size=512,
        sample__weights=["raw"],
    )
    project.run("snakemake", timeout=1800)
    folders = [project.root / f"artifacts/samples/ddpm-seed3/round1/part{p}" for p in range(5)]
    sizes = [len(np.load(folder / "raw.npy")) for folder in folders]
    assert sum(sizes) == 65536 and len(set(sizes)) > 1
    table = pd.read_parquet(project.root / "artifacts/results/score/ddpm-seed3/round1/images.parquet")
    assert np.array_equal(table.image, np.arange(65536))
    assert json.loads((project.root / "artifacts/report/summary.json").read_text())["ddpm"]["num_images"] == 65536
