"""The optimiser: Muon for matrices inside the layers, AdamW for everything else.

Muon (K. Jordan and others, 2024, https://kellerjordan.github.io/posts/muon/) makes the momentum of a matrix orthogonal before it is
applied, so that all its directions move alike. Matrices of one size are made so together: they are small here.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

MATRIX_RATE = 0.02
OTHER_RATE = 3e-3
MATRIX_DECAY = 0.02
MOMENTUM = 0.95


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """About the nearest matrices [N, rows, columns] with singular values of one, by Newton and Schulz's iteration in bfloat16."""
    tall = matrices.shape[1] > matrices.shape[2]
    current = (matrices.transpose(1, 2) if tall else matrices).bfloat16()
    current = current / (current.norm(dim=(1, 2), keepdim=True) * 1.01 + 1e-7)
    for _ in range(steps):
        square = current @ current.transpose(1, 2)
        change = torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315)
        current = torch.baddbmm(current, change, current, beta=3.4445)
    return (current.transpose(1, 2) if tall else current).to(matrices.dtype)


class Optimiser:
    """Steps a model's parameters by their gradients; ``scale`` is the place in the schedule, 1 at its height."""

    def __init__(self, model: nn.Module) -> None:
        named = [(name, tensor) for name, tensor in model.named_parameters() if tensor.requires_grad]
        inside = [(n, t) for n, t in named if t.ndim > 1 and ".layers." in n and "ada_rms_norm" not in n]
        inside += [(n, t) for n, t in named if t.ndim > 1 and (".embedder." in n or "projector" in n)]
        self._matrices: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        chosen = set()
        for name, tensor in inside:
            self._matrices[(tensor.shape[0], tensor[0].numel())].append(tensor)
            chosen.add(name)
        self._momentum = {
            size: torch.zeros(len(group), *size, device=group[0].device) for size, group in self._matrices.items()
        }
        self._adam = torch.optim.AdamW(
            [tensor for name, tensor in named if name not in chosen],
            lr=OTHER_RATE,
            betas=(0.9, 0.98),
            weight_decay=0.0,
            fused=True,
        )

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, scale: float) -> None:
        for group in self._adam.param_groups:
            group["lr"] = OTHER_RATE * scale
        self._adam.step()
        for size, group in self._matrices.items():
            gradient = torch.stack([_gradient(tensor).reshape(size) for tensor in group])
            momentum = self._momentum[size]
            momentum.lerp_(gradient, 1 - MOMENTUM)
            update = orthogonal(gradient.lerp_(momentum, MOMENTUM))
            rate = MATRIX_RATE * scale * max(1.0, size[0] / size[1]) ** 0.5
            for tensor, change in zip(group, update, strict=True):
                tensor.mul_(1 - MATRIX_RATE * scale * MATRIX_DECAY)
                tensor.sub_(change.reshape(tensor.shape), alpha=rate)

    def state(self) -> dict[str, Any]:
        return {"adam": self._adam.state_dict(), "momentum": self._momentum}

    def load(self, state: dict[str, Any]) -> None:
        self._adam.load_state_dict(state["adam"])
        for size, momentum in state["momentum"].items():
            self._momentum[size].copy_(momentum)


def _gradient(tensor: nn.Parameter) -> Tensor:
    if tensor.grad is None:
        raise RuntimeError("a parameter has no gradient")
    return tensor.grad
