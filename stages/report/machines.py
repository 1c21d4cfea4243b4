"""The section "Wall time and machines": when and where the stages ran, from the records that they leave in logs/timing.

No hash covers it, so it is rebuilt with each page. It needs only the standard library, so that rebuilding the page is quick.
"""

import json
import re
import subprocess
from pathlib import Path

from stages import phases
from stages.report import html
from stages.report.html import DASH, duration
from stages.run import files

ANCHOR, TITLE = "machines", "Wall time"


def read(root):
    """The records of all stages that have run in a folder.

    Returns   records      list of dicts, as stages.run.cli writes them
              unreadable   how many could not be read: a record cut short by a crash costs a number on the page, not the page
    """
    records, unreadable = [], 0
    for path in sorted((Path(root) / files.LOGS / "timing").glob("*/*.json")):
        try:
            records.append(json.loads(path.read_text(encoding="utf-8")))
        except ValueError:
            unreadable += 1
    return records, unreadable


def checked_out(root):
    """The commit that is checked out in a folder; None where there is no git, no repository or no commit yet."""
    try:
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return git.stdout.strip()


def section(settings, records, unreadable, commit, now):
    """The section as HTML, from the records that exist.

    records      dicts of the stages' records, including those of instances that params.yaml no longer names
    unreadable   number of records that could not be read
    commit       the commit checked out, None where there is none
    now          date and time as a text
    """
    records = [record for record in records if _in_plan(settings, record)]
    note = "Sums over seeds, rounds and shards, from the last run of each stage. Each stage counts in full, even if others ran at the same time. "
    note += "A dash, or fewer training stages recorded than expected, means that results came from a cache, which brings no records."
    if unreadable:
        note += f" {unreadable} records could not be read."
    facts = html.terms(_facts(records) | {"This page made": now, "Commit checked out at that time": commit or DASH})
    note += " No hash covers this section, so it may differ between pages of the same results."
    content = f"{html.quiet(note)}\n{html.table(_rows(settings, records))}\n{facts}"
    return html.section(ANCHOR, "Wall time and machines", content)


def _rows(settings, records):
    """One row per arm, and one for the stages that all arms share: seconds by phase."""
    of_runs = [phase for phase in phases.names() if phase not in ("plan", "data")]
    shown = [phase for phase in phases.names() if any(r["phase"] == phase for r in records)] or of_runs
    rows = []
    for arm in [*settings["arms"], None]:
        of_arm = [record for record in records if record["arm"] == arm]
        if arm is None and not of_arm:
            continue
        seconds = {p: [r["seconds"] for r in of_arm if r["phase"] == p] for p in shown}
        rows.append(
            {
                "arm": arm or "all arms",
                **{phase: duration(sum(found)) if found else DASH for phase, found in seconds.items()},
                "all phases": duration(sum(r["seconds"] for r in of_arm)) if of_arm else DASH,
                "training stages recorded": _trained(settings, arm, of_arm),
            }
        )
    return rows


def _trained(settings, arm, records):
    """How many of an arm's training stages have left a record; a dash for an arm that is not trained here."""
    if arm is None or "generator" in (recipe := settings["arms"][arm]):
        return DASH
    expected = recipe["rounds"] * recipe["shard"]["num_shards"] * len(settings["seeds"])
    return f"{sum(record['phase'] == 'train' for record in records)} of {expected}"


def _facts(records):
    versions = sorted({(name, version) for record in records for name, version in record["versions"].items()})
    return {
        "Device": _seen(record["device"] for record in records),
        "Threads per stage": _seen(record["threads"] for record in records),
        "Machine": _seen(record["machine"] for record in records),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions) or DASH,
        "Last stage finished": max((record["finished"] for record in records), default=DASH),
    }


def _seen(values):
    return "; ".join(sorted({str(value) for value in values})) or DASH


def _in_plan(settings, record):
    """Whether params.yaml still names the arm, seed, round and shard that a record is about."""
    if record["arm"] is None:
        return True
    if record["arm"] not in settings["arms"] or record["seed"] not in settings["seeds"]:
        return False
    recipe = settings["arms"][record["arm"]]
    if "generator" in recipe:
        return True
    after_name = record["key"].removeprefix(record["arm"])  # a name may itself hold "-round2"
    part_of_key = {name: int(value) for name, value in re.findall(r"-(round|shard)(\d+)", after_name)}
    return (
        part_of_key.get("round", 1) <= recipe["rounds"] and part_of_key.get("shard", 0) < recipe["shard"]["num_shards"]
    )
