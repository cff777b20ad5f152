"""The methods that are compared, each from records to a function that answers windows. Every one leaves its weights in
a folder of its own and is not trained twice."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from agent.atomic import replacing
from agent.errors import ConfigError
from agent.types import LABELS
from quantize.config import BuildConfig
from quantize.data.augment import calibration_windows
from quantize.data.bank import Bank
from quantize.data.records import load_records, read_streams, read_table, read_unlabelled, read_weak_labels
from quantize.data.regions import TABLE, left_out, read_regions
from quantize.quantise import infer, qat
from quantize.quantise.export import export_int8
from quantize.quantise.int8 import Int8Files
from quantize.study.evaluate import Array, Logits, softmax
from quantize.train.baselines import StftNetwork, feature_table, train_boosting
from quantize.train.checkpoint import load_checkpoint
from quantize.train.fit import FitConfig, Source, fit
from quantize.train.hardware import device, mixed_precision
from quantize.train.lab import Division, Lab, learned_from
from quantize.train.loop import claim
from quantize.train.pretrain import pretrain, read_arrivals
from quantize.train.prime_dp import PrimeDP, shape_of
from quantize.train.student import Student, build_student
from quantize.train.transfer import EventTeacher, prepare_transfer

Method = Callable[[Lab, "int | None"], Logits]

_CHUNK = 64
_FOLD_CALIBRATION = 128
"""Windows for the INT8 ranges of a fold's student."""
_JUDGED, _TUNED = 2048, 4096
"""Windows on which the loss of INT8 is measured, and from which it is fine-tuned."""
_PROBABLY, _WEAKLY_SURE = 0.7, 0.9
"""From which probability on an event counts as a blast by its time of day; how much of a weak label is believed."""
log = logging.getLogger("quantize.train.methods")


def open_lab(
    data: Path,
    work: Path,
    config: BuildConfig,
    *,
    reduced: bool = False,
    checkpoint: Path | None = None,
    by: Division = "event",
) -> Lab:
    """Read all records; ``reduced`` keeps about every eighth event of each label and source; ``checkpoint`` are weights
    of PRIME-DP that make pre-training needless.

    Raises:
        ConfigError: the configuration names what there is not, or ``work`` holds results of another one, or of other
            records: answers and windows that are there already would be taken for theirs.
        BundleError: the checkpoint cannot be used. All of this is told here, and not after hours.
        DataError: a table or a record cannot be read.
    """
    shape_of(config.pretrain.variant)
    for name in config.distil.teachers:
        teacher(name)
    if checkpoint is not None:
        load_checkpoint(checkpoint, config.pretrain.variant)
    rows = read_table(data)
    unlabelled, streams = read_unlabelled(data), read_streams(data)
    if reduced:
        events = sorted({(row.split, row.label, row.dataset, row.event) for row in rows})
        kept = {event for place, (_, _, _, event) in enumerate(events) if place % 8 == 0}
        rows = [row for row in rows if row.event in kept]
        unlabelled, streams = unlabelled[::16], streams[::16]
    learned = [replace(row, path=Path(row.name)) for row in (*rows, *(r.row for r in (*unlabelled, *streams)))]
    claim(work, f"{config!r}\n{hashlib.sha256(repr(learned).encode()).hexdigest()}")
    regions = read_regions(data, rows) if by == "region" or (data / TABLE).is_file() else {}
    unknown = set(config.confidence) - set(left_out(rows, regions) if regions else ())
    if unknown:
        raise ConfigError(
            f"confidence: the region {min(unknown)!r} is not left out", f"name regions of {data / TABLE}, or none"
        )
    return Lab(load_records(rows), unlabelled, streams, config, work, data, checkpoint, by=by, regions=regions)


