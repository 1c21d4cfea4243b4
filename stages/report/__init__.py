"""Report: what all arms came to, as metrics.json, plots/, artifacts/report/ and the page report.html.

    python -m stages.report            all of it
    python -m stages.report --page     report.html alone, from artifacts/report/body.html and logs/timing/
    python -m stages.report --for-others   report-for-others.html, which neither shows nor names an image
    python -m stages.report --table    the headline table as text, from artifacts/report/summary.json

results.py reads the artifacts, metrics.py sums them up (all of it in artifacts/report/summary.json, a few numbers an arm in
metrics.json for `dvc metrics diff`), sections/ has a file for each section of the page, and page.py puts
the page together.

Everything but report.html depends on the artifacts alone, so the same results give the same bytes. report.html adds when and
where the stages ran, and belongs to no hash. pandas and matplotlib are imported where they are used: --page and --table
start without them.
"""

import argparse
import datetime
from dataclasses import dataclass
from pathlib import Path

from stages import experiments
from stages.report import html, machines, page, privacy, table
from stages.run import files, params
from stages.run.instance import LIGHT_BYTES, Instance

# fmt: off
PHASE = {
    "name": "report",
    "per": "experiment",
    "final": True,
    "reads_phases": True,
    "section": {
        "description": "what the page holds",
        "properties": {
            "show_images": {"description": "how many generated images of each arm the page shows beside their nearest training images; 0: none (default: 24 for the public image sets and where similarity.show_images is above 0, otherwise 0)", "type": "integer", "minimum": 0, "maximum": 24},
            "names": {"description": "what page and leak list call an image: path, its name in the image set (the default), or pseudonym, its number", "enum": ["path", "pseudonym"]},
        },
    },
}
# fmt: on
BODY = files.REPORT / "body.html"
PAGE = Path("report.html")
FOR_OTHERS = Path("report-for-others.html")


@dataclass(frozen=True, kw_only=True)
class Report(Instance):
    def outputs(self):
        return [files.REPORT]

    def size(self, scale):
        return 20 * LIGHT_BYTES


def instances(experiment):
    return [Report(block="report")]


def main(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m stages.report", description="Tables, figures and the page of all arms."
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--page", action="store_true", help="only renew report.html: wall time, machine, commit")
    only.add_argument(
        "--for-others", action="store_true", help=f"only write {FOR_OTHERS}, which neither shows nor names an image"
    )
    only.add_argument("--table", action="store_true", help="only print the headline table from summary.json")
    chosen = parser.parse_args(arguments)
    if chosen.table:
        print_table(params.load())
        return
    if chosen.for_others:
        write_for_others(params.load())
        return
    if not chosen.page:
        with experiments.stage(PHASE, parser.description, []) as job:
            build(job.params)
    render_page()


def print_table(settings):
    """Prints the headline table and where the page is.

    Raises   ValueError: artifacts/report/summary.json is missing, or of another experiment
    """
    metrics = files.load_json(files.SUMMARY)
    try:
        text = table.text_table(settings, metrics)
    except KeyError as key:
        raise ValueError(
            f"{files.SUMMARY} has no {key}, which {params.PARAMS_FILE} names: run `snakemake` first"
        ) from None
    if len(settings["seeds"]) == 1:
        text += "\none seed: an interval holds for this one model, and leaves out how other runs of its method differ"
    print("\n".join([text, "", str(PAGE), *privacy.told(settings)]))


def build(settings):
    """Reads the artifacts of every run in params.yaml and writes all that DVC tracks."""
    from stages.report import leaks, metrics, plots, results

    report = results.read(settings)
    report.metrics = metrics.summarise(report)
    body = page.body(report)
    with files.publish(files.REPORT) as folder:
        folder.mkdir()
        files.save_table(folder / "leaks.parquet", report.leaks)
        files.write_text(folder / "leaks.csv", leaks.csv_text(report.leaks))
        files.save_table(folder / "results.parquet", report.results)
        files.write_json(folder / files.SUMMARY.name, report.metrics)
        files.write_text(folder / BODY.name, body)
    for name, frame in plots.tables(report).items():
        text = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        files.write_text(files.PLOTS / f"{name}.csv", text)
    for name, svg in plots.drawings(report).items():
        files.write_text(files.PLOTS / f"{name}.svg", svg)
    files.write_json(files.METRICS, metrics.headline(report))


def render_page(root="."):
    """Writes report.html: the tracked body, then wall time, machines, versions, date and commit as far as they are known.

    Raises   ValueError: there is no body yet
    """
    root = Path(root)
    body = root / BODY
    if not body.exists():
        raise ValueError(f"{body} is missing: run `snakemake` or `dvc repro`, then this again")
    _write_page(root, PAGE, params.load(root / params.PARAMS_FILE), body.read_text(encoding="utf-8"))


def write_for_others(settings):
    """Writes report-for-others.html from the artifacts, and says so.

    Raises   ValueError: a file of a run is missing
    """
    from stages.report import metrics, results

    settings = privacy.for_others(settings)
    report = results.read(settings)
    report.params_text = privacy.without_paths(settings)
    report.metrics = metrics.summarise(report)
    _write_page(Path(), FOR_OTHERS, settings, html.without_links(page.body(report)))
    print(
        f"{FOR_OTHERS} neither shows nor names an image; it holds the names of the arms, and the settings without paths"
    )


def _write_page(root, target, settings, body):
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    wall_time = machines.section(settings, *machines.read(root), machines.checked_out(root), now)
    files.write_text(root / target, page.page(body, wall_time))
