"""``python -m quantize STAGE``: each stage can be broken off and taken up again."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import DataError, TalusError, UsageError

if TYPE_CHECKING:
    from quantize.train.lab import Division, Lab

BUNDLE = Path(__file__).resolve().parents[1] / "agent" / "models" / "default"
CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "quantize"
WORK = Path.home() / ".cache" / "talus"

_EPILOGUE = """examples:
  python -m quantize model --data ../shared/data --out agent/models/default    everything, some hours on two cores
  python -m quantize transfer --data FOLDER --checkpoint tinny.pt --out BUNDLE    your records, published weights
  python -m quantize evaluate --by region                                      what a new site sees, regions left out
  python -m quantize report                                                    figures of the committed bundle
  python -m quantize verify agent/models/default                               what each step changes
  python -m quantize lint agent/models/default/model.trt.onnx                  what TensorRT would refuse
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage; returns the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    try:
        return _stage(options)
    except TalusError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except ModuleNotFoundError as error:
        print(f"error: {error}\n  hint: pip install -e '.[train]'", file=sys.stderr)
        return 1
    except OSError as error:  # of any of the many files of a work folder
        print(f"error: {error}\n  hint: may this user read and write there, and is there room?", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _stage(options: argparse.Namespace) -> int:
    match options.stage:
        case "lint":
            status = _lint(options.files, options.tensorrt)
        case "float":
            status = _float(options.source, options.target)
        case "teacher":
            status = _teacher(options.facts)
        case "verify":
            status = _verify(options)
        case "pictures":
            status = _pictures(options)
        case "replay":
            status = _replay(_data(options.data), options)
        case "report":
            status = _report(_data(options.data), options.bundle, options.split)
        case _:
            status = _run(options)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m quantize", description=__doc__, epilog=_EPILOGUE, formatter_class=argparse.RawTextHelpFormatter
    )
    stages = parser.add_subparsers(dest="stage", required=True)
    texts = {
        "pretrain": "train PRIME-DP on phases and masked waveforms, without labels",
        "crossval": "five-fold cross-validation by event of the methods named",
        "evaluate": "what a new site sees: regions left out one at a time (or folds by event), trained where need be",
        "compare": "methods side by side: out-of-fold figures, differences with intervals",
        "curve": "the learning curve: 10, 30, 100 and all landslide events",
        "seeds": "the student from several random numbers, distilled and alone: how much is luck",
        "probe": "what a classifier reaches that sees the recording (rate, components, length, encoding) and no sample",
        "bundle": "train the final network, quantise, calibrate and write the bundle",
        "model": "everything: folds by event, regions left out, the final network, the bundle",
        "transfer": "adapt a pre-trained PRIME-DP to labelled records of your own, and build a bundle of its student",
        "report": "figures of a bundle on labelled records, through the agent's own inference",
    }
    for name, text in texts.items():
        stage = stages.add_parser(name, help=text, description=text)
        stage.add_argument(
            "--data", type=Path, help="folder with metadata.csv (default: TALUS_DATA, else ../shared/data)"
        )
        if name == "report":
            stage.add_argument(
                "--bundle", type=Path, default=BUNDLE, help="bundle folder or zip (default: the agent's own)"
            )
            stage.add_argument("--split", choices=("train", "val"), default="val", help="default: val")
            continue
        stage.add_argument(
            "--work", type=Path, default=WORK, help="folder for banks, weights and logs (default: %(default)s)"
        )
        stage.add_argument("--config", type=Path, help="YAML, see configs/quantize/ (default: student.yaml there)")
        stage.add_argument("--reduced", action="store_true", help="a few minutes' run on an eighth of the events")
        if name in ("crossval", "compare", "curve", "seeds", "bundle", "model", "transfer"):
            folds = 1 if name == "transfer" else 5
            stage.add_argument(
                "--folds",
                type=int,
                choices=range(1, 6),
                default=folds,
                help=f"folds by event (default: {folds})",
            )
        if name == "seeds":
            stage.add_argument("--seeds", type=int, choices=range(1, 10), default=2, help="runs of each (default: 2)")
        if name == "crossval":
            stage.add_argument(
                "--fold", type=int, choices=range(5), help="this one alone, so that others run beside it"
            )
        if name == "evaluate":
            stage.add_argument(
                "--by",
                choices=("region", "event"),
                default="region",
                help="how to divide the records (default: region)",
            )
            stage.add_argument("--region", nargs="+", default=(), metavar="NAME", help="leave out these alone")
        if name in ("crossval", "compare", "curve", "evaluate", "model"):
            stage.add_argument("--methods", nargs="+", metavar="METHOD", help="default: those of the bundle")
        if name in ("bundle", "model", "transfer"):
            stage.add_argument("--out", type=Path, required=True, help="bundle folder to write")
            stage.add_argument(
                "--calibration", type=int, metavar="N", default=512, help="windows for the INT8 ranges (default: 512)"
            )
        if name in ("transfer", "crossval", "curve", "seeds", "bundle", "model"):
            stage.add_argument(
                "--checkpoint", type=Path, help="published weights of PRIME-DP (default: pre-train here)"
            )
        if name == "transfer":
            stage.add_argument("--recipe", choices=("head", "embeddings", "all"), help="what may move (default: all)")
    _add_tools(stages)
    return parser


