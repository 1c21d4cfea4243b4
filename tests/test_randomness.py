"""Keys of the random draws: what they are made of, that no two are alike, and the numbers they have always given."""

import ast
import pathlib
import re

import numpy as np
import pytest
import torch

from stages import randomness

STAGES = pathlib.Path(__file__).parents[1] / "stages"
KEYS = {  # how many numbers follow the purpose, as the table in randomness.py says
    "split": 1, "shard": 1, "init": 1, "order": 3, "noise": 3, "flip": 3, "dropout": 3, "augment": 3, "ties": 3,
    "sample": 2, "reference": 1, "class": 2, "added_noise": 3, "poisson": 3, "dp_noise": 3, "mask": 2, "sigma": 3,
    "sample_mask": 2, "loss_noise": 3, "other_images": 1, "skip_ties": 1, "move_pairs": 1, "quality": 1,
    "quality_heldout": 1, "membership": 1, "copying": 1, "halves": 1,
    "prompt_words": 2, "embedding_noise": 2, "detect": 1, "told_augmentation": 3, "fixed_noise": 2,
    "timestep_focus": 3, "posterior": 3, "caption": 3, "caption_noise": 3, "text_noise": 3, "prompts": 1, "second_noise": 3,
}  # fmt: skip


def test_purposes_have_the_numbers_they_always_had():
    published = [
        "split",
        "shard",
        "init",
        "order",
        "noise",
        "flip",
        "dropout",
        "augment",
        "ties",
        "sample",
        "reference",
    ]
    assert list(randomness.PURPOSES)[: len(published)] == published
    assert [randomness.PURPOSES[name] for name in published] == list(range(1, len(published) + 1))
    assert len(set(randomness.PURPOSES.values())) == len(randomness.PURPOSES)


@pytest.mark.parametrize(
    ("purpose", "key", "expected"),
    [
        ("split", (0,), 7434755675892716031),
        ("noise", (0, 3, 1234), 15617376290390090791),
        ("sample", (7, 65535), 7683996207765173482),
    ],
)
def test_seeds_never_change(purpose, key, expected):
    # Pinned: a change here changes every result. numpy's own 64-bit word of the same sequence says the same.
    words = np.random.SeedSequence([randomness.PURPOSES[purpose], *key]).generate_state(1, np.uint64)
    assert randomness.seed_of(purpose, *key) == int(words[0]) == expected


def test_every_part_of_a_key_counts():
    keys = [(a, b, c) for a in range(4) for b in range(4) for c in range(4)]
    seeds = {randomness.seed_of(p, *key[:n]) for p, n in KEYS.items() for key in keys}
    assert len(seeds) == sum(4**n for n in KEYS.values())
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_generators_are_local_and_repeat():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = randomness.numpy_generator("order", 1, 2, 3).permutation(50)
    assert np.array_equal(first, randomness.numpy_generator("order", 1, 2, 3).permutation(50))
    assert not np.array_equal(first, randomness.numpy_generator("order", 1, 2, 4).permutation(50))
    x = torch.rand(50, generator=randomness.torch_generator("cpu", "flip", 1, 2, 3))
    assert torch.equal(x, torch.rand(50, generator=randomness.torch_generator("cpu", "flip", 1, 2, 3)))
    assert not torch.equal(x, torch.rand(50, generator=randomness.torch_generator("cpu", "augment", 1, 2, 3)))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_a_key_is_made_of_numbers_and_a_known_purpose():
    with pytest.raises((TypeError, ValueError)):
        randomness.seed_of("noise", "iet_agc_plus", 0, 0)  # the name of an arm
    with pytest.raises(KeyError):
        randomness.seed_of("nois", 0, 0, 0)


def _draws():
    """(file, purpose, source of the key's parts) of every keyed draw in stages/."""
    for path in sorted(STAGES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            first = {"seed_of": 0, "numpy_generator": 0, "torch_generator": 1}.get(node.func.attr)
            if first is not None and isinstance(node.args[first], ast.Constant):
                yield path.name, node.args[first].value, [ast.unparse(part) for part in node.args[first + 1 :]]


def test_no_draw_depends_on_arm_or_round():
    draws = list(_draws())
    # Is one missing, the search above has gone blind. "method" is for methods that are added: none here draws from it.
    assert {purpose for _, purpose, _ in draws} == set(KEYS) and "method" in randomness.PURPOSES
    for file, purpose, parts in draws:
        named = " ".join(parts)
        assert not re.search(r"\b(arm|run|part)\b", named), f"{file} draws {purpose} with {named}"
        if purpose != "ties":  # the one draw that is made once a round
            assert "round" not in named, f"{file} draws {purpose} with {named}"
        if not any(part.startswith("*") for part in parts):
            assert len(parts) == KEYS[purpose], f"{file} draws {purpose} with {named}"