def module_logits(model: nn.Module, *, bfloat16: bool = False) -> Logits:
    """A torch module in evaluation mode as a function of windows ``[n, 3, 10240]``; it computes on the device."""
    placed = copy.deepcopy(model).to(device())

    def run(windows: NDArray[np.float32]) -> Array:
        parts = []
        with torch.no_grad(), mixed_precision(bfloat16):
            for start in range(0, len(windows), _CHUNK):
                chunk = np.ascontiguousarray(windows[start : start + _CHUNK], dtype=np.float32)
                parts.append(placed(torch.from_numpy(chunk)[:, :, None].to(device())).double().cpu().numpy())
        answers: Array = np.concatenate(parts)
        return answers

    return run


def folder(lab: Lab, name: str, fold: int | None) -> Path:
    """Where a method keeps what it learned for a fold."""
    few = "" if lab.landslides is None else f"_{lab.landslides}_landslides"
    again = f"_seed{lab.seed}" if lab.seed else ""
    last = "final"
    if fold is not None:
        last = f"fold{fold}" if lab.by == "event" else f"without_{lab.left_out[fold]}"
    return lab.work / f"{name}{few}{again}" / last


def prime(lab: Lab, fold: int | None) -> Logits:
    """PRIME-DP, pre-trained without labels, transferred."""
    return module_logits(prime_teacher(lab, fold), bfloat16=lab.config.teacher.fit.bfloat16)


def pretrained(lab: Lab) -> PrimeDP:
    """The pre-trained network: published weights where the lab has some. Else it saw, without labels, the training
    split (so whatever a fold leaves out of that), records without a class and the streams (so whatever validation
    records were cut from those); nothing else of the validation split.

    Raises:
        BundleError: the checkpoint is damaged or of another variant than the configuration names.
    """
    if lab.checkpoint is not None:
        loaded = load_checkpoint(lab.checkpoint, lab.config.pretrain.variant)
        _claim_start(lab, loaded.sha256)
        return loaded.model
    _claim_start(lab, "pre-trained here")
    records = [record for record in lab.records if record.row.split == "train"]
    arrivals = read_arrivals(lab.data)
    return pretrain([*records, *lab.unlabelled, *lab.streams], arrivals, lab.config.pretrain, lab.work / "pretrained")


def _claim_start(lab: Lab, start: str) -> None:
    """A work folder belongs to one start of the teacher: what is in it must not be taken for another's."""
    lab.work.mkdir(parents=True, exist_ok=True)
    claim(lab.work / "start", start)


def prime_teacher(lab: Lab, fold: int | None) -> EventTeacher:
    """The pre-trained network, adapted to what a fold learns from."""
    settings, bank, network = lab.config.teacher, lab.bank(), pretrained(lab)
    torch.manual_seed(settings.fit.seed)
    teacher = EventTeacher(network, settings.pool, settings.dropout)
    groups = prepare_transfer(teacher, settings.recipe, settings.fit.weight_decay)
    return fit(teacher, lab.labelled(bank, fold), settings.fit, folder(lab, "prime", fold), groups=groups)


def alone(lab: Lab, fold: int | None) -> Logits:
    """The student from labels alone: no pre-training, no teacher, no generator."""
    bank = lab.bank()
    return module_logits(_student(lab, fold, "alone", lab.labelled(bank, fold), lab.config.alone))


def distilled(lab: Lab, fold: int | None) -> Logits:
    """The student from labels and its teachers' answers."""
    return module_logits(distilled_student(lab, fold))


def built_student(lab: Lab, fold: int | None) -> Student:
    """The student that the bundle is built of: ``built`` of the configuration."""
    return _STUDENTS[lab.config.built](lab, fold)


