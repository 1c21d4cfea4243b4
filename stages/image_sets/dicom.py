"""Reads DICOM files, where pydicom is installed: the pixels and what says how they are shown, and no other attribute."""

import logging
import math

import numpy as np

SUFFIXES = {".dcm", ".dicom"}
MAGIC, MAGIC_AT = b"DICM", 128
INSTALL = "DICOM is read where pydicom is installed: pip install pydicom"
COMPRESSED = "mend it, or install what pydicom needs for compressed pixels (pip install pylibjpeg pylibjpeg-libjpeg), or remove it"


class RefusedError(ValueError):
    """A file that is not read: `what` is said of it, `advice` is what to do."""

    def __init__(self, what, advice):
        super().__init__(f"{what}: {advice}")
        self.what, self.advice = what, advice


def is_dicom(path):
    """Whether a file is DICOM by its suffix or, where its name has none, by its first bytes. The dotted numbers that DICOM names files by
    are no suffix."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return True
    if suffix and not suffix[1:].isdigit():
        return False
    try:
        with open(path, "rb") as stream:
            return stream.read(MAGIC_AT + len(MAGIC))[MAGIC_AT:] == MAGIC
    except OSError:
        return False


def is_installed():
    """Whether pydicom can be imported."""
    try:
        import pydicom  # noqa: F401
    except ImportError:
        return False
    return True


def read(path):
    """The first frame of a DICOM file.

    The sentences of pydicom may quote attributes of a patient, so none of them is passed on.

    Returns   pixels     [H,W] float64 after rescale slope and intercept, or [H,W,3] uint8
              window     (lowest, highest): what becomes black and white by the first window of the file, None where it has none
              inverted   True for MONOCHROME1, whose lowest value is white
              frames     number of frames
    Raises    RefusedError: damaged, compressed in a way that pydicom cannot read here, or shown in a way that is not known here
    """
    import pydicom

    logging.getLogger("pydicom").disabled = True
    try:
        file = pydicom.dcmread(path)
        photometric, frames = str(file.get("PhotometricInterpretation")), int(file.get("NumberOfFrames") or 1)
        tables = [name for name in ("ModalityLUTSequence", "VOILUTSequence") if file.get(name)]
        centre, width = file.get("WindowCenter"), file.get("WindowWidth")
        window = None if centre is None or width is None else _window(file, _first(centre), _first(width))
        slope, intercept = (
            _first(file.get(f"Rescale{name}", value)) for name, value in (("Slope", 1), ("Intercept", 0))
        )
        pixels = np.asarray(file.pixel_array)
    except RefusedError:
        raise
    except Exception as error:  # pydicom and its decoders raise of all kinds
        raise RefusedError(f"is not a readable DICOM image (pydicom: {type(error).__name__})", COMPRESSED) from None
    pixels = pixels[0] if frames > 1 else pixels
    if photometric == "RGB" and pixels.dtype == np.uint8 and pixels.ndim == 3:
        return pixels, None, False, frames
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or pixels.ndim != 2:
        shown = (
            photometric
            if photometric in ("PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
            else "another one"
        )
        raise RefusedError(
            f"has the photometric interpretation {shown}, expected MONOCHROME1, MONOCHROME2, or RGB of 8 bits",
            "export it as PNG or remove it",
        )
    if "ModalityLUTSequence" in tables or (tables and window is None):
        raise RefusedError(
            "is shown by a lookup table, expected a window or plain values", "export it as PNG or remove it"
        )
    return pixels * slope + intercept, window, photometric == "MONOCHROME1", frames


def _first(value):
    """The first of several numbers, as of windows, or the only one."""
    return float(np.ravel(value)[0])


def _window(file, centre, width):
    """The ends of the ramp from black to white (DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3)."""
    function = str(file.get("VOILUTFunction") or "LINEAR")
    if function not in ("LINEAR", "LINEAR_EXACT") or not (math.isfinite(centre) and width > 0):
        raise RefusedError("has a window that is not linear", "export it as PNG or remove it")
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    return centre - width / 2, centre + width / 2
