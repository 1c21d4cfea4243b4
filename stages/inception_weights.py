"""The weights of the Inception network: whether params.yaml names any, whether the file is the right one, what it holds."""

import pickle
import sys
import warnings
from pathlib import Path

from stages.run import weight_files

LEFT_OUT = (
    "the quality phase (FID, KID, precision, recall) is left out, as params.yaml names no Inception weights: add "
    "a section quality with weights: FILE (or download: true), protocols: [pytorch_fid] and batch_size: 64"
)


def wanted(experiment):
    """Whether there is a quality phase: its section names a file of weights, or asks for a download."""
    settings = experiment.get("quality", {})
    return "weights" in settings or settings.get("download", False)


def check(experiment):
    """Looks at the file before anything runs.

    Raises   ValueError: it is not there, would be removed with artifacts/, or has another checksum
    """
    settings = experiment.get("quality", {})
    if "weights" not in settings:
        return
    weight_files.check(
        "quality",
        settings,
        "put the Inception weights there, mend quality.weights, or set download: true in its place",
    )


def load(experiment):
    """The weights, from the file or fetched.

    Returns   dict of name -> float32 array
    Raises    ValueError: the file is missing, another one, damaged, or holds anything but tensors; it cannot be fetched
    """
    import torch

    check(experiment)
    settings = experiment["quality"]
    if "weights" in settings:
        path = Path(settings["weights"])
    else:
        path = _fetched()
        weight_files.check_sum("quality", path, settings)
    refused = f"{path} cannot be read as weights: expected a file of torch that holds tensors by name and nothing else"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kinds of files that it refuses a line later
            state = torch.load(path, map_location="cpu", weights_only=True)  # no code in it runs
    except (pickle.UnpicklingError, RuntimeError, ValueError, LookupError, EOFError, AttributeError, TypeError):
        raise ValueError(refused) from None
    if not (isinstance(state, dict) and all(isinstance(value, torch.Tensor) for value in state.values())):
        raise ValueError(refused)
    return {
        name: value.detach().float().numpy()
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")  # counters that only training reads
    }


def _fetched():
    """torch-fidelity's file in torch's own cache, where torch-fidelity would put it too; fetched where it is not there yet."""
    import torch.hub
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rpartition("/")[2]
    if not path.exists():
        print(f"fetching the Inception weights (91 MiB) from {URL_INCEPTION_V3}", file=sys.stderr)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            start_of_sum = path.stem.rpartition("-")[2]
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), start_of_sum, progress=sys.stderr.isatty())
        except (OSError, RuntimeError) as error:  # no network; another checksum
            raise ValueError(
                f"the Inception weights could not be fetched from {URL_INCEPTION_V3} ({error}): bring the file here by other "
                "means and name it as quality.weights (params.yaml)"
            ) from None
    return path
