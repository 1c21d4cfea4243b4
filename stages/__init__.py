"""The phases of the experiment: `python -m stages.<phase>` runs one instance of one of them."""

import os

# Before numpy or torch start their thread pools. A stage that runs the network sets compute.threads itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")
