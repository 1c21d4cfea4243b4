"""Reads what dvc.lock, DVC's record, says of the stages, and removes entries from it."""

from pathlib import Path

import yaml

from stages.run import files, processes

LOCK_FILE = Path("dvc.lock")


def recorded_stages():
    """What dvc.lock records: dict name of a stage -> its entry.

    Raises   ValueError: the file cannot be read
    """
    if not LOCK_FILE.exists():
        return {}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        recorded = (yaml.load(LOCK_FILE.read_text(encoding="utf-8"), loader) or {}).get("stages", {})  # noqa: S506
        return dict(recorded)
    except (yaml.YAMLError, AttributeError, UnicodeDecodeError, TypeError, ValueError):
        raise ValueError(
            "dvc.lock cannot be read, as after a merge with conflicts: restore it (git checkout dvc.lock), or remove it and "
            "run the same command again, which then runs all stages"
        ) from None


def remove(names):
    """Takes entries out of dvc.lock, under DVC's own lock and through DVC's own YAML, so the rest stays as it is."""
    if not names:
        return
    from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update

    def rewrite():
        content = parse_yaml_for_update(LOCK_FILE.read_text(encoding="utf-8"), str(LOCK_FILE))
        for name in names:
            content["stages"].pop(name, None)
        files.write_text(LOCK_FILE, dumps_yaml(content))

    processes.with_dvc_lock(rewrite)
