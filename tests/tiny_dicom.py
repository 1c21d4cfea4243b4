"""DICOM files of a few elements, and a stand-in for pydicom, which is not among the packages of this project: it reads these files."""

import struct
import types

import numpy as np

TAGS = {  # keyword -> tag, value representation
    "PatientName": (0x00100010, "PN"),
    "SamplesPerPixel": (0x00280002, "US"),
    "PhotometricInterpretation": (0x00280004, "CS"),
    "NumberOfFrames": (0x00280008, "IS"),
    "Rows": (0x00280010, "US"),
    "Columns": (0x00280011, "US"),
    "BitsAllocated": (0x00280100, "US"),
    "BitsStored": (0x00280101, "US"),
    "PixelRepresentation": (0x00280103, "US"),
    "WindowCenter": (0x00281050, "DS"),
    "WindowWidth": (0x00281051, "DS"),
    "RescaleIntercept": (0x00281052, "DS"),
    "RescaleSlope": (0x00281053, "DS"),
    "VOILUTFunction": (0x00281056, "LO"),
    "PixelData": (0x7FE00010, "OW"),
}
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"


def _element(tag, vr, value):
    value = value if isinstance(value, bytes) else str(value).encode()
    value += (b" " if vr not in ("OW", "UI", "US") else b"\0") * (len(value) % 2)
    length = b"\0\0" + struct.pack("<I", len(value)) if vr in ("OB", "OW") else struct.pack("<H", len(value))
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode() + length + value


def write(path, pixels, photometric="MONOCHROME2", **attributes):
    """pixels: [H,W] int16 or uint16, [F,H,W] of several frames, or [H,W,3] uint8; values of several windows are lists."""
    colour = pixels.dtype == np.uint8
    height, width = pixels.shape[:2] if colour else pixels.shape[-2:]
    attributes = {
        "PatientName": "Doe^Jane",
        "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": photometric,
        "Rows": height,
        "Columns": width,
        "BitsAllocated": 8 * pixels.itemsize,
        "BitsStored": 8 * pixels.itemsize,
        "PixelRepresentation": int(pixels.dtype == np.int16),
        **({"NumberOfFrames": len(pixels)} if pixels.ndim == 3 and not colour else {}),
        **attributes,
        "PixelData": pixels.tobytes(),
    }
    content = b"\0" * 128 + b"DICM" + _element(0x00020010, "UI", EXPLICIT_LITTLE)
    for name, value in sorted(attributes.items(), key=lambda item: TAGS[item[0]][0]):
        tag, vr = TAGS[name]
        packed = struct.pack("<H", value) if vr == "US" else value
        packed = "\\".join(map(str, value)) if isinstance(value, list) else packed
        content += _element(tag, vr, packed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


class _Dataset:
    def __init__(self, values):
        self.values = values

    def get(self, name, default=None):
        return self.values.get(name, default)

    @property
    def pixel_array(self):
        kind = "u1" if self.get("BitsAllocated") == 8 else ("<i2" if self.get("PixelRepresentation") else "<u2")
        shape = [self.get("Rows"), self.get("Columns")]
        shape = [*shape, 3] if self.get("SamplesPerPixel") == 3 else shape
        shape = [self.get("NumberOfFrames"), *shape] if self.get("NumberOfFrames") else shape
        return np.frombuffer(self.get("PixelData"), kind).reshape(shape)


def dcmread(path):
    with open(path, "rb") as stream:
        content = stream.read()
    if content[128:132] != b"DICM":
        raise KeyError(
            "File is missing DICOM File Meta Information header of Doe^Jane"
        )  # pydicom's own class is no ValueError either
    names, values, at = {tag: name for name, (tag, _) in TAGS.items()}, {}, 132
    while at < len(content):
        high, low, vr = *struct.unpack_from("<HH", content, at), content[at + 4 : at + 6].decode()
        long = vr in ("OB", "OW")
        (length,) = struct.unpack_from("<I" if long else "<H", content, at + (8 if long else 6))
        at += 12 if long else 8
        value, at = content[at : at + length], at + length
        if vr == "US":
            (value,) = struct.unpack("<H", value)
        elif vr in ("DS", "IS"):
            numbers = [float(text) for text in value.decode().split("\\")]
            value = numbers if len(numbers) > 1 else numbers[0]
            value = int(value) if vr == "IS" else value
        elif not long:
            value = value.decode().strip()
        values[names.get(high << 16 | low, "TransferSyntaxUID")] = value
    return _Dataset(values)


def module():
    """What `import pydicom` finds in the tests."""
    stand_in = types.ModuleType("pydicom")
    stand_in.dcmread = dcmread
    return stand_in
