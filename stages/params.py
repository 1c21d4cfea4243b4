"""params.yaml: read it, check all of it, and tell in one sentence what is wrong with it."""

import difflib
import math
import re
from pathlib import Path

import yaml

from stages import image_sets, methods
from stages.image_sets import elsewhere
from stages.text import prompt_mitigations

PARAMS_FILE = "params.yaml"
# Keys that only a text-conditioned model knows.
TEXT_KEYS = {
    "train": ("caption", "caption_text", "caption_dropout"),
    "sample": ("guidance", "images_per_prompt", "with_replacement", "mitigation"),
}
SCHEMA_FILE = Path(__file__).parent.parent / "workflow/schemas/params.schema.yaml"
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


def load(path=PARAMS_FILE):
    """The parameters, checked against the schema and against each other.

    Returns   dict, as in the file
    Raises    ValueError: one sentence with the file, the key's full path, what was found and what was expected
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"there is no {path} in {Path.cwd()}: run from the root of the project") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: byte {error.start} cannot be read") from None
    try:
        params = yaml.load(text, _Loader)  # noqa: S506 (a subclass of the safe loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ValueError(f"{path}{where}: {' '.join(problem.split())}") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
    check(params, path)
    return params


def trained(params):
    """The arms that are trained here, by name; the others are generators from elsewhere, which are only audited."""
    return {arm: recipe for arm, recipe in params["arms"].items() if "generator" not in recipe}


def maker(params, arm):
    """The arm whose training makes the model that an arm's images come from; None where that is a generator from elsewhere."""
    recipe = params["arms"][arm]
    return recipe["generator"].get("arm") if "generator" in recipe else arm


def seeds_of(params, arm):
    """The seeds that an arm is run with: all, or the first where its images are the same for each (a folder, a file)."""
    fixed = {"folder", "file"} & params["arms"][arm].get("generator", {}).keys()
    return params["seeds"][:1] if fixed else params["seeds"]


def fixed_text(params, arm):
    """The text that a trained arm shows the network in the place of all captions, and is asked for; None where it has captions."""
    settings = section(params, "train", arm)
    return settings["caption_text"] if settings.get("caption") == "fixed_text" else None


def section(params, phase, arm):
    """The settings of one phase of one arm: the shared section of that name with the arm's own over it.

    A generator from elsewhere has one kind of weights, called raw, and one part; of a folder or a file all images are taken
    (num_images None) unless the arm itself says how many. An arm that samples from another arm's model takes nothing of that
    arm's settings.
    """
    recipe = params["arms"][arm]
    settings = {**params.get(phase, {}), **recipe[phase]}
    if phase == "sample" and maker(params, arm) is None:
        settings |= {"weights": ["raw"], "parts": 1}
        if "pipeline" not in recipe["generator"]:
            settings["num_images"] = recipe["sample"].get("num_images")
    return settings


def check(params, path=PARAMS_FILE):
    """Raises ValueError at the first thing that is wrong; see `load`."""
    import jsonschema

    schema = yaml.load(SCHEMA_FILE.read_text(encoding="utf-8"), _Loader)  # noqa: S506 (a subclass of the safe loader)
    schema["$defs"]["method"] |= _methods()
    schema["$defs"]["mitigation"] |= _by_name(
        {name: {"SETTINGS": settings} for name, settings in prompt_mitigations.SETTINGS.items()},
        "what is done to prompts",
    )
    draft = jsonschema.Draft202012Validator
    # 600.0 is an integer for JSON Schema, but no number of epochs.
    types = draft.TYPE_CHECKER.redefine(
        "integer", lambda _, found: isinstance(found, int) and not isinstance(found, bool)
    )
    validator = jsonschema.validators.extend(draft, type_checker=types)(schema)
    # A misspelt key also leaves the right one missing: the misspelling is the more useful thing to hear of.
    kinds = ["additionalProperties", "type", "propertyNames", "required"]
    errors = sorted(
        validator.iter_errors(params),
        key=lambda e: (kinds.index(e.validator) if e.validator in kinds else len(kinds), list(map(str, e.path))),
    )
    if errors:
        raise ValueError(f"{path}: {_sentence(errors[0])}")
    try:
        _check_together(params)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if "num_train" in params["data"]:
        check_num_train(params, params["data"]["num_train"], path)


