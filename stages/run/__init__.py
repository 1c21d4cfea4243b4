"""What runs a stage: command line, locks, checkpoints, devices, files. It knows nothing of what a stage computes."""
