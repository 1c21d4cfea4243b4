"""Lists every key that params.yaml may hold, with its meaning, type, range and default: `make settings`."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from stages.run import cli, params

RANGES = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most", "exclusiveMaximum": "less than"}


def lines(key, rule, schema):
    """The lines of one key and of all below it.

    rule     JSON schema of its value
    schema   the whole one, which `$ref` points into
    """
    if "$ref" in rule:
        target = schema
        for part in rule["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        rule = target | {name: value for name, value in rule.items() if name != "$ref"}
    default = f"default {json.dumps(rule['default'])}" if "default" in rule else ""
    kind = " or ".join(map(str, rule["enum"])) if "enum" in rule else rule.get("type", "")
    limits = ", ".join(f"{words} {rule[name]}" for name, words in RANGES.items() if name in rule)
    said = "; ".join(part for part in (rule.get("description", ""), kind, limits, default) if part)
    found = [f"{key}: {said}"] if key else []
    for name, below in rule.get("properties", {}).items():
        found += lines(f"{key}.{name}" if key else name, below, schema)
    for case in rule.get("allOf", []):  # of a training method or a mitigation, by its name
        name = case["if"]["properties"]["name"]["const"]
        for setting, below in case["then"]["properties"].items():
            if setting != "name":
                found += lines(f"{key} ({name}).{setting}", below, schema)
    for branch in ("then", "else"):
        if branch in rule:
            found += lines(key, rule[branch], schema)[bool(key) :]
    if isinstance(rule.get("additionalProperties"), dict):
        found += lines(f"{key}.<name>", rule["additionalProperties"], schema)
    return found


def main(words):
    schema = params.schema()
    chosen = [line for line in lines("", schema, schema) if not words or line.startswith(tuple(words))]
    if not chosen:
        raise ValueError(f"no key begins with {' or '.join(words)}: `make settings` lists all of them")
    print("\n".join(chosen))


if __name__ == "__main__":
    cli.run(main)
