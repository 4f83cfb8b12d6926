"""What the makers' data sheets say about GPUs that such models are served on."""

from __future__ import annotations

from dataclasses import dataclass

from sizing.shape import SizingError


@dataclass(frozen=True, slots=True)
class Gpu:
    """``memory_gib`` is what the driver shows, less than what the name promises. ``bf16_tflops`` is dense, with sums in 32 bits.

    ``batched_tokens`` is the default bound of one engine step on it.
    """

    name: str
    memory_gib: float
    bf16_tflops: float
    bandwidth_tb_per_second: float
    batched_tokens: int = 2048


GPUS = (
    Gpu("A100-40GB", 40.0, 312, 1.555),
    Gpu("A100-80GB", 80.0, 312, 2.039),
    Gpu("B200", 179.1, 2250, 8.0, 4096),
    Gpu("H100", 79.6, 989, 3.35, 4096),
    Gpu("H100-PCIe", 79.6, 756, 2.0, 4096),
    Gpu("H200", 140.4, 989, 4.8, 4096),
    Gpu("L4", 22.5, 121, 0.3),
    Gpu("L40", 45.0, 181, 0.864),
    Gpu("L40S", 45.0, 362, 0.864),
    Gpu("RTX-4090", 24.0, 165, 1.008),
    Gpu("RTX-5090", 31.8, 210, 1.792),
    Gpu("RTX-6000-Ada", 48.0, 364, 0.960),
    Gpu("RTX-PRO-6000", 95.6, 504, 1.792, 4096),
)


def find_gpu(name: str) -> Gpu:
    """The GPU of that name; letter case, blanks and hyphens do not matter.

    Raises:
        SizingError: listing those that are known.
    """
    wanted = _plain(name)
    for gpu in GPUS:
        if _plain(gpu.name) == wanted:
            return gpu
    raise SizingError(f"the GPU {name!r:.60} is not in the table; known: {', '.join(gpu.name for gpu in GPUS)}")


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
