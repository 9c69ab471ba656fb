"""What Python runs first in nnU-Net's processes: it defines two operators that torchvision expects of its own build.

Beside the CPU build of torch they are missing, and `import torchvision` fails. nnU-Net calls neither of them.
"""

import torch

for name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
