"""The phases of the experiment: `python -m stages.<phase>` runs one instance of one of them.

Three floors, whose imports go down only: the phases (the modules here, and report/); the mathematics (iet/, methods/, diffusion/, pixels/, text/,
measures/, image_sets/, randomness.py); what runs a stage (run/). CONTRIBUTING.md has the map.
"""

import os

# Before numpy or torch start their thread pools. A stage that runs the network sets compute.threads itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# TAA's second pass has another batch size at nearly every step, and oneDNN compiles each convolution anew for a size that has
# left its cache (1,024 kernels by default, about 13 sizes of a small UNet): 58 against 29 ms a step, measured.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
