"""Reads params.yaml, fills in defaults, checks it against the schema, and says in one sentence what is wrong with it.

The schema is put together from several places: the keys that all phases share are in workflow/schemas/params.schema.yaml, the settings
of a phase in PHASE of its module, those of a training method in SETTINGS of its module. `default` of a key there is what stands for it where
it is left out: it is filled in when the file is read, so all that comes after sees every key. Rules between sections are checked by
stages/rules.py and by the function `check` of each phase.
"""

import copy
import difflib
import math
import re
from pathlib import Path

import yaml

from stages.run import declarations

PARAMS_FILE = "params.yaml"
SCHEMA_FILE = declarations.STAGES.parent / "workflow/schemas/params.schema.yaml"
# A few lines of aliases of aliases stand for billions of values, which a check would visit one by one.
MOST_VALUES = 100_000
# A number for YAML 1.2 (DVC) but a text for YAML 1.1 (PyYAML, Snakemake): no dot, or no sign in the exponent.
EXPONENT = re.compile(r"([-+]?)(?=\.?\d)(\d*)\.?(\d*)[eE]([-+]?)(\d+)")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Refuses what PyYAML lets pass: a key that stands twice in one mapping, a key that is no text (on, 1, ~), and aliases (*)
    that stand for more than MOST_VALUES. What PyYAML ends without a line for, such as the 30th of February, gets one."""

    def get_single_node(self):
        node = super().get_single_node()
        if node is not None and _num_values(node, {}) > MOST_VALUES:
            problem = f"its aliases (*) stand for more than {MOST_VALUES:,} values: write out what they stand for"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return node

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            problem = f"{_short(node.value)} cannot be read as {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


def _num_values(node, known):
    """Values that a node and all below it stand for, an alias counted as often as it is used; infinite if it holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # while it is counted
        below = node.value if isinstance(node, yaml.CollectionNode) else []
        below = [part for pair in below for part in pair] if isinstance(node, yaml.MappingNode) else below
        known[id(node)] = 1 + sum(_num_values(part, known) for part in below)
    return known[id(node)]


def _mapping(loader, node):
    nodes = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    keys = [loader.construct_object(key) for key in nodes]
    for i, (key, key_node) in enumerate(zip(keys, nodes, strict=True)):
        problem = None
        if not (isinstance(key, str) and key.isprintable()):
            problem = f"the key {_short(key)} is no text: put it in quotes or rename it"
        elif key in keys[:i]:
            problem = f"the key {key} stands twice"
        if problem:
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def at_root():
    """Raises ValueError if the current folder is not the root of the project: all paths are relative to it."""
    if not Path(PARAMS_FILE).exists():
        raise ValueError(f"there is no {PARAMS_FILE} in {Path.cwd()}: {_where_to_run()}")


def _where_to_run():
    root = declarations.STAGES.parent
    return (
        f"go to the root of the project first: cd {root}"
        if Path.cwd() != root
        else f"restore it (git checkout {PARAMS_FILE})"
    )


def load(path=PARAMS_FILE):
    """The parameters, checked against the schema; see `read` and `check`."""
    params = read(path)
    check(params, path)
    return params


