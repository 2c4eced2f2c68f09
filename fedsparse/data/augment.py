"""Augmentation of a batch, every draw from one generator."""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def sent(numbers: Tensor, device: torch.device) -> Tensor:
    """The numbers on that device; on the way to a GPU the host waits for nothing."""
    if device.type == "cuda" and numbers.is_cpu:
        return numbers.pin_memory().to(device, non_blocking=True)
    return numbers.to(device)


def crop_flip(images: Tensor, generator: Generator) -> Tensor:
    """Crop at random from a black border of an eighth of the image, then flip left-right with chance 1/2.

    At 32 x 32 this is the usual 4-pixel padded crop for CIFAR (He et al., CVPR 2016, section 4.2).
    The same generator state gives the same images on every device.

    Args:
        images: [b, c, h, w], any dtype, pixels not yet normalised.
        generator: source of all draws; it advances by three draws of b integers.

    Returns:
        Images of the same shape and dtype.
    """
    count, _, height, width = images.shape
    pad = max(1, height // 8)

    def draw(choices: int) -> Tensor:
        picked = torch.randint(choices, (count,), generator=generator, device=generator.device)
        return sent(picked, images.device)

    top, left, flip = draw(2 * pad + 1), draw(2 * pad + 1), draw(2).bool()
    windows = F.pad(images, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)
    cropped = windows[torch.arange(count, device=images.device), :, top, left]
    return torch.where(flip.view(-1, 1, 1, 1), cropped.flip(3), cropped)
