"""dvc.lock, DVC's record of what stages read and made: as text with a block of lines for each stage, and what is not in it yet.

While Snakemake runs, no stage opens dvc.lock to write: reading and writing all of it takes longer the more stages there are. A stage
leaves its record in a small file of its own, RECORDS/<stage>, and Snakemake's main process folds these files into dvc.lock: from time to
time, at its end, and at its next start. A record names the block that it replaces, and is dropped where dvc.lock holds another one by
then: `dvc repro` or `git checkout` came between.

Blocks have the very bytes that DVC writes, so a block is found, replaced or removed without a look at the others.
"""

import functools
import hashlib
import json
import re
from pathlib import Path

from stages.run import files

LOCK_FILE = Path("dvc.lock")
RECORDS = Path(".dvc/tmp/records")
HEAD = "schema: '2.0'\nstages:\n"
BLOCK = re.compile(r"^(?=  \S)", re.MULTILINE)  # where a stage begins,
NEXT_BLOCK = re.compile(BLOCK.pattern.encode(), re.MULTILINE)
PART = re.compile(r"^(?=    \w)", re.MULTILINE)  # its cmd, deps, params and outs,
ITEM = re.compile(r"^(?=    - )", re.MULTILINE)  # and each file of deps and outs
NAME = re.compile(r"  ([A-Za-z][\w@+-]*):\n")
# A command and an item as almost all are, none of whose values YAML could take for something else.
PLAIN_COMMAND = re.compile(r"    cmd: [A-Za-z][\w./-]*(?:(?: | ?\n      )[\w./@+=-]+)+\n")
PLAIN_ITEM = re.compile(
    r"    - path: (?P<path>[A-Za-z][\w+-]*[/.][\w./+-]*)\n      hash: (?P<hash>md5)\n      md5: (?P<md5>(?!\d+(?:e\d+)?$)[0-9a-f]{32}(?:\.dir)?)\n"
    r"      size: (?P<size>[1-9]\d*|0)\n(?:      nfiles: (?P<nfiles>[1-9]\d*)\n)?",
    re.MULTILINE,
)


def names():
    """Names of the stages that dvc.lock records: set.

    Raises   ValueError: the file cannot be read
    """
    return set(_blocks(_text()))


def recorded_stages(text=None):
    """What dvc.lock records: dict name of a stage -> its entry, as DVC reads it.

    text     content of another dvc.lock, such as a committed one
    Raises   ValueError: the file cannot be read
    """
    text = _text() if text is None else text
    try:
        return {name: _entry(name, block) for name, block in _blocks(text).items()}
    except ValueError:  # written by hand, with an alias from one stage to another, or broken
        return _all_at_once(text)


def entry(name):
    """What was recorded last of one stage, in its own file or else in dvc.lock; None if nothing was.

    Raises   ValueError: dvc.lock cannot be read
    """
    record = _record(_record_file(name))
    block = record["block"] if record else _block(name)
    return _entry(name, block) if block else None


def record(name, entry):
    """Leaves the record of a stage that has run, which `fold` puts into dvc.lock."""
    from dvc.utils.serialize import dumps_yaml

    block = dumps_yaml({"stages": {name: entry}}).partition("\n")[2]
    files.write_json(_record_file(name), {"replaces": _digest(_block(name)), "block": block})


def fold():
    """Puts the records of stages into dvc.lock. A kill at any moment leaves what the next call puts there.

    Only one process may fold at a time, and no DVC process may write dvc.lock meanwhile: hold DVC's lock.
    Returns   number of records
    """
    waiting = {path: record for path in sorted(RECORDS.glob("*")) if (record := _record(path))}
    if waiting:
        blocks = _blocks(_text())
        for path, record in waiting.items():
            if _digest(blocks.get(path.name)) == record["replaces"]:
                blocks[path.name] = record["block"]
        _write(blocks)
    for path in waiting:
        path.unlink(missing_ok=True)
    return len(waiting)


def remove(names):
    """Takes stages out of dvc.lock. Hold DVC's lock."""
    _write({name: block for name, block in _blocks(_text()).items() if name not in names})


def _record_file(name):
    return RECORDS / name


def _record(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _digest(block):
    return block and hashlib.md5(block.encode(), usedforsecurity=False).hexdigest()


def _write(blocks):
    text = HEAD + "".join(blocks.values()) if blocks else "schema: '2.0'\nstages: {}\n"
    if text != _text():
        files.write_text(LOCK_FILE, text)


def _text():
    try:
        return LOCK_FILE.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise ValueError(UNREADABLE) from None


def _blocks(text):
    """dict name of a stage -> its lines"""
    if not text.strip():
        return {}
    if not text.startswith(HEAD) or re.search(r"^\S", text[len(HEAD) :], re.MULTILINE):
        text = _as_dvc_writes_it(text)
    found = {}
    for block in BLOCK.split(text[len(HEAD) :])[1:]:
        if not (name := NAME.match(block)):
            raise ValueError(UNREADABLE)
        found[name[1]] = block
    return found


def _block(name):
    """The lines of one stage in dvc.lock, None if there are none."""
    content = (
        LOCK_FILE.read_bytes() if LOCK_FILE.exists() else b""
    )  # to decode 30 MB takes four times as long as to search them
    if not content.startswith(HEAD.encode()):
        return _blocks(_text()).get(name)
    start = content.find(f"\n  {name}:\n".encode()) + 1
    if not start:
        return None
    end = NEXT_BLOCK.search(content, start + 1)
    return content[start : end.start() if end else None].decode()


UNREADABLE = (
    "dvc.lock cannot be read, as after a merge with conflicts: restore it (git checkout dvc.lock), or remove it and "
    "run the same command again, which then runs all stages"
)


def _all_at_once(text):
    from dvc.utils.serialize import ParseError, parse_yaml

    try:
        return dict(parse_yaml(text, str(LOCK_FILE)).get("stages") or {})
    except (ParseError, AttributeError, TypeError, ValueError):
        raise ValueError(UNREADABLE) from None


def _as_dvc_writes_it(text):
    from dvc.utils.serialize import dumps_yaml

    return dumps_yaml({"schema": "2.0", "stages": _all_at_once(text)})


def _entry(name, block):
    """What a block says. Most lines stand in many blocks, or have a simple form: the rest is left to DVC's YAML."""
    _, *parts = PART.split(block)
    found = {}
    for part in parts:
        key, _, rest = part.strip().partition(":")
        if PLAIN_COMMAND.fullmatch(part):
            found[key] = " ".join(rest.split())
        elif key in ("deps", "outs") and rest.startswith("\n    - "):
            found[key] = [_item(item) for item in ITEM.split(part)[1:]]
        else:
            found |= _parsed(part)
    if not found:
        raise ValueError(f"{name}: {UNREADABLE}")
    return found


def _item(text):
    plain = PLAIN_ITEM.fullmatch(text)
    if not plain:
        return _parsed(text)[0]
    return {k: int(v) if k in ("size", "nfiles") else v for k, v in plain.groupdict().items() if v is not None}


@functools.lru_cache(maxsize=100_000)
def _parsed(text):
    from dvc.utils.serialize import ParseError, parse_yaml

    try:
        return parse_yaml(text, str(LOCK_FILE))
    except ParseError:
        raise ValueError(UNREADABLE) from None
