"""PRIME-DP (SeismicXM), the teacher: one network for phases, polarity, waveform and event type of a seismogram.

An independent implementation of the graph behind the published checkpoints (Cai et al. 2025, CT Theory and Applications
34(1), doi 10.15953/j.ctta.2024.162; arXiv 2408.01919). Module names are those of the checkpoints, so that their weights
load as they are. What surprises in it is deliberate, because the weights were trained that way:

- The wave tokens come first and the task tokens last, yet the result is cut as if the task tokens came first. The event
  head reads token 0, the first *wave* token; the decoders read wave tokens 6 onwards followed by the task tokens.
- Position comes only from the recurrent layer before the transformer; attention is full and unmasked.
- Blocks are post-norm (add, then normalise) without a norm at the end; GELU is the exact form; the feed-forward layer
  is no wider than the model.
- The input is not normalised here: the caller hands in windows as the agent's preparation makes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import nn

from agent.errors import ConfigError, DataError

EVENT_TYPES = ("earthquake", "explosion", "collapse", "suspected blast", "other", "suspicious", "volcanic", "")
"""What the eight event logits stand for in the published scripts (eq, ep, ss, sp, ot, se, ve; the last has no name)."""

PHASES = ("background", "Pg", "Sg", "Pn", "Sn")
DOWNSAMPLING = 64
"""Samples per wave token."""

TASKS = 6
"""Task tokens of the default call, and the place of the cut."""

TASK_TABLE = 32


@dataclass(frozen=True, slots=True)
class Variant:
    """Shape of a published size: model width, channels of the encoder (which ends in the width) and of the decoders
    (which start from it), context layers and attention heads; without heads the context is recurrent."""

    width: int
    encoder: tuple[int, ...] = (32, 64, 128, 256, 512)
    decoder: tuple[int, ...] = (512, 256, 128, 64, 64, 32)
    layers: int = 3
    heads: int = 8


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "tinny": Variant(256),
        "middle": Variant(1024),
        "rnn": Variant(1024, layers=2, heads=0),
        "picker": Variant(64, (8, 16, 32, 64, 128), (128, 64, 32, 16, 16, 8), layers=2),
    }
)


def shape_of(variant: str) -> Variant:
    """The shape behind a name.

    Raises:
        ConfigError: no such variant.
    """
    if variant not in VARIANTS:
        raise ConfigError(f"there is no PRIME-DP variant {variant!r}", f"choose one of {', '.join(VARIANTS)}")
    return VARIANTS[variant]


class Decoded(NamedTuple):
    """What the decoders say before softmax and tanh, as training losses want it: phase ``[N, 5, T]``, polarity
    ``[N, 2, T]`` (up, down) and waveform ``[N, 3, T]``."""

    phase: torch.Tensor
    polar: torch.Tensor
    wave: torch.Tensor


class PrimeOutput(NamedTuple):
    """The published outputs in their order: phase probabilities ``[N, 5, T]`` in the order of ``PHASES``, polarity
    logits ``[N, 2, T]`` (up, down), event logits ``[N, 8]`` in the order of ``EVENT_TYPES``, waveform ``[N, 3, T]`` in
    -1..1, and the tokens after the transformer ``[N, width, T/64 + 6]``."""

    phase: torch.Tensor
    polar: torch.Tensor
    event_type: torch.Tensor
    wave: torch.Tensor
    hidden: torch.Tensor


class Layers(nn.Module):
    """Modules in a row under the name ``layers``, as the checkpoints nest them."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*modules)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layers(x)
        return result


def _down(inputs: int, channels: int) -> Layers:
    return Layers(nn.Conv1d(inputs, channels, 5, stride=2, padding=2), nn.BatchNorm1d(channels), nn.GELU())


def _up(inputs: int, channels: int) -> Layers:
    convolution = nn.ConvTranspose1d(inputs, channels, 5, stride=2, padding=2, output_padding=1)
    return Layers(convolution, nn.BatchNorm1d(channels), nn.GELU())


def encoder(channels: tuple[int, ...]) -> Layers:
    """Windows ``[N, 3, T]`` to ``[N, channels[-1], T/64]``, halving the length with each of the six convolutions."""
    return Layers(*map(_down, (3, *channels[:-1]), channels))


def decoder(width: int, channels: tuple[int, ...], outputs: int) -> Layers:
    """Tokens ``[N, width, L]`` to ``outputs`` values a sample, ``[N, outputs, 64 L]``: the encoder's mirror image."""
    return Layers(*map(_up, (width, *channels[:-1]), channels), nn.Conv1d(channels[-1], outputs, 5, padding=2))


