"""Training steps of the CIFAR ResNet-18: one model, masked, captured in a graph, or many clients in one launch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsparse.models import build

from .bench import Bench, relative_error

CLASSES = 10
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4
# Of a first step's change of the weights. A wrong gradient is off by 1; ReLU and batch norm magnify rounding.
STEP_LIMITS = {"fp32": 1e-2, "tf32": 0.15, "bf16": 0.5}
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def network(bench: Bench, seed: int = 0) -> nn.Module:
    """ResNet-18 for 32 x 32 images in 10 classes (a thin one in a smoke test), on the CPU in float32.

    Not thinner: on a CPU without AVX-512, oneDNN (in torch 2.11) writes outside its buffers in the weight gradient of
    a channels_last 1x1 convolution with stride 2 and fewer than 8 channels; the process crashes, hangs or goes on with
    wrong numbers.
    """
    torch.manual_seed(seed)
    return build("resnet18", CLASSES, image_size=bench.size(32, 16), width=0.125 if bench.smoke else 1.0)


def with_layout(model: nn.Module, layout: str) -> nn.Module:
    """The model with its 4-D weights in one of `LAYOUTS`."""
    return model.to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]


def batch_of(bench: Bench, batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images [batch, 3, 32, 32] and labels int64 [batch] on the device."""
    side = bench.size(32, 16)
    images = bench.random(batch, 3, side, side, seed=seed)
    generator = torch.Generator(bench.device).manual_seed(seed)
    return images, torch.randint(CLASSES, (batch,), generator=generator, device=bench.device)


def random_masks(model: nn.Module, density: float) -> dict[str, Tensor]:
    """A bool mask for every convolution's weight, by parameter name."""
    generator = torch.Generator().manual_seed(7)
    return {
        f"{name}.weight": torch.rand(module.weight.shape, generator=generator) < density
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    }


def apply_masks(model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    """Zero the weights outside the masks, in place."""
    with torch.no_grad():
        for name, mask in masks.items():
            parameter = model.get_parameter(name)
            parameter.mul_(mask.to(parameter.device))
    return model


def at_least_float32(logits: Tensor) -> Tensor:
    """Half types widened: losses are summed in float32 or float64."""
    return logits if logits.dtype == torch.float64 else logits.float()


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy."""
    return F.cross_entropy(at_least_float32(logits), labels)


@dataclass
class TrainingStep:
    """Forward, loss, backward and SGD with momentum on one fixed batch; calling it takes one step.

    Attributes:
        model: on the device.
        images, labels: the batch.
        precision: "fp32", "tf32" or "bf16".
        masks: as `random_masks` gives them; then gradients are masked, which keeps the weights masked.
        forward: what is called on the images, the model itself unless it was compiled.
        loss: of logits and labels.
    """

    bench: Bench
    model: nn.Module
    images: Tensor
    labels: Tensor
    precision: str = "fp32"
    masks: dict[str, Tensor] | None = None
    forward: Callable[[Tensor], Tensor] | None = None
    loss: Callable[[Tensor, Tensor], Tensor] = mean_loss

    def __post_init__(self) -> None:
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.SGD(
            self.parameters, LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY, fused=self.bench.cuda
        )
        for parameter in self.parameters:
            self.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        masked = self.masks or {}
        names = {name for name, _ in self.model.named_parameters()}
        if not masked.keys() <= names:
            raise ValueError(f"masks of unknown parameters: {', '.join(sorted(masked.keys() - names))}")
        self._masked = [self.model.get_parameter(name) for name in masked]
        self._masks = [
            torch.empty_like(parameter, requires_grad=False).copy_(mask)
            for mask, parameter in zip(masked.values(), self._masked, strict=True)
        ]
        # On the host, so that it is no part of the step's peak memory.
        self._start = [tensor.to("cpu", copy=True) for tensor in self._state()]

    def _state(self) -> list[Tensor]:
        momentum = [self.optimizer.state[p]["momentum_buffer"] for p in self.parameters]
        return [p.detach() for p in self.parameters] + list(self.model.buffers()) + momentum

    def restore(self) -> None:
        """Go back to the weights, statistics and momentum it was made with."""
        for tensor, start in zip(self._state(), self._start, strict=True):
            tensor.copy_(start)

    def __call__(self) -> None:
        """Take one training step."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.bench.precision(self.precision):
            with self.bench.autocast(self.precision):
                loss = self.loss((self.forward or self.model)(self.images), self.labels)
            loss.backward()
        if self._masked:
            gradients = [p.grad for p in self._masked if p.grad is not None]
            torch._foreach_mul_(gradients, self._masks)
        self.optimizer.step()

    def initial(self, position: int) -> Tensor:
        """The parameter of that position as it was at the start, on the host."""
        return self._start[position]

    def change(self) -> Tensor:
        """Every parameter's change since the start, float64 on the host, in the order of `parameters()`."""
        pairs = zip(self.parameters, self._start, strict=False)
        return torch.cat([(p.detach().cpu().double() - start).flatten() for p, start in pairs])


def reference_change(
    bench: Bench, model: nn.Module, images: Tensor, labels: Tensor, masks: dict[str, Tensor] | None
) -> Tensor:
    """A first step's change of the parameters in float64, on the host: -lr (gradient + decay * weight), masked.

    At the first step the momentum is the gradient itself.
    """
    wide = copy.deepcopy(model).double()
    with bench.reference():
        mean_loss(wide(images.double()), labels).backward()
    changes = []
    for name, parameter in wide.named_parameters():
        assert parameter.grad is not None
        change = parameter.grad + WEIGHT_DECAY * parameter.detach()
        if masks and name in masks:
            change = change * masks[name].to(change.device)
        changes.append((-LEARNING_RATE * change).flatten().cpu())
    return torch.cat(changes)


def step_error(step: TrainingStep, run: Callable[[], object], reference: Tensor, which: Tensor | None = None) -> float:
    """Relative error of the change that one `run` from the start makes; restores the start before and after.

    which: bool of the reference's shape, the numbers that are compared; all by default.
    """
    step.restore()
    run()
    step.bench.synchronize()
    change = step.change()
    error = relative_error(change, reference) if which is None else relative_error(change[which], reference[which])
    step.restore()
    return error


def captured(bench: Bench, steps: Sequence[TrainingStep]) -> tuple[Callable[[], None], int | None]:
    """Capture one call of each step in a CUDA graph: what replays it, and the peak bytes of the capture."""
    bench.need_cuda("a CUDA graph")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            for step in steps:
                step()
    torch.cuda.current_stream().wait_stream(side)
    for step in steps:
        step.optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()

    def capture() -> None:
        with torch.cuda.graph(graph):
            for step in steps:
                step()

    peak = bench.peak(capture)
    return graph.replay, peak