def _add_tools(stages: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The stages that need no work folder."""
    verifying = stages.add_parser(
        "verify", help="teacher, FP32, INT8 for CPUs, INT8 for TensorRT: what each step changes"
    )
    verifying.add_argument(
        "bundle", type=Path, nargs="?", default=BUNDLE, help="folder or zip (default: the agent's own)"
    )
    verifying.add_argument("--teacher", type=Path, metavar="FILE", help="teacher.pt, which `transfer` leaves in WORK")
    verifying.add_argument(
        "--data", type=Path, help="folder with metadata.csv (default: TALUS_DATA, else ../shared/data)"
    )
    verifying.add_argument("--golden", action="store_true", help="on the bundle's golden windows alone")
    floating = stages.add_parser("float", help="write the float network of an INT8 file, for comparisons on a device")
    floating.add_argument("source", type=Path, metavar="MODEL", help="such as agent/models/default/model.trt.onnx")
    floating.add_argument("target", type=Path, metavar="FILE", help="ONNX file to write")
    pictures = stages.add_parser("pictures", help="the pictures of the documentation, from a bundle and a work folder")
    pictures.add_argument("--bundle", type=Path, default=BUNDLE, help="folder or zip (default: the agent's own)")
    pictures.add_argument("--work", type=Path, default=WORK, help="where pre-training left its log (%(default)s)")
    pictures.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="such as docs/pictures")
    replay = stages.add_parser("replay", help="add a replay bank to a bundle, which `talus teach` needs; networks stay")
    replay.add_argument("--bundle", type=Path, default=BUNDLE, help="folder (default: the agent's own)")
    replay.add_argument("--data", type=Path, help="folder with metadata.csv (default: TALUS_DATA, else ../shared/data)")
    replay.add_argument(
        "--without", nargs="+", default=(), metavar="SOURCE", help="data sets that the network did not learn from"
    )
    replay.add_argument("--out", type=Path, help="bundle folder to write (default: the same)")
    lint = stages.add_parser("lint", help="check files against TensorRT's rules, without a GPU")
    lint.add_argument("files", nargs="+", type=Path, metavar="FILE", help="ONNX file, or bundle (folder or zip)")
    lint.add_argument(
        "--tensorrt", choices=("8.5", "8.6", "10", "11"), default="8.5", help="version to keep to (default: the oldest)"
    )
    teacher = stages.add_parser("teacher", help="the PRIME-DP network against the original's reference vectors")
    teacher.add_argument("--check", action="store_true", required=True, help="compare every output of both variants")
    teacher.add_argument("--facts", type=Path, help="folder of the vectors (default: TALUS_FACTS)")


def _teacher(facts: Path | None) -> int:
    """Print the largest difference of each output; the status is 1 if one is beyond the tolerance."""
    from quantize.train.teacher_check import check, facts_folder, table

    rows = check(facts or facts_folder())
    print(table(rows))
    return int(not all(row.agrees for row in rows))


def _verify(options: argparse.Namespace) -> int:
    """Print every check; the status is 1 if one is breached."""
    from quantize.data.records import default_root, load_records, read_table
    from quantize.quantise.verify import text, verify

    teacher = None
    if options.teacher is not None:
        from quantize.train.methods import module_logits
        from quantize.train.transfer import load_teacher

        teacher = module_logits(load_teacher(options.teacher))
    data = None if options.golden else options.data or default_root()
    if data is None and not options.golden:
        print("no labelled records are at hand (--data, TALUS_DATA): golden windows only", file=sys.stderr)
    rows = [row for row in read_table(data) if row.split == "val"] if data is not None else []
    lines = verify(options.bundle, load_records(rows), teacher)
    print(text(lines))
    return int(not all(line.holds for line in lines))


def _lint(files: Sequence[Path], tensorrt: str) -> int:
    """Print every breach; the status is 1 if there is one."""
    from agent.inference.bundle import TRT_MODEL, open_bundle
    from quantize.quantise.rules import RULES, lint

    broken = False
    for file in files:
        bundle = file.is_dir() or file.suffix == ".zip"
        findings = lint(open_bundle(file).file(TRT_MODEL) if bundle else file, tensorrt)
        broken |= bool(findings)
        for finding in findings:
            print(f"{file}: {finding}")
        if not findings:
            print(f"{file}: keeps all {len(RULES)} rules of TensorRT {tensorrt}")
    return int(broken)


def _pictures(options: argparse.Namespace) -> int:
    """Draw what there are values for."""
    from agent.inference.bundle import open_bundle
    from quantize.study import plots

    made = [plots.generator_picture(options.out / "generator.png")]
    comparison: Any = dict(open_bundle(options.bundle).manifest.metrics).get("comparison")
    if comparison is not None:
        made += plots.comparison_pictures(options.out, comparison)
    log = options.work / "full" / "pretrained" / "log.jsonl"
    if log.is_file():
        made.append(plots.losses_picture(options.out / "pretraining.png", log))
    print("\n".join(str(path) for path in made))
    return 0


def _replay(data: Path, options: argparse.Namespace) -> int:
    """Write the bundle with a replay bank of the records it learned from."""
    from agent.inference.bundle import open_bundle
    from quantize.data.records import load_records, read_table
    from quantize.data.regions import read_regions
    from quantize.teach.replay_bank import add_replay_bank

    bundle = open_bundle(options.bundle)
    rows = [row for row in read_table(data) if row.dataset not in options.without]
    target = options.out or options.bundle
    count = add_replay_bank(target, bundle, load_records(rows), read_regions(data, rows), options.without)
    size = sum(len(content) for content in open_bundle(target).files.values())
    print(f"{target}: {count} examples in the replay bank, {size} bytes in all")
    return 0


def _float(source: Path, target: Path) -> int:
    import onnx

    from quantize.quantise.qdq import dequantise, widen
    from quantize.quantise.rules import load_network

    onnx.save(widen(dequantise(load_network(source))), target)
    print(f"{target}: the network of {source} in float32")
    return 0


def _data(named: Path | None) -> Path:
    """The folder named, or the one that is at hand.

    Raises:
        UsageError: there is none.
    """
    from quantize.data.records import default_root

    data = named or default_root()
    if data is None:
        raise UsageError("no labelled records are at hand", "give their folder with --data, or set TALUS_DATA")
    return data


def _run(options: argparse.Namespace) -> int:
    data = _data(options.data)
    from quantize import pipeline
    from quantize.config import read_config
    from quantize.study.studies import cross_validate
    from quantize.train.expect import transfer_time
    from quantize.train.methods import method, open_lab, pretrained

    for name in getattr(options, "methods", None) or ():
        method(name)
    if hasattr(options, "out"):
        _require_place(options.out)
    config = read_config(options.config or CONFIGS / ("reduced.yaml" if options.reduced else "student.yaml"))
    if options.stage == "transfer":
        config = pipeline.transferring(config, options.recipe)
    work = options.work / ("reduced" if options.reduced else "full")
    checkpoint = getattr(options, "checkpoint", None)
    by: Division = getattr(options, "by", "event")
    lab = open_lab(data, work, config, reduced=options.reduced, checkpoint=checkpoint, by=by)
    if hasattr(options, "calibration") and not len(lab.judged(None)):
        raise DataError(
            "no record of the split `val` can be judged", "a bundle states figures on it: put some whole events there"
        )
    if options.stage == "pretrain":
        print(f"pre-trained {pretrained(lab).variant}: {work / 'pretrained' / 'prime_dp.pt'}")
    if options.stage == "transfer":
        print(transfer_time(lab, options.folds + 1), flush=True)
        print(pipeline.transfer(lab, options.out, count=options.calibration, only=range(options.folds)))
    if options.stage in ("crossval", "model"):
        alone = getattr(options, "fold", None)
        folds = range(options.folds) if alone is None else (alone,)
        for name in options.methods or pipeline.compared(config):
            answered = cross_validate(lab, name, folds)
            print(f"{name}: out-of-fold answers to {len(answered.index)} records")
    _study(options, lab)
    if options.stage in ("bundle", "model"):
        print(pipeline.build_bundle(lab, options.out, count=options.calibration, only=range(options.folds)))
    return 0


def _study(options: argparse.Namespace, lab: Lab) -> None:
    from quantize import pipeline
    from quantize.study import studies, tables

    stage, built = options.stage, lab.config.built
    if stage == "evaluate" and lab.by == "region":
        print(tables.by_region(studies.evaluate_regions(lab, options.methods or [built], options.region)))
    elif stage == "evaluate":
        print(tables.comparison(studies.compare_methods(lab, options.methods or [built], range(lab.count))))
    if stage in ("compare", "model"):
        names = options.methods or pipeline.compared(lab.config)
        print(tables.comparison(studies.compare_methods(lab, names, range(options.folds))))
    if stage == "model" and lab.regions and (away := replace(lab, by="region")).left_out:
        print(tables.by_region(studies.evaluate_regions(away, [built])))
    if options.stage == "curve":
        print(tables.curve(studies.curve(lab, options.methods or studies.CURVED, range(options.folds))))
    if options.stage == "seeds":
        print(tables.seeds(studies.repeat_seeds(lab, options.seeds, range(options.folds))))
    if options.stage in ("probe", "model"):
        print(tables.probe(studies.probe_recording(lab)))


def _require_place(target: Path) -> None:
    """Tell now, and not after hours, that the result could not be written.

    Raises:
        OSError: the folder of ``target`` cannot be made or written to.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=target.parent):
        pass


