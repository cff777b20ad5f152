"""Transfer learning: a pre-trained PRIME-DP with a new head for our labels, and which of its weights may move.

The recipes are those of the paper's family: the head alone; the head and everything called an embedding (convolutions,
recurrent layer, task table), as the authors did on a mine; everything, the deeper the layer the smaller its step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from agent.atomic import replacing
from agent.errors import BundleError, ConfigError
from agent.types import LABELS
from quantize.train.prime_dp import PrimeDP

Recipe: TypeAlias = Literal["head", "embeddings", "all"]
RECIPES: tuple[Recipe, ...] = ("head", "embeddings", "all")
Pool: TypeAlias = Literal["first", "mean"]

_SCALES = {"embedding_wave": 0.3, "emb_pos": 0.5, "embedding_info": 0.5, "transformer": 0.7}
"""Learning rate of a part as a share of the head's, in the recipe ``all``."""


class EventTeacher(nn.Module):
    """Logits ``[N, 5]`` in the order of ``LABELS`` from windows ``[N, 3, 1, 10240]``.

    ``pool``: the head reads the token under the published event head (``first``), or the mean of all wave tokens too
    (``mean``).
    """

    def __init__(self, prime: PrimeDP, pool: Pool = "first", dropout: float = 0.2) -> None:
        super().__init__()
        self.prime = prime
        self.pool = pool
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(prime.width * (2 if pool == "mean" else 1), len(LABELS))
        # What no event answer passes through would only be carried along.
        for name in [name for name, _ in prime.named_children() if name.startswith("decoder_")]:
            delattr(prime, name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.dropout(self.features(x)))
        return logits

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """What the head reads, ``[N, width]`` or ``[N, 2 width]``."""
        if self.pool == "first":
            return self.prime.features(x.squeeze(2))
        hidden = self.prime.hidden(x.squeeze(2))
        return torch.cat([hidden[:, :, 0], hidden[:, :, :-6].mean(dim=2)], dim=1)

    def train(self, mode: bool = True) -> EventTeacher:
        """Frozen parts stay in evaluation mode: their statistics must not drift, their dropout must not act."""
        super().train(mode)
        for part in self.prime.children():
            if not any(p.requires_grad for p in part.parameters()):
                part.eval()
        return self


def prepare_transfer(teacher: EventTeacher, recipe: Recipe, weight_decay: float) -> list[dict[str, Any]]:
    """Freeze what the recipe does not train; returns the optimiser's groups with their ``scale`` for ``fit``.

    Raises:
        ConfigError: no such recipe.
    """
    if recipe not in RECIPES:
        raise ConfigError(f"there is no recipe {recipe!r}", f"choose one of {', '.join(RECIPES)}")
    groups: list[dict[str, Any]] = [{"params": list(teacher.head.parameters()), "weight_decay": weight_decay}]
    for name, part in teacher.prime.named_children():
        trained = recipe == "all" or (recipe == "embeddings" and "emb" in name)
        part.requires_grad_(trained)
        if trained:
            groups.append({"params": list(part.parameters()), "weight_decay": weight_decay, "scale": _SCALES[name]})
    return groups


def save_teacher(path: Path, teacher: EventTeacher, notes: dict[str, Any]) -> None:
    """Write the weights and what they are (plain values), atomically."""
    content = {"variant": teacher.prime.variant, "pool": teacher.pool, "state": teacher.state_dict(), "notes": notes}
    with replacing(path) as file:
        torch.save(content, file)


def load_teacher(path: Path) -> EventTeacher:
    """A teacher in evaluation mode.

    Raises:
        BundleError: the file is missing, is no teacher's, or its weights do not fit.
    """
    hint = "point to a teacher.pt that `python -m quantize transfer` wrote"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        teacher = EventTeacher(PrimeDP(content["variant"]), content["pool"])
        teacher.load_state_dict(content["state"])
    except FileNotFoundError:
        raise BundleError(f"{path} does not exist", hint) from None
    except Exception as error:  # a dozen types mean the same; their text recommends to run the code in the file
        raise BundleError(f"{path} is no transferred teacher ({type(error).__name__})", hint) from error
    return teacher.eval()
