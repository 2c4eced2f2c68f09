"""Bring uint8 images to an asked size and number of channels."""

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


def resize(images: Tensor, size: int, chunk: int = 2048) -> Tensor:
    """Bilinear resize of uint8 [n, c, h, w] to [n, c, size, size], antialiased when it shrinks."""
    if images.shape[2:] == (size, size):
        return images
    out = torch.empty((*images.shape[:2], size, size), dtype=torch.uint8)
    for start in range(0, len(images), chunk):
        part = images[start : start + chunk].float()
        scaled = F.interpolate(part, (size, size), mode="bilinear", align_corners=False, antialias=True)
        out[start : start + chunk] = scaled.round_().clamp_(0, 255).to(torch.uint8)
    return out


def recolour(images: Tensor, channels: int) -> Tensor:
    """uint8 [n, 1 or 3, h, w] with 1 channel (luma) or 3 (grey repeated)."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.repeat(1, 3, 1, 1)
    weights = torch.tensor(LUMA).view(1, 3, 1, 1)
    parts = [(part.float() * weights).sum(1, keepdim=True).round_() for part in images.split(2048)]
    return torch.cat(parts).clamp_(0, 255).to(torch.uint8)