def read(path=PARAMS_FILE):
    """The parameters, unchecked.

    Returns   dict as in the file, with the defaults of what is left out
    Raises    ValueError: one sentence with the file, the key's full path, what was found and what was expected
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"there is no {path} in {Path.cwd()}: {_where_to_run()}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: byte {error.start} cannot be read") from None
    try:
        params = yaml.load(text, _Loader)  # noqa: S506 (a subclass of the safe loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        line = "".join(text.split("\n")[mark.line : mark.line + 1]) if mark else ""
        if "\t" in line[: len(line) - len(line.lstrip())]:
            problem = "a tab, where YAML allows only spaces: replace it by spaces"
        raise ValueError(f"{path}{where}: {' '.join(problem.split())}") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
    return filled(params)


def filled(params):
    """A copy of parameters in which each key that is left out and has a default has it.

    params   as in params.yaml, or some of its sections; what is not as the schema wants it stays as it is
    """
    whole = schema()
    return _filled(params, whole, whole["$defs"])


def _filled(value, rule, definitions):
    """A value with the defaults of a rule, a JSON schema, and of all below it."""
    import jsonschema

    if not isinstance(value, dict):
        return value
    if "$ref" in rule:
        rule = definitions[rule["$ref"].rpartition("/")[2]] | rule
    for case in (rule, *rule.get("allOf", [])):
        if "if" in case:
            holds = jsonschema.Draft202012Validator(case["if"]).is_valid(value)
            value = _filled(value, case.get("then" if holds else "else", {}), definitions)
    found, properties, others = dict(value), rule.get("properties", {}), rule.get("additionalProperties")
    for name, below in properties.items():
        if name in found or "default" in below:
            found[name] = _filled(found.get(name, copy.deepcopy(below.get("default"))), below, definitions)
    if isinstance(others, dict):
        found |= {name: _filled(found[name], others, definitions) for name in found.keys() - properties.keys()}
    return found


def check(params, path=PARAMS_FILE):
    """Raises ValueError at the first thing that the schema refuses; see `load`."""
    import jsonschema

    draft = jsonschema.Draft202012Validator
    # 600.0 is an integer for JSON Schema, but no number of epochs.
    types = draft.TYPE_CHECKER.redefine(
        "integer", lambda _, found: isinstance(found, int) and not isinstance(found, bool)
    )
    validator = jsonschema.validators.extend(draft, type_checker=types)(schema())
    # A misspelt key also leaves the right one missing: the misspelling is the more useful thing to hear of.
    kinds = ["additionalProperties", "type", "propertyNames", "required"]
    errors = sorted(
        validator.iter_errors(params),
        key=lambda e: (kinds.index(e.validator) if e.validator in kinds else len(kinds), list(map(str, e.path))),
    )
    if errors:
        raise ValueError(f"{path}: {_sentence(errors[0])}")
    _check_finite(params, "", path)


def schema():
    """The JSON schema of all of params.yaml, with the sections of all phases, training methods and mitigations at sampling."""
    whole = yaml.load(SCHEMA_FILE.read_text(encoding="utf-8"), _Loader)  # noqa: S506 (a subclass of the safe loader)
    definitions = whole["$defs"]
    definitions["method"] |= _by_name(
        {name: method["SETTINGS"] for name, method in declarations.methods().items()},
        "training method: a module of stages/methods/",
    )
    definitions["mitigation"] |= _by_name(
        {name: schema for of_kind in declarations.mitigations().values() for name, schema in of_kind.items()},
        "what is done while images are generated",
    )
    of_arms = definitions["trained_arm"]["properties"]
    for name, phase in declarations.phases().items():
        if "section" in phase:
            whole["properties"][name] = _closed(phase["section"])
        if "arm_section" in phase:
            of_arms[name] = _closed(phase["arm_section"])
        if phase.get("arms_override"):
            override = {"description": f"settings of this arm, over those of the section {name}; {{}} for none"}
            of_arms[name] = _closed(_without_defaults(phase["section"])) | {"required": []} | override
    definitions["audited_arm"]["properties"]["sample"] = of_arms["sample"]
    return whole


def _without_defaults(section):
    """A section as an arm has it: a key that the arm leaves out is that of the shared section."""
    keys = section["properties"].items()
    return section | {"properties": {name: {k: v for k, v in rule.items() if k != "default"} for name, rule in keys}}


def _closed(section):
    return {"type": "object", "additionalProperties": False, **section}


def _by_name(settings, description):
    """Schema of a section with the name of one of several things, and the settings that this one has."""
    name = {"description": description, "enum": sorted(settings)}
    cases = [
        {
            "if": {"required": ["name"], "properties": {"name": {"const": method}}},
            "then": {
                **declared,
                "additionalProperties": False,
                "required": ["name", *declared.get("required", [])],
                "properties": {"name": name, **declared.get("properties", {})},
            },
        }
        for method, declared in settings.items()
    ]
    return {"type": "object", "required": ["name"], "properties": {"name": name}, "allOf": cases}


def _sentence(error):
    """What the schema found, in words: key, found, expected, what to do."""
    key = ".".join(str(p) for p in error.absolute_path)
    found, rule = error.instance, error.schema
    meaning = f" ({rule['description']})" if isinstance(rule, dict) and "description" in rule else ""
    match error.validator:
        case "additionalProperties":
            valid = list(rule["properties"])
            unknown = next(name for name in found if name not in rule["properties"])
            full = f"{key}.{unknown}" if key else str(unknown)
            near = difflib.get_close_matches(str(unknown), valid, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"valid keys here are {', '.join(valid)}"
            return f"unknown key {full}: {hint}"
        case "required" | "dependentRequired":
            missing = re.match(r"'(.*?)'", error.message).group(1)
            full = f"{key}.{missing}" if key else missing
            wanted = rule.get("properties", {}).get(missing, {})
            described = f" ({wanted['description']})" if "description" in wanted else ""
            empty = wanted.get("type") == "object" and not wanted.get("required") and "$ref" not in wanted
            return f"the key {full} is missing{described}" + (f": {missing}: {{}} takes its defaults" if empty else "")
        case "type":
            if isinstance(found, str) and (number := EXPONENT.fullmatch(found)):
                sign, whole, fraction, exponent_sign, exponent = number.groups()
                written = f"{sign}{whole or 0}.{fraction or 0}e{exponent_sign or '+'}{exponent}"
                if error.validator_value == "integer" and float(found).is_integer():
                    written = f"{float(found):.0f}"
                return f"{key} is {found}, which YAML 1.1 reads as text: write {written}"
            return f"{key or 'the file'} is {_short(found)}, expected {_article(error.validator_value)}{meaning}"
        case "enum":
            return not_one_of(key, found, error.validator_value, meaning)
        case "pattern":  # only names of arms have one
            return (
                f"the arm name {_short(found)} cannot be used: expected a letter, then letters, digits, '_', '+' or '-' "
                "(it becomes part of stage names and paths)"
            )
        case "oneOf":
            cases = [_listed(case["required"]) for case in error.validator_value]
            given = [name for name in found if any(name in case["required"] for case in error.validator_value)]
            return f"{key} has {_listed(given) or 'none of its keys'}, expected either {', or '.join(cases)}{meaning}"
        case "uniqueItems":
            return f"{key} is {_short(found)}, expected no value twice{meaning}"
        case "maxProperties":
            return f"{key} is {_short(found)}, expected {{}}{meaning}"
        case "minItems" | "minProperties" | "minLength":
            return f"{key} is empty, expected at least one entry{meaning}"
        case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum":
            return f"{key} is {_short(found)}, expected {_range(rule)}{meaning}"
    return f"{key}: {error.message}{meaning}"


def _listed(names):
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def not_one_of(key, found, expected, meaning=""):
    """The sentence on a value that is none of those expected: the key, what was found, and what may have been meant."""
    near = difflib.get_close_matches(str(found), map(str, expected), n=1)
    hint = f": did you mean {near[0]}?" if near else ""
    return f"{key} is {_short(found)}, expected one of {', '.join(map(str, expected))}{meaning}{hint}"


def _short(found):
    """A value as it stands in a sentence: on one line, and not the whole file where a section is in a wrong place."""
    text = repr(found)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _article(kind):
    return {
        "number": "a number",
        "integer": "a whole number",
        "object": "a section of keys",
        "array": "a list in [ ]",
        "boolean": "true or false",
        "string": "a text",
    }.get(kind, str(kind))


def _range(rule):
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "more than",
        "maximum": "at most",
        "exclusiveMaximum": "less than",
    }
    return " and ".join(f"{word} {rule[key]}" for key, word in words.items() if key in rule)


def _check_finite(value, key, path):
    """YAML knows .nan and .inf; only the R of TAA may be infinite."""
    if isinstance(value, dict):
        for name, below in value.items():
            _check_finite(below, f"{key}.{name}" if key else str(name), path)
    elif isinstance(value, list):
        for below in value:
            _check_finite(below, key, path)
    elif isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and not key.endswith(".taa.R"))):
        raise ValueError(f"{path}: {key} is {value}, expected a finite number")
