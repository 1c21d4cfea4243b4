"""What the page shows of private images: how many pictures, and whether by their names. The section report of params.yaml says so."""

import copy

from stages import experiments

PUBLIC = (
    "digits",
    "cifar10",
    "cifar100",
    "fashion_mnist",
    "afhq_dog",
)  # sets that anyone can look at; all others are somebody's own
MOST = 24  # pairs of pictures of an arm: as many as the score phase keeps
PATHS = ("root", "pipeline", "folder", "file", "weights", "model", "table")  # keys whose values are paths


def is_own(settings):
    """Whether the images are somebody's own."""
    return settings["data"]["name"] not in PUBLIC


def num_pictures(settings):
    """How many generated images of each arm are shown beside training images."""
    if "show_images" in (asked := settings.get("report", {})):
        return asked["show_images"]
    if settings.get("similarity", {}).get("show_images", 0) > 0:  # the user has asked for pictures there
        return MOST
    return 0 if is_own(settings) or experiments.is_text(settings) else MOST


def name(settings, key, index):
    """What a training image is called: its key, or its number where report.names is pseudonym."""
    return f"image {index}" if settings.get("report", {}).get("names") == "pseudonym" else str(key)


def for_others(settings):
    """The settings with which the page neither shows nor names an image."""
    found = copy.deepcopy(settings)
    found["report"] = {"show_images": 0, "names": "pseudonym"}
    if "similarity" in found:
        found["similarity"]["show_images"] = 0
    return found


def without_paths(settings):
    """params.yaml without comments, and with dots in the place of paths and of patterns of names: text."""
    import yaml

    def cut(value, key=None):
        if isinstance(value, dict):
            return {k: cut(v, k) for k, v in value.items()}
        return "..." if key in (*PATHS, "pattern", "captions") and isinstance(value, str) else value

    return yaml.safe_dump(cut(settings), sort_keys=False, allow_unicode=True)


def told(settings):
    """Which files of a finished run show or name images: list of lines for the terminal; none for a public set."""
    if not is_own(settings):
        return []
    pictures = num_pictures(settings)
    shown = f"shows up to {pictures} pairs of images an arm and names" if pictures else "shows no image, but may name"
    return [
        f"report.html {shown} images; artifacts/report/leaks.csv and leaks.parquet name them; artifacts/, DVC's cache and its remote hold them.",
        "For a page that neither shows nor names an image: make report-for-others",
    ]