class Recurrent(nn.Module):
    """Tokens ``[N, L, width]`` to the same shape: bidirectional LSTM, LayerNorm, a linear map back to the width."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(width, width, num_layers=layers, bidirectional=True, batch_first=True)
        self.cnn = nn.Conv1d(2 * width, width, 1)
        self.layernorm = nn.LayerNorm(2 * width)

    def forward(self, x: torch.Tensor, first: int | None = None) -> torch.Tensor:
        """``first``: how many tokens of the result are wanted; all without it."""
        states = self.layernorm(self.rnn(x)[0][:, :first])
        result: torch.Tensor = self.cnn(states.transpose(1, 2)).transpose(1, 2)
        return result


class Attention(nn.Module):
    """Full multi-head attention with the packed projection (query, key, value) of the checkpoints."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * width, width)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.heads = heads
        self.head_width = width // heads

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """``queries`` ``[N, Q, width]`` look at ``tokens`` ``[N, L, width]``; gives ``[N, Q, width]``."""
        count, _, width = tokens.shape
        weight, bias = self.in_proj_weight, self.in_proj_bias
        q = nn.functional.linear(queries, weight[:width], bias[:width])
        k, v = nn.functional.linear(tokens, weight[width:], bias[width:]).chunk(2, dim=-1)
        q, k, v = (t.reshape(count, -1, self.heads, self.head_width).transpose(1, 2) for t in (q, k, v))
        scores = (q * self.head_width**-0.5) @ k.transpose(-1, -2)
        mixed = self.dropout(scores.softmax(dim=-1)) @ v
        result: torch.Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return result


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each added to its input and then normalised."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads, dropout)
        self.linear1 = nn.Linear(width, width)
        self.linear2 = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, first: int | None = None) -> torch.Tensor:
        """``first``: how many tokens of the result are wanted; every token is looked at all the same."""
        wanted = x[:, :first]
        y = self.norm1(wanted + self.dropout(self.self_attn(wanted, x)))
        z = self.linear2(self.dropout(nn.functional.gelu(self.linear1(y))))
        result: torch.Tensor = self.norm2(y + self.dropout(z))
        return result


class Transformer(nn.Module):
    """Tokens ``[N, L, width]`` to the same shape."""

    def __init__(self, width: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(width, heads, dropout) for _ in range(layers))

    def forward(self, x: torch.Tensor, first: int | None = None) -> torch.Tensor:
        """``first``: how many tokens of the result are wanted; the last layer computes no others."""
        *early, last = self.layers
        for layer in early:
            x = layer(x)
        result: torch.Tensor = last(x, first)
        return result


class PrimeDP(nn.Module):
    """The network of one variant with fresh weights; see ``quantize.train.checkpoint`` for published ones.

    Every input is float32 ``[N, 3, T]`` at 100 Hz (E, N, Z), T a multiple of 64, nominally 10240.

    Raises:
        ConfigError: no such variant.
        DataError: (from every call on windows) an input of another shape.
    """

    def __init__(self, variant: str, dropout: float = 0.1) -> None:
        super().__init__()
        shape = shape_of(variant)
        width = shape.width
        self.variant = variant
        self.width = width
        # The order of these attributes is the order of the entries in the published checkpoints.
        self.embedding_wave = encoder((*shape.encoder, width))
        self.emb_pos = Recurrent(width, layers=1)
        self.embedding_info = nn.Embedding(TASK_TABLE, width)
        self.transformer: Transformer | Recurrent = (
            Transformer(width, shape.heads, shape.layers, dropout) if shape.heads else Recurrent(width, shape.layers)
        )
        self.decoder_phase = decoder(width, shape.decoder, len(PHASES))
        self.decoder_wave = decoder(width, shape.decoder, 3)
        self.decoder_polar = decoder(width, shape.decoder, 2)
        # Only the event type reaches an output; the other heads are there because the checkpoints hold their weights.
        self.decoder_event_mag = nn.Linear(width, 1)
        self.decoder_position_x = nn.Linear(width, 4)
        self.decoder_position_z = nn.Linear(width, 1)
        self.decoder_event_type = nn.Linear(width, len(EVENT_TYPES))
        self.decoder_event_delta = nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> PrimeOutput:
        """Every published output."""
        hidden = self.hidden(x)
        raw = self.decode(hidden)
        event_type = self.decoder_event_type(hidden[:, :, 0])
        return PrimeOutput(raw.phase.softmax(dim=1), raw.polar, event_type, raw.wave.tanh(), hidden)

    def event_logits(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, 8]``: the ``event_type`` of ``forward`` without the work that it does not need."""
        logits: torch.Tensor = self.decoder_event_type(self.features(x))
        return logits

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, width]``: the token under the event head, ``hidden[:, :, 0]`` of ``forward``; for transfer heads."""
        return self._context(x, None, first=1)[:, 0]

    def hidden(self, x: torch.Tensor, task_ids: torch.Tensor | None = None) -> torch.Tensor:
        """All tokens after the transformer, ``[N, width, T/64 + K]``; ``task_ids`` ``[K]`` in 0..31, else 0 to 5."""
        return self._context(x, task_ids).transpose(1, 2)

    def task_hidden(self, x: torch.Tensor, task_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens for a choice of tasks, cut at their number as published: ``[N, width, K]``, ``[N, width, T/64]``."""
        hidden, cut = self.hidden(x, task_ids), len(task_ids)
        return hidden[:, :, :cut], hidden[:, :, cut:]

    def decode(self, hidden: torch.Tensor) -> Decoded:
        """Per-sample logits from the tokens of ``hidden(x)``, whose first six are passed over as published."""
        wave = hidden[:, :, TASKS:]
        return Decoded(self.decoder_phase(wave), self.decoder_polar(wave), self.decoder_wave(wave))

    def _context(self, x: torch.Tensor, task_ids: torch.Tensor | None, first: int | None = None) -> torch.Tensor:
        if x.ndim != 3 or x.shape[1] != 3 or x.shape[2] == 0 or x.shape[2] % DOWNSAMPLING:
            raise DataError(
                f"PRIME-DP was given an input of shape {tuple(x.shape)}",
                f"give windows [N, 3, T], T a multiple of {DOWNSAMPLING} samples at 100 Hz",
            )
        wave = self.emb_pos(self.embedding_wave(x).transpose(1, 2))
        tasks = self.embedding_info.weight[:TASKS] if task_ids is None else self.embedding_info(task_ids)
        tokens = torch.cat([wave, tasks.expand(len(x), -1, -1)], dim=1)
        context: torch.Tensor = self.transformer(tokens, first)
        return context