def distilled_student(lab: Lab, fold: int | None) -> Student:
    """The network of ``distilled`` itself."""
    settings, bank = lab.config.distil, lab.bank()
    index = learned_from(bank, fold)
    told = index[index < settings.taught]
    labelled = 1 - settings.unlabelled - settings.synthetic
    sources = [
        Source(bank, told, labelled / 2, taught(lab, fold, bank, told, "bank")),
        Source(bank, index, labelled / 2),
    ]
    extra = lab.unlabelled_bank()
    if extra is not None and settings.unlabelled:
        every = learned_from(extra, fold)
        sources.append(Source(extra, every, settings.unlabelled, taught(lab, fold, extra, every, "unlabelled")))
    made = lab.synthetic_bank() if settings.synthetic else None
    if made is not None:
        # What the generator made is what it says; teachers that never saw its like have no better opinion.
        sources.append(Source(made, learned_from(made, fold), settings.synthetic))
    return _student(lab, fold, "distilled", sources, settings.fit)


def mixed(lab: Lab, fold: int | None) -> Logits:
    """The student from labels, the generator and the weak labels; no teacher, no pre-training."""
    return module_logits(mixed_student(lab, fold))


def mixed_student(lab: Lab, fold: int | None) -> Student:
    """The network of ``mixed`` itself."""
    settings, bank = lab.config.mixed, lab.bank()
    sources = [Source(bank, learned_from(bank, fold), 1 - settings.synthetic - settings.weak)]
    made = lab.synthetic_bank() if settings.synthetic else None
    if made is not None:
        sources.append(Source(made, learned_from(made, fold), settings.synthetic))
    extra = lab.unlabelled_bank() if settings.weak else None
    if extra is not None:
        sources.append(weakly_labelled(lab, extra, fold, settings.weak))
    return _student(lab, fold, "mixed", sources, settings.fit)


def weakly_labelled(lab: Lab, bank: Bank, fold: int | None, share: float) -> Source:
    """Windows of events that are probably blasts (or, by night, are none) by their time of day alone."""
    known = read_weak_labels(lab.data)
    soft = np.full((len(bank), len(LABELS)), (1 - _WEAKLY_SURE) / len(LABELS), dtype=np.float32)
    chosen = []
    for entry in learned_from(bank, fold):
        blast = known.get(lab.unlabelled[int(bank.record[entry])].row.event)
        if blast is not None and (blast >= _PROBABLY or blast == 0.0):
            soft[entry, LABELS.index("blast")] += _WEAKLY_SURE * blast
            soft[entry, LABELS.index("earthquake")] += _WEAKLY_SURE * (1 - blast)
            chosen.append(entry)
    return Source(bank, np.array(chosen, dtype=np.int64), share, soft)


def int8(lab: Lab, fold: int | None) -> Logits:
    """The bundle's student as the agent runs it: the INT8 file for CPUs."""
    return int8_logits(int8_student(lab, fold, _FOLD_CALIBRATION))


def int8_logits(files: Int8Files) -> Logits:
    """The file for CPUs as a function of windows."""
    run = infer.runner(files.cpu)
    return lambda windows: run(windows).astype(np.float64)


