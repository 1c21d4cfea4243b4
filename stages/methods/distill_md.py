"""DistillMD (arXiv 2410.16657): a student learns each image from the teacher that never saw it.

    loss |sg(eps_teacher(x_t, t)) - eps_theta(x_t, t)|^2

The teachers are the models of another arm, trained apart on disjoint shards (shard.combine: predictions; the paper has two). Where there are more
than two, the student learns from the mean of all that did not see the image. They are asked as they are sampled: without dropout, with averaged
weights where such are kept. What is told of the training, such as the loss, is the distance to the teacher.

B batch, C H W image, N images of the training set, K teachers.
"""

import torch

from stages.diffusion import ddpm
from stages.methods import base

SETTINGS = {
    "required": ["teacher"],
    "properties": {
        "teacher": {
            "description": "the arm whose models teach, that of its last round: one with shard.combine: predictions",
            "type": "string",
            "minLength": 1,
        }
    },
}
AUGMENTABLE = False  # its teachers are not told


class Method(base.Method):
    teachers = seen_by = None

    def take_teachers(self, teachers, seen_by):
        """Before the first step.

        teachers   K networks in evaluation mode on the device
        seen_by    [N] int64 on the device: which of them saw an image
        """
        self.teachers, self.seen_by, self.passes = list(teachers), seen_by, 1 + len(teachers)

    @torch.no_grad()
    def taught(self, step, x_t):
        """The mean of what those say that did not see the image: [B,C,H,W] float32. All are asked: so shapes do not depend on the draw."""
        seen_by = self.seen_by[step.ids.to(x_t.device)]
        total = torch.zeros_like(x_t)
        for k, teacher in enumerate(self.teachers):
            said = ddpm.predicted(teacher, x_t, step.t, step.settings["precision"], step.labels)
            total += torch.where((seen_by != k).view(-1, 1, 1, 1), said, 0.0)
        return total / (len(self.teachers) - 1)

    def losses(self, step):
        x_t = ddpm.noised(ddpm.normalise(step.x), step.t, step.eps, step.alpha_bar)
        found = ddpm.predicted(step.network, x_t, step.t, step.settings["precision"], step.labels)
        loss = (found - self.taught(step, x_t)).square().mean(dim=(1, 2, 3))
        return base.Losses(step.counted(loss).mean(), loss.detach())
