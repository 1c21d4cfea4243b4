"""plan.json: every stage instance with its fields, a line each, so that one is read without a look at the others."""

import json
from pathlib import Path

PLAN_FILE = Path("plan.json")
ABOUT = "Derived from params.yaml by stages/plan.py, which renews it: do not edit, do commit."


def text(blocks):
    """The content of plan.json.

    blocks   dict block -> dict key -> fields of an instance; of a block that makes one stage, its fields
    """
    listed = []
    for block, items in blocks.items():
        several = items and all(isinstance(fields, dict) for fields in items.values())
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(fields)}" for key, fields in items.items())
        listed.append(f"{json.dumps(block)}: " + (f"{{\n{lines}\n}}" if several else json.dumps(items)))
    return f'{{"about": {json.dumps(ABOUT)}, "plan": {{\n' + ",\n".join(listed) + "\n}}\n"


def of_stage(name):
    """What plan.json says of one stage, in the form of the whole: {"plan": {block: {key: fields}}}; its block is empty if there is none.

    name   what DVC calls it: <block>@<key>, or the block alone where it makes one stage
    """
    block, _, key = name.partition("@")
    content = PLAN_FILE.read_bytes()
    if not key:
        fields = _value(content, content.find(f"\n{json.dumps(block)}: ".encode()))
        return {"plan": {block: fields or {}}}
    start = content.find(f"\n{json.dumps(block)}: {{\n".encode())
    fields = start >= 0 and _value(
        content, content.find(f"\n{json.dumps(key)}: ".encode(), start, content.find(b"\n}", start))
    )
    return {"plan": {block: {key: fields} if fields else {}}}


def _value(content, start):
    """What stands in the line that begins after `start`; None if start is -1, as nothing was found."""
    if start < 0:
        return None
    line = content[start + 1 : content.index(b"\n", start + 1)]
    return json.loads(b"{" + line.rstrip(b",") + b"}").popitem()[1]