def _report(data: Path, bundle: Path, split: str) -> int:
    """Print the figures of a bundle and the studies it carries; the status is 1 if the figures are not its card's."""
    from agent.inference import load
    from agent.inference.bundle import open_bundle
    from quantize.data.records import load_records, read_streams, read_table, read_unlabelled
    from quantize.data.regions import TABLE, read_regions
    from quantize.data.trust import apart, is_judged
    from quantize.study import report, tables

    opened = open_bundle(bundle)
    training: dict[str, Any] = dict(opened.manifest.training)
    without = set(training.get("without", ()))
    every = [record for record in load_records(read_table(data)) if is_judged(record.row)]
    records = [record for record in every if record.row.dataset not in without]
    chosen = [record for record in records if record.row.split == split]
    if split == "val":
        learned = [record for record in records if record.row.split != split]
        judged = apart(chosen, [*learned, *read_unlabelled(data), *read_streams(data)])
        chosen = [record for record, alone in zip(chosen, judged, strict=True) if alone]
    if not chosen:
        raise DataError(f"no record of the split `{split}` can be judged", "choose the other --split")
    rows = [record.row for record in chosen]
    classifier, _ = load(bundle, ["onnxruntime"])
    measured = report.measure(report.classified(classifier, chosen, opened.preparation), rows)
    print(
        report.text(measured, rows, f"{classifier.model} ({classifier.backend}, {classifier.precision}), {split} split")
    )
    metrics: dict[str, Any] = dict(opened.manifest.metrics)
    stated = metrics.get("validation") if split == "val" else None
    difference = None if stated is None else report.largest_difference(report.numbers(measured), stated)
    if difference is not None:
        same = "these are" if difference <= report.SAME else f"by up to {100 * difference:.1f} points, these are not"
        print(f"\n{same} the figures of the model card\n")
    unknown = [record for record in every if record.row.dataset in without]
    if unknown and split == "val":
        others = [record.row for record in unknown]
        answers = report.classified(classifier, unknown, opened.preparation)
        print(report.text(report.measure(answers, others), others, "Sources that it never learned from, both splits"))
        if (data / TABLE).is_file():
            print("\nevents by region, neutral view, whole window: truth, events, what they were called")
            print("\n".join(report.by_region(answers["neutral"], others, read_regions(data, others))))
        print()
    print("\n".join(tables.studies(metrics)).strip())
    return int(difference is not None and difference > report.SAME)
