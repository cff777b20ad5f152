"""The teacher must be the published network to the last rounding: its weights mean nothing in any other graph."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import learning_support
import numpy as np
import pytest
import torch
from torch import nn

from agent.errors import ConfigError, DataError
from quantize.train.prime_dp import TASKS, VARIANTS, Attention, PrimeDP, Transformer, TransformerLayer
from quantize.train.teacher_check import (
    CHECKED,
    TOLERANCE,
    Agreement,
    check,
    facts_folder,
    fill,
    fill_value,
    manifest,
    reference_input,
    table,
)

pytestmark = learning_support.TRAIN

EVENT_LOGITS = {
    "tinny": (1.32041, 0.68901, -0.67429, -1.09188, 0.63981, -1.67468, 1.36782, -0.62341),
    "middle": (-0.77448, -0.47297, -1.24111, 0.09414, -2.84738, 1.08084, -1.52062, 2.00440),
}
"""The original's event logits for the first reference window under name-derived weights, to five decimals."""

MANIFESTS = {
    "tinny": "03f6260e036c741ea53d7823d88051254afea8af8633a9bdb7a3a9fadf16ecc9",
    "middle": "7b7ab922b3054b947c3b0d3efbe4aae740f08794c06fc5bfd963e72142d38560",
    "rnn": "20f6add6f5940135d502adafff9a0c5e0bfc5777a48ad6f4d355b5efe03cddc6",
    "picker": "e0b436909498476b8a399c47c8624b4de18d40cfe5f6fe82a2a45e03d39e8bbf",
}
"""SHA-256 over the original's state-dict entries: name, shape, dtype and kind, a line each, in order."""

ROUNDED = TOLERANCE + 5e-6


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads on a busy machine wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _network(variant: str, dropout: float = 0.1) -> PrimeDP:
    torch.manual_seed(0)
    return PrimeDP(variant, dropout).eval()


