"""Command line arguments, and their conversion to jobs. No torch: help and usage errors are instant."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from FewShotSegLib.data.intensity import intensity_from
from FewShotSegLib.data.job import WHOLE, AdaptJob, EvaluateJob, ExemplarFiles, Part, SegmentationFormat, SegmentJob
from FewShotSegLib.data.recipe import from_dict, to_dict, with_overrides
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.datasets import data_sets_in, files_of
from FewShotSegLib.io.exemplars import parse_exemplar
from FewShotSegLib.io.json_files import read_table
from FewShotSegLib.version import __version__

DEMO_OUT = "demo-output"


def parser() -> argparse.ArgumentParser:
    """The parser of all commands but `benchmark`, whose arguments are passed on to the benchmark."""
    top = argparse.ArgumentParser(
        prog="fewshotseg",
        description="Adapt a promptable segmentation model to a few annotated slices, and segment with it.",
        epilog="Exit codes: 0 done, 1 defect of this program, 2 bad input, 130 cancelled.",
    )
    top.add_argument("--version", action="version", version=f"fewshotseg {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print progress and results as JSON lines")
    work = argparse.ArgumentParser(add_help=False, parents=[common])
    work.add_argument(
        "--seed",
        type=_whole_number,
        default=0,
        metavar="N",
        help="random seed; the same seed gives the same result (default: 0)",
    )
    _add_overwrite(work)
    work.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto (default): a GPU if PyTorch supports it"
    )
    _add_adapt(commands, work)
    _add_segment(commands, work)
    table = commands.add_parser("table", parents=[common], help="join the tables of a batch that was done in parts")
    table.add_argument("folder", metavar="DIR", help="the output folder of segment")
    _add_evaluate(commands, common)
    job = commands.add_parser("job", parents=[common], help="run a job file (JSON)")
    job.add_argument("file", metavar="JOB.json")
    job.add_argument(
        "--keep-best", action="store_true", help="on Ctrl-C, stop training and keep the best adapter so far"
    )
    _add_models(commands, common)
    _add_export(commands, common)
    commands.add_parser("info", parents=[common], help="versions, devices, models and folders of this installation")
    show = commands.add_parser("show", parents=[common], help="print the card of an adapter")
    show.add_argument("adapter", metavar="ADAPTER")
    demo = commands.add_parser("demo", parents=[common], help="synthetic patients, three annotated slices, a report")
    demo.add_argument("--out", default=DEMO_OUT, metavar="DIR", help=f"output folder (default: {DEMO_OUT})")
    demo.add_argument("--base", default="auto", metavar="MODEL", help="the base model to adapt (bundled)")
    demo.add_argument("--seed", type=_whole_number, default=0, metavar="N")
    commands.add_parser("benchmark", help="accuracy | speed: measure on this computer; see benchmark accuracy --help")
    return top


def _add_adapt(commands: Any, work: argparse.ArgumentParser) -> None:
    adapt = commands.add_parser(
        "adapt",
        parents=[work],
        help="train an adapter from annotated slices",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='example: fewshotseg adapt --exemplar "ct.nrrd=ct.seg.nrrd@k:40,52,61" --out organs.safetensors',
    )
    adapt.add_argument("--method", default="lora", help="method of adaptation: lora (default), asap, uda, gmiseg")
    adapt.add_argument(
        "--exemplar",
        action="append",
        default=[],
        metavar="IMAGE=LABELMAP[@AXIS:K,K,...]",
        dest="exemplars",
        help="an annotated case; @k:12,14 lists the fully annotated slices, @k:all means all slices; may be "
        "repeated; for the method gmiseg also a folder of labelled data sets",
    )
    adapt.add_argument("--source", metavar="DIR", help="folder of labelled images of the source domain (method uda)")
    adapt.add_argument("--target", metavar="DIR", help="folder of unlabelled images of the target domain (method uda)")
    adapt.add_argument("--auxiliary", metavar="DIR", help="folder of auxiliary labelled data sets")
    adapt.add_argument(
        "--structures",
        type=structures_from,
        metavar="6=liver,1=spleen",
        help="labels to use, and their names (default: all)",
    )
    adapt.add_argument("--resample", action="store_true", help="resample labelmaps onto the grid of the image")
    _add_reading(adapt)
    _add_intensity(adapt)
    adapt.add_argument("--keep-names", action="store_true", help="store the names of the input files in the adapter")
    adapt.add_argument(
        "--base",
        default="auto",
        metavar="MODEL",
        help="bundled, bundled-small, vit_b, ..., or a file; auto: the default of the method",
    )
    adapt.add_argument(
        "--recipe", nargs="+", default=[], metavar="FILE|KEY=VALUE", help="recipe options that differ from the defaults"
    )
    adapt.add_argument("--warm-start", metavar="ADAPTER", help="adapter to continue training from")
    adapt.add_argument(
        "--preview", metavar="SHEET.png", help="only write twelve training samples to a PNG, for inspection"
    )
    adapt.add_argument("--max-seconds", type=float, metavar="N", help="time limit; the best adapter so far is kept")
    adapt.add_argument(
        "--keep-best", action="store_true", help="on Ctrl-C, stop training and keep the best adapter so far"
    )
    adapt.add_argument("--out", required=True, metavar="ADAPTER.safetensors")


def _add_segment(commands: Any, work: argparse.ArgumentParser) -> None:
    segment = commands.add_parser(
        "segment",
        parents=[work],
        help="segment images with an adapter, a support set, or prompts",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='example without training: fewshotseg segment new.nrrd --support "ct.nrrd=ct.seg.nrrd@k:40" --out DIR',
    )
    segment.add_argument("images", nargs="+", metavar="IMAGE")
    segment.add_argument("--adapter", metavar="ADAPTER")
    segment.add_argument(
        "--support",
        action="append",
        default=[],
        metavar="IMAGE=LABELMAP[@AXIS:K,K,...]",
        help="annotated case to segment from immediately, without training; may be repeated",
    )
    segment.add_argument(
        "--support-recipe", nargs="+", default=[], metavar="FILE|KEY=VALUE", help="options of the support set"
    )
    segment.add_argument(
        "--structures",
        type=structures_from,
        metavar="6=liver,1=spleen",
        help="labels of the support set, and their names (default: all)",
    )
    segment.add_argument("--resample", action="store_true", help="resample its labelmaps onto the grids of its images")
    _add_reading(segment)
    _add_intensity(segment)
    segment.add_argument("--base", metavar="MODEL", help="default: the base model of the adapter, or bundled")
    segment.add_argument("--prompts", metavar="FILE.json", help="points, boxes and masks on slices of the image")
    segment.add_argument("--axis", choices=("k", "j", "i"), help="slice axis; default: the adapter's")
    segment.add_argument(
        "--format",
        choices=get_args(SegmentationFormat),
        default="seg.nrrd",
        help="file format; dicom-seg (needs the extra dicom-seg) and dicom-rtstruct need DICOM series as images "
        "(default: seg.nrrd)",
    )
    segment.add_argument("--probabilities", action="store_true", help="also write a probability map per structure")
    segment.add_argument(
        "--largest-component", action="store_true", help="keep only the largest connected component of each structure"
    )
    segment.add_argument(
        "--all-pieces",
        action="store_true",
        help="keep disconnected components even of structures that were in one piece on their exemplars",
    )
    segment.add_argument(
        "--min-island-ml", type=float, default=0.0, metavar="ML", help="remove connected components below this volume"
    )
    segment.add_argument(
        "--smoothing-mm",
        type=float,
        default=0.0,
        metavar="MM",
        help="smooth labels with a Gaussian of this sigma (0: off)",
    )
    segment.add_argument(
        "--processes", type=_positive, default=1, metavar="N", help="images segmented in parallel (default: 1)"
    )
    segment.add_argument(
        "--dask",
        metavar="local|ADDRESS",
        help="spread the images over a Dask cluster: one of --processes workers here, or that of a scheduler's address "
        "(extra dask)",
    )
    segment.add_argument(
        "--part",
        type=part_from,
        default=WHOLE,
        metavar="i/n",
        help="segment only the i-th of n equal parts of the images, for arrays of jobs on a cluster",
    )
    segment.add_argument("--out", required=True, metavar="DIR")


def _add_evaluate(commands: Any, common: argparse.ArgumentParser) -> None:
    evaluate = commands.add_parser("evaluate", parents=[common], help="compare segmentations to references")
    evaluate.add_argument("--pred", required=True, metavar="DIR|FILE")
    evaluate.add_argument("--ref", required=True, metavar="DIR|FILE")
    evaluate.add_argument("--structures", type=structures_from, metavar="6=liver,1=spleen", help="default: all")
    evaluate.add_argument(
        "--tolerance-mm",
        type=float,
        default=2.0,
        metavar="MM",
        help="tolerance of the normalized surface distance (default: 2)",
    )
    _add_overwrite(evaluate)
    evaluate.add_argument("--out", required=True, metavar="METRICS.csv")


def _add_reading(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--same-voxels",
        action="store_true",
        help="assume that labelmap voxels correspond to image voxels, whatever their headers say",
    )
    command.add_argument(
        "--ignore", type=_positive, metavar="LABEL", help='the label for "unknown": slices that hold it are not known'
    )
    command.add_argument("--channel", type=_whole_number, metavar="N", help="channel of multi-channel images, from 0")
    command.add_argument("--time-index", type=_whole_number, metavar="N", help="time point of 4-D images, from 0")


def _add_intensity(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--intensity",
        metavar="KIND:LOW,HIGH",
        help="which values become black and white: auto, window:-125,275 (raw units), percentile:0.5,99.5 or minmax",
    )


def _intensity(chosen: argparse.Namespace) -> dict[str, Any] | None:
    spec = intensity_from(chosen.intensity) if chosen.intensity is not None else None
    return spec.to_dict() if spec else None


def _add_overwrite(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="replace existing outputs even if they were written or changed by someone else",
    )


def _add_models(commands: Any, common: argparse.ArgumentParser) -> None:
    models = commands.add_parser("models", help="base models: list, download, verify, add, remove")
    actions = models.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", parents=[common], help="list base models and their files")
    download = actions.add_parser(
        "download", parents=[common], help="download models; no other command uses the network"
    )
    download.add_argument("names", nargs="+", metavar="MODEL")
    verify = actions.add_parser("verify", parents=[common], help="verify files against their published checksums")
    verify.add_argument("names", nargs="*", metavar="MODEL")
    add = actions.add_parser("add", parents=[common], help="register a model file of your own")
    add.add_argument("file", metavar="FILE")
    add.add_argument("--architecture", metavar="NAME", help="vit_b, vit_l, vit_h, tiny_vit or compact")
    add.add_argument("--name", metavar="NAME", help="name of the model; default: the file's name")
    remove = actions.add_parser("remove", parents=[common], help="delete downloaded models, or unregister your own")
    remove.add_argument("names", nargs="+", metavar="MODEL")


def _add_export(commands: Any, common: argparse.ArgumentParser) -> None:
    export = commands.add_parser(
        "export-nnunet",
        parents=[common],
        help="write corrected cases as an nnU-Net data set",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: fewshotseg export-nnunet --images patients --labels corrected --id 501 --name Abdomen "
        "--channel CT --out nnUNet_raw",
    )
    export.add_argument("--images", required=True, metavar="DIR", help="folder of volumes")
    export.add_argument("--labels", required=True, metavar="DIR", help="folder of their corrected segmentations")
    export.add_argument("--id", required=True, type=_positive, metavar="N", help="number of the data set, 1 to 999")
    export.add_argument("--name", required=True, metavar="NAME", help="name of the data set")
    export.add_argument("--channel", required=True, metavar="KIND", help="modality: CT, or another word such as MR")
    export.add_argument("--out", required=True, metavar="DIR", help="folder of raw data sets (nnUNet_raw)")


def _whole_number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number from 0 is needed, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 is needed, got {text!r}")
    return int(text)


def part_from(text: str) -> Part:
    """Parse a part such as "2/8", the second of eight.

    >>> part_from("2/8")
    Part(number=2, count=8)
    """
    number, slash, count = text.partition("/")
    if not slash or not number.strip().isdecimal() or not count.strip().isdecimal():
        raise argparse.ArgumentTypeError(f'a part is written i/n, such as 2/8, got "{text}"')
    try:
        return Part(int(number), int(count))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def structures_from(text: str) -> dict[int, str]:
    """Parse "6=liver,1=spleen" into {6: "liver", 1: "spleen"}.

    >>> structures_from("6=liver, 1=spleen")
    {6: 'liver', 1: 'spleen'}
    """
    found: dict[int, str] = {}
    for pair in text.split(","):
        value, equals, name = (part.strip() for part in pair.partition("="))
        if not equals or not value.isdecimal() or not name:
            raise argparse.ArgumentTypeError(f'write structures as "6=liver,1=spleen", got "{text}"')
        if int(value) in found:
            raise argparse.ArgumentTypeError(f'label {value} occurs twice in "{text}"')
        found[int(value)] = name
    return found


# --------------------------------------------------------------------------------------------------------------- jobs


def adapt_job_from(chosen: argparse.Namespace, recipe: dict[str, Any]) -> AdaptJob:
    folders = [text for text in chosen.exemplars if chosen.method == "gmiseg" and Path(text).is_dir()]
    return AdaptJob(
        out=chosen.out,
        method=chosen.method,
        exemplars=tuple(_exemplar(text, chosen) for text in chosen.exemplars if text not in folders),
        auxiliary=tuple(files_of(found) for folder in folders for found in data_sets_in(Path(folder))),
        auxiliary_folder=chosen.auxiliary,
        source_folder=chosen.source,
        target_folder=chosen.target,
        base=chosen.base,
        recipe=recipe,
        warm_start=chosen.warm_start,
        max_seconds=chosen.max_seconds,
        keep_names=chosen.keep_names,
        seed=chosen.seed,
        device=chosen.device,
        intensity=_intensity(chosen),
        overwrite=chosen.overwrite,
        channel=chosen.channel,
        time_index=chosen.time_index,
    )


def _exemplar(text: str, chosen: argparse.Namespace) -> ExemplarFiles:
    image, labelmap, axis, slices = parse_exemplar(text)
    letter = None if axis is None else "kji"[axis]
    return ExemplarFiles(
        str(image),
        str(labelmap),
        letter,  # type: ignore[arg-type]
        slices,
        chosen.structures,
        chosen.resample,
        chosen.same_voxels,
        chosen.ignore,
        chosen.channel,
        chosen.time_index,
    )


def segment_job_from(chosen: argparse.Namespace, support_recipe: dict[str, Any]) -> SegmentJob:
    return SegmentJob(
        images=tuple(chosen.images),
        out=chosen.out,
        adapter=chosen.adapter,
        support=tuple(_exemplar(text, chosen) for text in chosen.support),
        support_recipe=support_recipe,
        prompts=chosen.prompts,
        base=chosen.base,
        axis=chosen.axis,
        probabilities=chosen.probabilities,
        largest_component=chosen.largest_component,
        min_island_ml=chosen.min_island_ml,
        format=chosen.format,
        all_pieces=chosen.all_pieces,
        smoothing_mm=chosen.smoothing_mm,
        seed=chosen.seed,
        device=chosen.device,
        intensity=_intensity(chosen),
        overwrite=chosen.overwrite,
        channel=chosen.channel,
        time_index=chosen.time_index,
    )


def evaluate_job_from(chosen: argparse.Namespace) -> EvaluateJob:
    return EvaluateJob(
        chosen.pred,
        chosen.ref,
        chosen.out,
        chosen.structures,
        chosen.tolerance_mm,
        overwrite=chosen.overwrite,
    )


def recipe_from(cls: type[Any], words: Sequence[str]) -> dict[str, Any]:
    """Recipe overrides of class `cls` from files and `key=value` arguments; later ones win."""
    recipe = cls()
    for word in words:
        if "=" in word and not _is_file(word):
            recipe = with_overrides(recipe, [word])
        else:
            recipe = from_dict(cls, _merged(to_dict(recipe), read_table(word, f"the recipe {word}")))
    return _differences(to_dict(recipe), to_dict(cls()))


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except (OSError, ValueError):  # too long for a file name, as a list of values may be
        return False


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _merged(below[key], value) if both else value
    return merged


def _differences(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    changed = {}
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(defaults[key], dict):
            value = _differences(value, defaults[key])
            if value:
                changed[key] = value
        elif value != defaults[key]:
            changed[key] = value
    return changed
