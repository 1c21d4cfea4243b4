"""Tiny Stable Diffusion folders for tests: `build(folder, config="C" | "D", prediction_type="epsilon", seed=0)`."""

import diffusers  # noqa: F401 (before the first unconditional network of the process, whose short cut leaves text models none)

from stages.tiny_sd import CONFIGS, build, tokenizer, toy_images  # noqa: F401
