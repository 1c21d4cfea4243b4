"""Asks a database of known vulnerabilities about the pins of requirements.txt, in one request: `make audit-pins`.

The database is OSV, which holds PyPI's and GitHub's advisories; the address of another one with the same interface may be given.
Only the names and versions of the pins leave the machine.
"""

import json
import re
import sys
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from stages.run import cli

DATABASE = "https://api.osv.dev/v1/querybatch"
WAIT_S = 60


def pins(lock):
    """Names and exact versions in the text of a hashed lock: list of (name, version)."""
    return re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", lock, re.MULTILINE)


def main(words):
    """Raises   ValueError: something is known against a pin"""
    address = words[0] if words else DATABASE
    found = pins(Path("requirements.txt").read_text(encoding="utf-8"))
    queries = [{"package": {"ecosystem": "PyPI", "name": name}, "version": version} for name, version in found]
    request = urllib.request.Request(  # noqa: S310 (an address of whoever runs this)
        address, json.dumps({"queries": queries}).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:  # noqa: S310
            results = json.load(answer)["results"]
    except (OSError, ValueError, KeyError) as error:
        print(f"the pins were not checked: {address} cannot be reached ({error})", file=sys.stderr)
        return
    known = {
        f"{name} {version}": [v["id"] for v in result["vulns"]]
        for (name, version), result in zip(found, results, strict=True)
        if result.get("vulns")
    }
    if known:
        listed = "; ".join(f"{pin} ({', '.join(ids)})" for pin, ids in known.items())
        raise ValueError(
            f"{len(known)} of {len(found)} pins {'has' if len(known) == 1 else 'have'} known vulnerabilities: {listed}"
        )
    print(f"{len(found)} pins: nothing is known against them")


if __name__ == "__main__":
    cli.run(main)
