"""The networks that are timed: one that a CPU bears, that of the paper for CIFAR-10 (35.7 M parameters), and one to try a benchmark with."""

NETWORKS = {
    "tiny": {"block_channels": [8, 16], "attention_levels": [], "layers_per_block": 1, "dropout": 0.1, "norm_groups": 4},
    "small": {"block_channels": [32, 64], "attention_levels": [], "layers_per_block": 1, "dropout": 0.0, "norm_groups": 8},
    "cifar10": {"block_channels": [128, 256, 256, 256], "attention_levels": [1], "layers_per_block": 2, "dropout": 0.1,
                "norm_groups": 32},
}  # fmt: skip
