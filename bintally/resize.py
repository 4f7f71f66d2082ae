"""The one resize: bilinear with antialiasing, to any width and height."""

import numpy as np
import torch
from jaxtyping import UInt8
from torch.nn import functional as F


def resize(
    decoded: UInt8[np.ndarray, "height width 3"], width: int, height: int
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Resize RGB to this width and height in pixels, whatever that does to the aspect."""
    # The batch axis first: permuted afterwards, the layout stays channels_last, and no copy has to turn it back.
    nchw = torch.from_numpy(decoded)[None].permute(0, 3, 1, 2)
    # What torchvision's v2.resize does on uint8, without its import, which takes every data task a second.
    resized = F.interpolate(nchw, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return resized[0].permute(1, 2, 0).numpy()