def int8_student(lab: Lab, fold: int | None, count: int) -> Int8Files:
    """The bundle's student in both dialects, its ranges from ``count`` windows of what the fold learned from.

    Where INT8 loses more than ``qat.MOST_LOST`` of the windows right, on windows that the ranges did not come from, it
    is fine-tuned, and the better of the two is taken.
    """
    training, preparation, bank = lab.training(fold), lab.config.preparation, lab.bank()
    work, student, index = folder(lab, "int8", fold), built_student(lab, fold), learned_from(bank, fold)
    work.mkdir(parents=True, exist_ok=True)
    ranged = calibration_windows(training, preparation, count, seed=1)
    tried = calibration_windows(training, preparation, max(16, count // 4), seed=2)
    judged = np.random.default_rng(lab.config.seed).choice(index, size=min(len(index), _JUDGED), replace=False)
    files = export_int8(student, ranged, tried)
    lost = _lost(files, bank, judged)
    log.info("INT8 loses %.2f points of %d windows", 100 * lost, len(judged))
    if lost <= qat.MOST_LOST:
        return files
    few = Source(bank, index[:_TUNED])
    tuned = export_int8(qat.fine_tune(student, files.choice.ranges, few, work), ranged, tried)
    gained = _right(files.fp32, bank, judged) - _right(tuned.cpu, bank, judged)
    log.info("after fine-tuning %.2f points", 100 * gained)
    return tuned if gained < lost else files


def _lost(files: Int8Files, bank: Bank, index: NDArray[np.int64]) -> float:
    """Share of a bank's windows right that the CPU file loses against FP32."""
    return _right(files.fp32, bank, index) - _right(files.cpu, bank, index)


def _right(model: onnx.ModelProto, bank: Bank, index: NDArray[np.int64]) -> float:
    answers = infer.logits(model, np.asarray(bank.windows[np.sort(index)], dtype=np.float32)).argmax(axis=1)
    return float((answers == bank.label[np.sort(index)]).mean())


def _student(lab: Lab, fold: int | None, name: str, sources: Sequence[Source], settings: FitConfig) -> Student:
    settings = replace(settings, seed=settings.seed + lab.seed)
    torch.manual_seed(settings.seed)
    return fit(build_student(lab.config.student), sources, settings, folder(lab, name, fold))


def stft(lab: Lab, fold: int | None) -> Logits:
    """The paper's STFT network."""
    bank, settings = lab.bank(), lab.config.stft
    torch.manual_seed(settings.seed)
    return module_logits(fit(StftNetwork(), lab.labelled(bank, fold), settings, folder(lab, "stft", fold)))


def boosting(lab: Lab, fold: int | None) -> Logits:
    """Gradient boosting on hand features of the same windows."""
    bank = lab.bank()
    folder(lab, "boosting", fold).mkdir(parents=True, exist_ok=True)
    table = feature_table(bank, lab.work / "features.npy", lab.config.boosting_windows)
    index = learned_from(bank, fold)
    index = index[index < len(table)]
    return train_boosting(table[index], bank.label[index], lab.config.seed)


def taught(lab: Lab, fold: int | None, bank: Bank, index: NDArray[np.int64], windows: str) -> NDArray[np.float32]:
    """Mean probabilities of the teachers on the entries ``index`` of a bank, ``[len(bank), 5]`` (zero elsewhere).

    ``windows`` is the bank's name. The student's own seed moves no teacher.
    """
    total = np.zeros((len(bank), len(LABELS)))
    for name in lab.config.distil.teachers:
        base, seed = teacher(name)
        teaching = replace(lab, seed=seed)
        path = folder(teaching, base, fold) / f"taught_{windows}.npy"
        if not path.is_file():
            answers = np.zeros((len(bank), len(LABELS)), dtype=np.float32)
            logits = method(base)(teaching, fold)
            for start in range(0, len(index), _CHUNK):
                some = index[start : start + _CHUNK]
                answers[some] = softmax(logits(np.asarray(bank.windows[some], dtype=np.float32)))
            with replacing(path) as file:
                np.save(file, answers)
        total += np.load(path)
    return (total / len(lab.config.distil.teachers)).astype(np.float32)


def teacher(name: str) -> tuple[str, int]:
    """Method and seed that a teacher's name stands for: ``mixed@1`` is ``mixed`` from other random numbers.

    Raises:
        ConfigError: there is no such method, or what follows ``@`` is no number.
    """
    base, at, seed = name.partition("@")
    if at and not seed.isdigit():
        raise ConfigError(f"{name!r} names no teacher", "write METHOD@NUMBER for a method with another seed")
    method(base)
    return base, int(seed or 0)


_STUDENTS: Mapping[str, Callable[[Lab, int | None], Student]] = MappingProxyType(
    {"mixed": mixed_student, "distilled": distilled_student}
)
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "stft": stft,
        "boosting": boosting,
        "alone": alone,
        "mixed": mixed,
        "prime": prime,
        "distilled": distilled,
        "int8": int8,
    }
)


def method(name: str) -> Method:
    """The method of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in METHODS:
        raise ConfigError(f"there is no method {name!r}", f"choose one of {', '.join(METHODS)}")
    return METHODS[name]