def check_num_train(params, num_train, path=PARAMS_FILE):
    """What the sections of all phases ask of the number of training images; of a folder it is known once its files are listed.

    Raises   ValueError: more shards than images, a shard smaller than one batch, more neighbours than images, groups of more
             than half of the images
    """
    if num_train < (neighbours := params["score"]["neighbours"]):
        raise ValueError(f"{path}: score.neighbours is {neighbours}, more than the {num_train} training images")
    for arm, recipe in trained(params).items():
        num_shards, batch_size = recipe["shard"]["num_shards"], section(params, "train", arm)["batch_size"]
        if num_shards > num_train:
            raise ValueError(
                f"{path}: arms.{arm}.shard.num_shards is {num_shards}, more than the {num_train} training images"
            )
        if num_train // num_shards < batch_size:
            raise ValueError(
                f"{path}: arms.{arm}: {num_train} training images in {num_shards} shards leave a shard of "
                f"{num_train // num_shards}, fewer than one batch (train.batch_size = {batch_size})"
            )
    for arm in params["arms"] if is_text(params) else ():
        sample, made_by = section(params, "sample", arm), maker(params, arm)
        if made_by is None or fixed_text(params, made_by):
            continue
        num_prompts = -(-(sample["num_images"] or 0) // sample.get("images_per_prompt", 1))
        if not sample.get("with_replacement") and num_prompts > num_train:
            raise ValueError(
                f"{path}: sample.num_images of {arm} asks for {num_prompts} captions, but there are {num_train} training images: "
                "generate fewer images, or more for each caption (sample.images_per_prompt)"
            )
    if (analyse := params.get("analyse")) and 2 * analyse["group_size"] > num_train:
        raise ValueError(
            f"{path}: analyse.group_size is {analyse['group_size']}, expected at most half of the {num_train} training images: "
            "as many others are drawn to compare the memorised ones with"
        )


def _methods():
    """Schema of arms.<arm>.method: a name, and the settings which that method's own module declares."""
    return _by_name(methods.declared(), "training method: a module of stages/methods/")


def _by_name(methods, description):
    name = {"description": description, "enum": sorted(methods)}
    cases = [
        {
            "if": {"required": ["name"], "properties": {"name": {"const": method}}},
            "then": {
                "additionalProperties": False,
                "required": ["name", *declared["SETTINGS"].get("required", [])],
                "properties": {"name": name, **declared["SETTINGS"].get("properties", {})},
            },
        }
        for method, declared in methods.items()
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
            described = rule.get("properties", {}).get(missing, {}).get("description")
            return f"the key {full} is missing" + (f" ({described})" if described else "")
        case "type":
            if isinstance(found, str) and (number := EXPONENT.fullmatch(found)):
                sign, whole, fraction, exponent_sign, exponent = number.groups()
                written = f"{sign}{whole or 0}.{fraction or 0}e{exponent_sign or '+'}{exponent}"
                if error.validator_value == "integer" and float(found).is_integer():
                    written = f"{float(found):.0f}"
                return f"{key} is {found}, which YAML 1.1 reads as text: write {written}"
            return f"{key or 'the file'} is {_short(found)}, expected {_article(error.validator_value)}{meaning}"
        case "enum":
            near = difflib.get_close_matches(str(found), map(str, error.validator_value), n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            return (
                f"{key} is {_short(found)}, expected one of {', '.join(map(str, error.validator_value))}{meaning}{hint}"
            )
        case "pattern":  # only names of arms have one
            return (
                f"the arm name {_short(found)} cannot be used: expected a letter, then letters, digits, '_', '+' or '-' "
                "(it becomes part of stage names and paths)"
            )
        case "uniqueItems":
            return f"{key} is {_short(found)}, expected no value twice{meaning}"
        case "maxProperties":
            return f"{key} is {_short(found)}, expected {{}}{meaning}"
        case "minItems" | "minProperties" | "minLength":
            return f"{key} is empty, expected at least one entry{meaning}"
        case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum":
            return f"{key} is {_short(found)}, expected {_range(rule)}{meaning}"
    return f"{key}: {error.message}{meaning}"


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


def _check_together(params):
    """What holds between keys, which a schema of single keys cannot say."""
    data, model, diffusion, score = params["data"], params["model"], params["diffusion"], params["score"]
    _check_finite(params, "")
    _check_data(data)
    _check_kind(params)
    if "weights" in (quality := params.get("quality", {})) and quality.get("download"):
        raise ValueError(
            "quality.weights and quality.download: true both say where the weights come from: give one of them"
        )
    for channels in model.get("block_channels", []):
        if channels % model["norm_groups"]:
            raise ValueError(
                f"model.block_channels has {channels}, expected multiples of model.norm_groups = {model['norm_groups']}"
            )
    for level in model.get("attention_levels", []):
        if level >= len(model["block_channels"]):
            raise ValueError(
                f"model.attention_levels has {level}, expected less than the number of levels in model.block_channels, "
                f"{len(model['block_channels'])}"
            )
    if diffusion and diffusion["beta_start"] > diffusion["beta_end"]:
        raise ValueError(
            f"diffusion.beta_start is {diffusion['beta_start']}, expected at most diffusion.beta_end = {diffusion['beta_end']}"
        )
    headline = score["headline"]
    if headline["threshold"] not in score["thresholds"]:
        raise ValueError(
            f"score.headline.threshold is {headline['threshold']}, expected one of score.thresholds {score['thresholds']}"
        )
    for arm in params["arms"]:
        weights = section(params, "sample", arm)["weights"]
        if headline["weights"] not in weights and maker(params, arm) is None:
            raise ValueError(
                f"score.headline.weights is {headline['weights']}, but {arm} is a generator from elsewhere, which has raw weights "
                "only: set it to raw"
            )
        if headline["weights"] not in weights:
            raise ValueError(
                f"score.headline.weights is {headline['weights']}, but sample.weights of {arm} is {weights}"
            )
        _check_generator(arm, params)
        if maker(params, arm):
            _check_sample(arm, params)
    for arm, recipe in trained(params).items():
        kind = "text" if is_text(params) else "pixels"
        if recipe["redistribute"].get("schedule") == "alternating" and recipe["rounds"] % 2:
            raise ValueError(
                f"arms.{arm}.rounds is {recipe['rounds']}, expected an even number with redistribute.schedule: alternating, as every "
                "second round ends with averaging"
            )
        counting = [
            n for n, method in methods.declared().items() if method["COUNTS_SKIPS"] and kind in method["MODELS"]
        ]
        if recipe["redistribute"].get("select") == "memory" and recipe["method"]["name"] not in counting:
            raise ValueError(
                f"arms.{arm}.redistribute.select is memory, which needs the skip counts of a method that skips "
                f"({', '.join(counting)}), but arms.{arm}.method.name is {recipe['method']['name']}: use such a method, or "
                "select: random"
            )
        _check_length(arm, params)
    if (analyse := params.get("analyse")) and diffusion and analyse["timestep_stride"] > diffusion["num_timesteps"]:
        raise ValueError(
            f"analyse.timestep_stride is {analyse['timestep_stride']}, expected at most diffusion.num_timesteps = "
            f"{diffusion['num_timesteps']}"
        )


def is_text(params):
    """Whether the model is a text-conditioned one."""
    return "pipeline" in params.get("model", {})


def _check_kind(params):
    """What goes with a text-conditioned model, and what does not."""
    data, text = params["data"], is_text(params)
    kind = "text" if text else "pixels"
    if text and not image_sets.SETS[data["name"]].captions:
        known = [name for name, entry in image_sets.SETS.items() if entry.captions]
        raise ValueError(
            f"data.name is {data['name']}, whose images have no captions, but model.pipeline is trained with captions: use "
            f"{', '.join(known)}"
        )
    for name in ("clip", "detect"):
        if not text and name in params:
            raise ValueError(
                f"the section {name} looks into images that were made from prompts, and without model.pipeline there are none: remove it"
            )
    for where in ("train", "sample"):
        for key in TEXT_KEYS[where]:
            arms = [f"arms.{arm}" for arm in params["arms"] if key in params["arms"][arm].get(where, {})]
            if not text and (places := [*([""] if key in params[where] else []), *(f"{arm}." for arm in arms)]):
                raise ValueError(f"{places[0]}{where}.{key} has no effect without model.pipeline: remove it")
    _check_captions(params)
    for arm, recipe in trained(params).items():
        known = methods.declared()
        if kind not in known[recipe["method"]["name"]]["MODELS"]:
            fitting = [name for name, method in known.items() if kind in method["MODELS"]]
            trains = "a model without captions" if text else "a model with captions, model.pipeline"
            raise ValueError(
                f"arms.{arm}.method.name is {recipe['method']['name']}, which trains {trains}: use one of {', '.join(fitting)}"
            )


def _check_captions(params):
    """Who has the text that stands in the place of captions, and who asks for it."""
    fixed = {arm: section(params, "train", arm).get("caption") == "fixed_text" for arm in trained(params)}
    for arm, is_fixed in fixed.items():
        if is_fixed and not (found := section(params, "train", arm).get("caption_text", "")).strip():
            raise ValueError(
                f"train.caption of {arm} is fixed_text, but train.caption_text is {repr(found) if found else 'missing or empty'}: give "
                "the text that stands in the place of all captions"
            )
        if not is_fixed and "caption_text" in params["arms"][arm]["train"]:
            raise ValueError(f"arms.{arm}.train.caption_text has no effect without caption: fixed_text: remove it")
    if "caption_text" in params["train"] and not any(fixed.values()):
        raise ValueError("train.caption_text has no effect without caption: fixed_text: remove it")


def _check_sample(arm, params):
    """How images of an arm are made, by the model of this or of another arm that is trained here."""
    sample, diffusion, made_by = section(params, "sample", arm), params["diffusion"], maker(params, arm)
    if is_text(params) and "guidance" not in sample:
        raise ValueError("the key sample.guidance is missing (scale of classifier-free guidance; 1: none)")
    mitigation, data = sample.get("mitigation", {}), params["data"]
    if (
        mitigation.get("name") == "wen"
        and "target" not in mitigation
        and not {"num_train", "heldout_share"} & data.keys()
    ):
        raise ValueError(
            f"sample.mitigation of {arm} has no target, and no image is held out from whose captions it could be computed: set "
            "data.heldout_share, or give sample.mitigation.target"
        )
    if not section(params, "train", made_by)["ema_decay"] and "ema" in sample["weights"]:
        raise ValueError(
            f"train.ema_decay of {made_by} is 0, so no averaged weights are kept, but sample.weights of {arm} names ema: set it to [raw]"
        )
    if diffusion and 2 * sample["num_steps"] > diffusion["num_timesteps"]:
        raise ValueError(
            f"sample.num_steps of {arm} is {sample['num_steps']}, expected at most half of diffusion.num_timesteps = "
            f"{diffusion['num_timesteps']}: DDIM visits every n-th timestep, n at least 2"
        )
    num_batches = -(-sample["num_images"] // sample["batch_size"])
    if sample["parts"] > num_batches:
        raise ValueError(
            f"sample.parts of {arm} is {sample['parts']}, but its {sample['num_images']} images in batches of "
            f"{sample['batch_size']} are {num_batches} batches: use at most {num_batches} parts"
        )


def _check_length(arm, params):
    own = params["arms"][arm]["train"]
    found = [key for key in ("epochs", "steps") if key in section(params, "train", arm)]
    if not found:
        raise ValueError(f"the key arms.{arm}.train.epochs is missing (or steps: how long a round is)")
    if len(found) > 1:
        raise ValueError(
            f"both epochs and steps say how long a round of {arm} is: give one of them (arms.{arm}.train = {own})"
        )


def _check_generator(arm, params):
    recipe = params["arms"][arm]
    generator = recipe.get("generator")
    if generator is None:
        return
    kinds = [kind for kind in (*elsewhere.KINDS, "arm") if kind in generator]
    if len(kinds) != 1:
        raise ValueError(
            f"arms.{arm}.generator has {' and '.join(kinds) or 'no source of images'}, expected one of folder, file, pipeline and arm"
        )
    if kinds == ["arm"] and generator["arm"] not in trained(params):
        raise ValueError(
            f"arms.{arm}.generator.arm is {generator['arm']}, expected one of the arms that are trained here: "
            f"{', '.join(trained(params)) or 'there is none'}"
        )
    if "resize" in generator and kinds != ["folder"]:
        raise ValueError(f"arms.{arm}.generator.resize has no effect on a {kinds[0]}: remove it")
    if kinds == ["arm"]:
        return
    for key in recipe["sample"]:
        if key not in (("num_images", "batch_size", "num_steps") if kinds == ["pipeline"] else ("num_images",)):
            raise ValueError(f"arms.{arm}.sample.{key} has no effect on the images of a {kinds[0]}: remove it")


def _check_finite(value, key):
    """YAML knows .nan and .inf; only the R of TAA may be infinite."""
    if isinstance(value, dict):
        for name, below in value.items():
            _check_finite(below, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for below in value:
            _check_finite(below, key)
    elif isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and not key.endswith(".taa.R"))):
        raise ValueError(f"{key} is {value}, expected a finite number")


def _check_data(data):
    name = data["name"]
    entry = image_sets.SETS[name]
    for key in entry.needs:
        if key not in data:
            raise ValueError(f"the key data.{key} is missing: data.name {name} needs it")
    if data.get("download") and not entry.download:
        raise ValueError(f"data.download cannot fetch {name}: {entry.obtain}; remove data.download")
    for key in data:
        if key not in ("name", "split_seed", "download", *entry.needs, *entry.takes):
            raise ValueError(f"data.{key} has no effect for data.name {name}: remove it")
    if "num_train" in data and "heldout_share" in data:
        raise ValueError("data.num_train and data.heldout_share both say what is held out: give one of them")
