"""Tiny Stable Diffusion folders for tests: `build(folder, config="C" | "D", prediction_type="epsilon", seed=0)`."""

from stages.tiny_sd import build, tokenizer, toy_images  # noqa: F401
