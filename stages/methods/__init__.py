"""Training methods: arms.<arm>.method.name in params.yaml is the name of a module here, or of a package.

To add a method, copy added_noise.py, give it another name and change what it overrides of base.Method. Nothing else has to
know of it. A module says in plain data, which is read without importing it, what its section of params.yaml may hold:

    SETTINGS      JSON schema of its keys beside `name`: {"required": [...], "properties": {...}}, and maybe oneOf and
                  dependentRequired, which hold lists of keys
    FOCUSABLE     False if it does not go with train.timestep_focus; may be left out
    AUGMENTABLE   False if it does not go with train.told_augmentation; may be left out
    PREDICTS_NOISE  False if the network does not predict the noise on the images themselves, given the timestep: then nothing that asks it
                  for that looks at it, such as amg, membership, the loss by timestep and a release; may be left out
    COUNTS_SKIPS  True if it skips samples and counts that, which MSR moves images by; may be left out
    CHANNELS_LAST  False if it does not go with compute.channels_last; may be left out
    COMPILE       what of compute.compile it can be trained with: "inductor", and "graph" if each step does the same on the device,
                  whatever its draws, and draws nothing itself; inductor alone if left out
    MODELS        kinds of model that it can train: "pixels" (from nothing) and "text" (model.pipeline); pixels alone if left out

What it draws in a step, it draws from randomness.torch_generator(device, "method", *step.key) or numpy_generator("method", *step.key):
then a run that was interrupted ends as one that was not, and all arms of a seed draw alike.
"""

import importlib


def method(settings):
    """The method of an arm.

    settings   section arms.<arm>.method: name, and what SETTINGS of that module lists
    """
    module = importlib.import_module(f"stages.methods.{settings['name']}")
    return module.Method(settings)
