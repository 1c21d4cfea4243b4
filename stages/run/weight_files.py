"""Files of weights that params.yaml names: checks that they exist and are the right ones, and reads them."""

import hashlib
import pickle
import warnings
from pathlib import Path

from stages.run import files


def check(section, settings, what_to_do):
    """Looks at the file <section>.weights before anything runs.

    settings     that section of params.yaml: weights, and sha256 where it is to be checked
    what_to_do   where the file is missing, in words
    Raises       ValueError: it is not there, would be removed with artifacts/, or has another checksum
    """
    path = Path(settings["weights"])
    files.check_outside(path, f"{section}.weights = {path}", "the file")
    if not path.is_file():
        raise ValueError(f"the file {section}.weights = {path} does not exist: {what_to_do} (params.yaml)")
    check_sum(section, path, settings)


def check_sum(section, path, settings):
    """Raises ValueError if the section names a sha256 and the file has another."""
    expected = settings.get("sha256")
    if expected is not None and (found := sha256(path)) != expected.lower():
        raise ValueError(
            f"{path} has the sha256 {found}, expected {expected}: put the right file there, or mend {section}.sha256 (params.yaml)"
        )


def sha256(path):
    """Checksum of a file, 64 hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tensors(path):
    """What a file of torch holds, without running any code in it.

    Returns   dict of name -> float32 array
    Raises    ValueError: it holds anything but tensors by name, or is damaged
    """
    import torch

    refused = f"{path} cannot be read as weights: expected a file of torch that holds tensors by name and nothing else"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kinds of files that it refuses a line later
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, LookupError, EOFError, AttributeError, TypeError):
        raise ValueError(refused) from None
    if not (isinstance(state, dict) and all(isinstance(value, torch.Tensor) for value in state.values())):
        raise ValueError(refused)
    return {name: value.detach().float().numpy() for name, value in state.items()}
