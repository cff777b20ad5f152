"""The STFT network that the landslide paper compares PRIME-DP with.

As far as its published script tells: vertical component alone; magnitudes of a short-time Fourier transform (256
samples, hop 128, rectangular, centred with reflection, 129 x 81); scaled to their maximum; brought to 32 x 32 by
nearest neighbours; three convolutions 3 x 3 (32, 64, 128 channels) with ReLU and halving; a hidden layer of 1024.
The script scales by the maximum of the whole batch, so that an answer depends on its neighbours; here each window has
its own. The last layer has our five labels.
"""

from __future__ import annotations

import torch
from torch import nn

from agent.types import LABELS

_SIZE, _HOP, _GRID = 256, 128, 32


class StftNetwork(nn.Module):
    """Logits ``[N, 5]`` from windows ``[N, 3, 1, 10240]``, of which it reads the vertical."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(inputs, outputs, 3), nn.ReLU(), nn.MaxPool2d(2)]
        self.classifier = nn.Sequential(*layers)
        self.out = nn.Sequential(nn.Flatten(), nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, len(LABELS)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.out(self.classifier(spectrogram(x[:, 2, 0])))
        return logits


def spectrogram(vertical: torch.Tensor) -> torch.Tensor:
    """Signals ``[N, T]`` to magnitudes ``[N, 1, 32, 32]`` in 0..1, frequency rising along the third axis."""
    spectrum = torch.stft(
        vertical.float(),
        _SIZE,
        _HOP,
        window=torch.ones(_SIZE, device=vertical.device),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    magnitude = spectrum.abs()
    magnitude = magnitude / (magnitude.amax(dim=(1, 2), keepdim=True) + 1e-6)
    return nn.functional.interpolate(magnitude[:, None], size=(_GRID, _GRID), mode="nearest")