def _windows(count: int = 2, samples: int = 640) -> torch.Tensor:
    return torch.from_numpy(reference_input()[:, :, 2048 : 2048 + samples].copy()).repeat(count // 2, 1, 1)


def _reference_window() -> torch.Tensor:
    return torch.from_numpy(reference_input()[:1])


# Agreement with the original


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_dict_is_that_of_the_original(variant: str) -> None:
    """A name, shape, dtype or place that differs would keep a published checkpoint from loading."""
    with torch.device("meta"):
        entries = manifest(PrimeDP(variant))
    text = "\n".join(f"{name} {list(shape)} {dtype} {kind}" for name, shape, dtype, kind in entries)
    assert hashlib.sha256(text.encode()).hexdigest() == MANIFESTS[variant]


def test_fill_gives_the_documented_values() -> None:
    value = fill_value("embedding_info.weight", (32, 256))
    assert value.dtype == np.float32
    assert (float(value[0, 0]), float(value[-1, -1])) == pytest.approx((-0.3158766, 0.4579803), abs=1e-7)
    assert float(value.astype(np.float64).sum()) == pytest.approx(136.51557, abs=1e-5)


@pytest.mark.parametrize("variant", CHECKED)
def test_event_logits_equal_the_documented_ones(variant: str) -> None:
    """Agreement that needs no file beside the repository."""
    model = fill(PrimeDP(variant))
    with torch.inference_mode():
        np.testing.assert_allclose(model.event_logits(_reference_window())[0], EVENT_LOGITS[variant], atol=ROUNDED)


@pytest.mark.slow
@pytest.mark.parametrize("variant", CHECKED)
def test_every_stored_output_agrees(variant: str) -> None:
    """All outputs, activations, the choice of tasks and the short window, and no stored array left out."""
    folder = facts_folder()
    path = folder / f"reference.{variant}.npz"
    if not path.exists():
        pytest.skip(f"{path.name} is not in {folder} (set TALUS_FACTS)")
    rows = check(folder, [variant])
    assert [row for row in rows if not row.agrees] == []
    with np.load(path) as stored:
        assert {row.output for row in rows if row.variant == variant} >= set(stored.files) - {"task_id"} | {"manifest"}


def test_the_table_says_what_differs() -> None:
    rows = [Agreement("tinny", "phase", 1e-6), Agreement("tinny", "wave", 3e-5)]
    text = table(rows).splitlines()
    assert "DIFFERS" not in text[1]
    assert text[2].endswith("DIFFERS")
    assert text[3].startswith("1 of 2 differ")
    assert table(rows[:1]).splitlines()[-1].startswith("all 1 agree")


def test_a_folder_without_facts_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("facts")
    with pytest.raises(DataError, match=r"state_dict\.tinny\.json") as caught:
        check(folder)
    assert "TALUS_FACTS" in caught.value.hint


# What would go unnoticed if the comparison above were too coarse


def _exact_gelu_lost(model: PrimeDP) -> None:
    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"


def _layer_norm_eps(model: PrimeDP) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6


def _batch_norm_eps(model: PrimeDP) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eps = 1e-3


def _four_heads(model: PrimeDP) -> None:
    for module in model.modules():
        if isinstance(module, Attention):
            module.heads, module.head_width = 4, model.width // 4


def _other_tasks(model: PrimeDP) -> None:
    weight = model.embedding_info.weight.data
    weight[:TASKS] = weight[1 : TASKS + 1].clone()


@pytest.mark.parametrize("mistake", [_exact_gelu_lost, _layer_norm_eps, _batch_norm_eps, _four_heads, _other_tasks])
def test_a_small_mistake_shows_in_the_logits(mistake: Callable[[PrimeDP], None]) -> None:
    model = fill(PrimeDP("tinny"))
    mistake(model)
    with torch.inference_mode():
        logits = model.event_logits(_reference_window())[0].numpy()
    assert np.abs(logits - EVENT_LOGITS["tinny"]).max() > 2 * ROUNDED


# The traps of the published graph, one by one


class _Through(nn.Module):
    """A context that changes nothing, so that the order of the tokens can be seen."""

    def forward(self, x: torch.Tensor, first: int | None = None) -> torch.Tensor:
        return x[:, :first]


def test_wave_tokens_come_first_and_task_tokens_last() -> None:
    model, x = _network("picker"), _windows()
    model.transformer = _Through()  # type: ignore[assignment]
    with torch.no_grad():
        hidden = model.hidden(x)
        wave = model.emb_pos(model.embedding_wave(x).transpose(1, 2)).transpose(1, 2)
        assert torch.equal(hidden[:, :, :10], wave)
        assert torch.equal(hidden[1, :, 10:].T, model.embedding_info.weight[:TASKS])
        assert torch.equal(model.features(x), wave[:, :, 0])
        chosen = torch.tensor([2, 0, 1])
        info, rest = model.task_hidden(x, chosen)
    assert torch.equal(info, wave[:, :, :3])
    assert torch.equal(rest[0, :, -3:].T, model.embedding_info.weight[chosen])


def test_the_cut_is_made_as_if_the_task_tokens_came_first() -> None:
    """The event head reads token 0; the decoders read tokens 6 to the end and no other."""
    model, x = _network("picker"), _windows()
    with torch.inference_mode():
        out = model(x)
        assert torch.equal(out.event_type, model.decoder_event_type(out.hidden[:, :, 0]))
        moved = out.hidden.clone()
        moved[:, :, :TASKS] += 1
        assert torch.equal(model.decode(moved).phase, model.decode(out.hidden).phase)
        moved = out.hidden.clone()
        moved[:, :, -1] += 1
        change = (model.decode(moved).phase - model.decode(out.hidden).phase).abs().amax(dim=(0, 1))
    assert change[-64:].min() > 0
    assert change[:256].max() == 0


def test_attention_sees_every_token_and_no_position() -> None:
    """Neither mask nor positional table: shuffled tokens give the same result, shuffled."""
    torch.manual_seed(0)
    transformer = Transformer(64, 8, 3, 0.1).eval()
    tokens, order = torch.randn(2, 16, 64), torch.randperm(16)
    with torch.inference_mode():
        torch.testing.assert_close(transformer(tokens[:, order]), transformer(tokens)[:, order], atol=1e-5, rtol=0)


def test_a_layer_is_the_post_norm_layer_of_torch() -> None:
    """Order of the norms, exact GELU, scale and packing, against an implementation that is not ours."""
    torch.manual_seed(0)
    other = nn.TransformerEncoderLayer(64, 8, 64, 0.1, activation="gelu", batch_first=True, norm_first=False).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    ours = TransformerLayer(64, 8, 0.1).eval()
    ours.load_state_dict(other.state_dict())
    tokens = torch.randn(3, 20, 64)
    expected = other(tokens)
    torch.testing.assert_close(ours(tokens), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours(tokens, first=1), expected[:, :1], atol=1e-5, rtol=0)


def test_which_outputs_are_squashed_and_how_often() -> None:
    model, x = fill(PrimeDP("picker")), _windows()
    with torch.inference_mode():
        out, raw = model(x), model.decode(model.hidden(x))
    assert torch.equal(out.phase, raw.phase.softmax(dim=1))
    assert torch.equal(out.wave, raw.wave.tanh())
    assert torch.equal(out.polar, raw.polar)
    assert (out.event_type.sum(dim=1) - 1).abs().min() > 0.1
    assert out.phase.shape == (2, 5, 640)
    assert (out.polar.shape, out.wave.shape, out.hidden.shape) == ((2, 2, 640), (2, 3, 640), (2, 64, 16))


@pytest.mark.parametrize("change", [lambda x: x / 2, lambda x: x + 0.5], ids=["scale", "mean"])
def test_the_network_does_not_normalise_its_input(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Nor does it write into it: scaling is the window preparation's, once."""
    model, x = fill(PrimeDP("picker")), _windows()
    before = x.clone()
    with torch.inference_mode():
        assert (model(change(x)).hidden - model(x).hidden).abs().max() > 0.01
    assert torch.equal(x, before)


# The event path, training, bad input


@pytest.mark.parametrize("variant", VARIANTS)
def test_event_path_gives_the_same_logits_and_feature(variant: str) -> None:
    model, x = _network(variant), _windows()
    with torch.inference_mode():
        full = model(x)
        torch.testing.assert_close(model.event_logits(x), full.event_type, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.features(x), full.hidden[:, :, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", ["picker", "tinny"])
def test_event_path_trains_what_the_full_path_would(variant: str) -> None:
    """Same gradients in training mode, batch statistics included (dropout off, since its draws differ)."""
    model, x, labels = _network(variant, dropout=0.0).train(), _windows(4), torch.tensor([0, 1, 2, 3])
    names, parameters = zip(*model.named_parameters(), strict=True)
    event, full = (
        {
            name: gradient
            for name, gradient in zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True)
            if gradient is not None
        }
        for loss in (
            nn.functional.cross_entropy(logits, labels) for logits in (model.event_logits(x), model(x).event_type)
        )
    )
    trained = ("embedding_wave", "emb_pos", "embedding_info", "transformer", "decoder_event_type")
    assert [name for name in names if name.startswith(trained)] == list(event) == list(full)
    for name, gradient in full.items():
        torch.testing.assert_close(event[name], gradient, atol=1e-5, rtol=1e-3, msg=name)


def test_dropout_acts_in_training_only() -> None:
    model, x = _network("picker"), _windows()
    assert torch.equal(model.event_logits(x), model.event_logits(x))
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    assert not torch.equal(model.event_logits(x), model.event_logits(x))


def test_the_event_path_learns() -> None:
    """Dropout and batch statistics on: the loss falls on four windows."""
    model, x, labels = _network("picker").train(), _windows(4), torch.tensor([0, 1, 0, 1])
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(25):
        loss = nn.functional.cross_entropy(model.event_logits(x), labels)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_default_tasks_are_the_first_six() -> None:
    model, x = _network("picker"), _windows()
    with torch.inference_mode():
        assert torch.equal(model.hidden(x, torch.arange(TASKS)), model.hidden(x))


@pytest.mark.parametrize("shape", [(3, 640), (1, 1, 640), (1, 3, 0), (1, 3, 1000)])
def test_an_input_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    model = _network("picker")
    for call in (model, model.event_logits, model.features):
        with pytest.raises(DataError, match="multiple of 64"):
            call(torch.zeros(shape))


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ConfigError, match="tinny, middle, rnn, picker"):
        PrimeDP("large")
