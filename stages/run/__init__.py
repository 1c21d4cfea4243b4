"""Runs stages: command line, locks, checkpoints, devices, files. Nothing here depends on what a stage computes."""
