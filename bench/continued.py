"""Whether the shipped network, trained on with the sources that it never learned from, is better where it has not been.

    python bench/continued.py --data ../shared/data --work WORK [--rate 0.0005] [--only final nevada ...]
    python bench/continued.py --data ../shared/data --work WORK --scratch 80000 [--only final]

Its weights are the start. Windows of the sources that it learned from are taught its own answers beside their labels,
so that it keeps what its teachers knew; windows of the others their labels. Only the split `train` is learned from.
Once for the final network, and once for each group of regions left out (some regions together, which saves trainings
and flatters nothing); between the start and what came of it the weights are mixed in several shares.

The table holds each share against the shipped network (share 0), neutral view, whole window, by paired bootstrap over
events: records of the regions left out that the shipped network never learned from, and the split `val`, old sources
and new ones apart. Goes on where it was broken off; processes with other ``--only`` may share the work. ``--scratch``
is the same for a network from fresh weights that learns from labels alone, so many windows, mixed with nothing.
With ``--taught`` it learns the shipped network's answers as well, as the one that is trained on.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from agent.inference.bundle import FP16_MODEL, Bundle, open_bundle
from agent.types import LABELS
from quantize.config import read_config
from quantize.data.bank import Bank
from quantize.data.records import FULL_S, LENGTHS_S
from quantize.data.views import view_windows
from quantize.quantise import infer
from quantize.quantise.export import folded
from quantize.quantise.qdq import widen
from quantize.study.by_region import POOLED, study
from quantize.study.compare import paired_differences
from quantize.study.evaluate import LOWEST, Array, OutOfFold, Truth, fit_confidence, softmax
from quantize.train.fit import FitConfig, Source, fit
from quantize.train.lab import Lab
from quantize.train.methods import module_logits, open_lab, weakly_labelled
from quantize.train.student import Student, StudentConfig

ROOT = Path(__file__).parents[1]
FINAL = "final"
GROUPS: Mapping[str, tuple[str, ...]] = {
    FINAL: (),
    "fennoscandia": ("fennoscandia",),
    "volcano": ("java", "luhu"),
    "nevada": ("nevada", "roadside"),
    "iceland": ("iceland", "bolivia", "field_sites", "reunion"),
}
"""What is left out together: the regions with 15 records of a class in which there are sources that the shipped network
never learned from."""
MIXED = (0.0, 0.25, 0.5, 0.75, 1.0)
FRESH = FitConfig(learning_rate=2e-3, soft=1.0, temperature=1.0)
UNSURE = 0.6
CHUNK = 256
MEASURED = 1024
"""Training windows whose statistics the norms start from."""


def unfolded(network: onnx.ModelProto, config: StudentConfig, windows: NDArray[np.float32]) -> Student:
    """The student that computes what the FP32 graph ``network`` does, its batch norms set from ``windows`` ``[n, 3,
    10240]``: in training they begin where they would have been."""
    weights = {w.name: torch.from_numpy(numpy_helper.to_array(w).copy()) for w in network.graph.initializer}
    student, x = Student(config), torch.from_numpy(windows)[:, :, None]
    with torch.no_grad():
        for number, stage in enumerate(student.stages):
            for place, part in enumerate(stage.children()):
                if isinstance(part, nn.Conv2d):
                    part.weight.copy_(weights[f"stages.{number}.{place}.weight"])
                    bias, x = weights[f"stages.{number}.{place}.bias"], part(x)
                elif isinstance(part, nn.BatchNorm2d):
                    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
                    part.running_mean.copy_(mean)
                    part.running_var.copy_(variance)
                    part.weight.copy_((variance + part.eps).sqrt())
                    part.bias.copy_(mean + bias)
                    x = x + bias[:, None, None]
                else:
                    x = part(x)
        for name, value in student.head.named_parameters():
            value.copy_(weights[f"head.{name}"])
    return student.eval()


def mixed(start: Student, end: Student, share: float) -> Student:
    """The network whose weights, norms folded, are ``share`` of ``end`` and the rest of ``start``."""
    first, last = folded(start), folded(end)
    with torch.no_grad():
        for mine, theirs in zip(first.parameters(), last.parameters(), strict=True):
            mine.lerp_(theirs, share)
    return first


class Continued:
    """The trainings of one work folder, each made once."""

    def __init__(self, lab: Lab, bundle: Bundle, work: Path, *, scratch: int | None, taught: bool = False) -> None:
        self.lab, self.work, self._scratch, self._taught = lab, work, scratch, taught
        self.shares = (0.0, 1.0) if scratch else MIXED
        self.new = np.isin([r.row.dataset for r in lab.records], bundle.manifest.training["without"])
        """Which records are of sources that the shipped network never learned from."""
        self._bank, self._made, self._extra = lab.bank(), lab.synthetic_bank(), lab.unlabelled_bank()
        self._network = widen(onnx.load_from_string(bundle.file(FP16_MODEL)))

    def shipped(self, out: tuple[str, ...] = ()) -> Student:
        """The shipped network, its norms set from what is learned from with the regions ``out`` left out."""
        index = np.random.default_rng(0).choice(self._learned(self._bank, out), MEASURED, replace=False)
        windows = np.asarray(self._bank.windows[np.sort(index)], np.float32)
        return unfolded(self._network, self.lab.config.student, windows)

    def strays(self) -> float:
        """How far the start is from the shipped file in any logit, on some training windows."""
        windows = np.asarray(self._bank.windows[:64], np.float32)
        return float(np.abs(module_logits(self.shipped())(windows) - infer.logits(self._network, windows)).max())

    def network(self, name: str) -> Student:
        """The shipped network after it learned on without a group's regions."""
        out, bank, settings = GROUPS[name], self._bank, self.lab.config.mixed
        index = self._learned(bank, out)
        new = self.new[bank.record[index]]
        real = 1 - settings.synthetic - settings.weak
        sources = [
            Source(
                bank,
                index[~new],
                real * (1 - new.mean()),
                None if self._scratch and not self._taught else self._own_answers(),
            ),
            Source(bank, index[new], real * new.mean()),
        ]
        if self._made is not None:
            sources.append(Source(self._made, self._learned(self._made, out), settings.synthetic))
        if self._extra is not None:
            weak = weakly_labelled(self.lab, self._extra, None, settings.weak)
            sources.append(replace(weak, index=np.intersect1d(weak.index, self._learned(self._extra, out))))
        if self._scratch:
            torch.manual_seed(FRESH.seed)
            soft = settings.fit.soft if self._taught else FRESH.soft
            fresh = replace(FRESH, windows=self._scratch, soft=soft)
            return fit(Student(self.lab.config.student), sources, fresh, self.work / name)
        return fit(self.shipped(out), sources, settings.fit, self.work / name)

    def _learned(self, bank: Bank, out: tuple[str, ...]) -> NDArray[np.int64]:
        away = [self.lab.left_out.index(region) for region in out]
        return np.flatnonzero((bank.part < 0) | ((bank.part % 2 == 0) & ~np.isin(bank.part // 2, away)))

    def _own_answers(self) -> NDArray[np.float32]:
        path = self.work / "own_answers.npy"
        if not path.is_file():
            run = module_logits(self.shipped())
            starts = range(0, len(self._bank), CHUNK)
            answers = [softmax(run(np.asarray(self._bank.windows[at : at + CHUNK], np.float32))) for at in starts]
            self.work.mkdir(parents=True, exist_ok=True)
            np.save(path, np.concatenate(answers).astype(np.float32))
        answered: NDArray[np.float32] = np.load(path)
        return answered

    def asked(self, name: str, index: NDArray[np.int64]) -> Array:
        """Logits ``[shares, records, lengths, 5]`` in the neutral view."""
        start, end = self.shipped(), self.network(name)
        networks = [module_logits(mixed(start, end, share)) for share in self.shares]
        preparation = self.lab.config.preparation
        windows = (view_windows("neutral", self.lab.records[int(i)], LENGTHS_S, preparation) for i in index)
        return np.stack([[run(made) for run in networks] for made in windows], axis=1)


def regions_left_out(made: Continued, groups: list[str]) -> None:
    """Print each share against the shipped network in the regions of ``groups``."""
    lab = made.lab
    folds = {name: [lab.left_out.index(region) for region in GROUPS[name]] for name in groups}
    index = {
        name: np.concatenate([(judged := lab.judged(fold))[made.new[judged]] for fold in numbers])
        for name, numbers in folds.items()
    }
    every = np.concatenate(list(index.values()))
    logits = np.concatenate([made.asked(name, index[name]) for name in groups], axis=1)
    answered = {
        f"{share:g}": OutOfFold(every, {"neutral": given}) for share, given in zip(made.shares, logits, strict=True)
    }
    found: Any = study(answered, [r.row for r in lab.records], lab.parts // 2, lab.left_out)
    print(f"\nregions left out: {', '.join(found['regions'])}; {found['records']} records, {found['events']} events")
    print(_head("shipped", made.shares))
    for key, title in POOLED.items():
        first = 100 * found["methods"]["0"]["pooled"][key][0]
        if first < 0:  # of a class that is not there
            continue
        print(
            f"{title:<50}{first:6.1f}" + "".join(_change(found["differences"][f"{s:g}"][key]) for s in made.shares[1:])
        )
    truth = Truth.of([lab.records[int(i)].row for i in every])
    fitted = fit_confidence({"neutral": logits[0]}, truth)
    print(f"temperatures and thresholds of share 0 by these answers: {fitted}")
    p = softmax(logits[0][:, -1], dict(fitted.temperatures)[FULL_S])
    unsure, said = (p.max(1) >= LOWEST) & (p.max(1) < UNSURE), p.argmax(1)
    for number, label in enumerate(LABELS):
        told = unsure & (said == number)
        right = (truth.labels[told] == number).sum()
        print(f"{label} with {LOWEST} to {UNSURE}: {right} of {told.sum()} right")


def validation(made: Continued) -> None:
    """Print each share against the shipped network on the split `val`, sources old and new to it apart."""
    judged = made.lab.judged(None)
    for title, index in (("old", judged[~made.new[judged]]), ("new", judged[made.new[judged]])):
        truth = Truth.of([made.lab.records[int(i)].row for i in index])
        p = softmax(made.asked(FINAL, index)[:, :, -1])
        print(
            f"\nval, {title} sources: {len(index)} records, {100 * (p[0].argmax(1) == truth.labels).mean():.1f} right"
        )
        gains = [paired_differences(more, p[0], truth) for more in p[1:]]
        print(_head("", made.shares))
        for key in gains[0]:
            print(f"{key:<56}" + "".join(_change((g[key].value, g[key].low, g[key].high)) for g in gains))


def _head(first: str, shares: tuple[float, ...]) -> str:
    return f"{'':<48}{first:>8}" + "".join(f"{f'{share:g}':>24}" for share in shares[1:])


def _change(values: Any) -> str:
    value, low, high = (100 * v for v in values)
    return f"{value:+8.1f} [{low:+.1f}, {high:+.1f}]".rjust(24)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "quantize" / "continued.yaml")
    parser.add_argument("--bundle", type=Path, default=ROOT / "agent" / "models" / "default")
    parser.add_argument("--rate", type=float, help="learning rate, in the place of the configuration's")
    parser.add_argument("--scratch", type=int, metavar="WINDOWS", help="from fresh weights, labels alone")
    parser.add_argument(
        "--taught", action="store_true", help="with --scratch: learn the shipped network's answers, too"
    )
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    lab = open_lab(options.data, options.work / "full", read_config(options.config), by="region")
    rate = options.rate or lab.config.mixed.fit.learning_rate
    settings = replace(lab.config.mixed, fit=replace(lab.config.mixed.fit, learning_rate=rate))
    lab = replace(lab, config=replace(lab.config, mixed=settings))
    fresh = f"scratch_{options.scratch}{'_taught' * options.taught}"
    work = lab.work / (fresh if options.scratch else f"continued_{rate:g}")
    made = Continued(lab, open_bundle(options.bundle), work, scratch=options.scratch, taught=options.taught)
    print(f"the start is {made.strays():.0e} at most from the shipped file in any logit", flush=True)
    for name in options.only:
        made.network(name)
    if groups := [name for name in options.only if name != FINAL]:
        regions_left_out(made, groups)
    if FINAL in options.only:
        validation(made)


if __name__ == "__main__":
    main()
