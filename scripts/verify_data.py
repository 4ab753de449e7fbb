"""Read a whole data set, what trains and what tests, and report everything that is wrong with it.

python scripts/verify_data.py Synapse data/Synapse [--list_dir DIR] [--num_classes 9] [--jobs 4]

One line a defect on standard output, then a summary. Exit code 0 without defects, 1 with some, 2 for bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets.case import Case, DataSet, Facts
    from datasets.errors import Defect

_ROUNDING = 1e-4  # what interpolation and float16 leave beyond 0 and 1 is no defect


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    from configs.arguments import OneLineParser

    parser = OneLineParser(prog="verify_data.py", description="Report everything that is wrong with a data set.")
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="Synapse, ACDC, GlaS, MoNuSeg, Phantom or Folder")
    add("root", type=Path, metavar="ROOT", help="the data folder")
    add("--list_dir", default="", metavar="DIR", help="folder of the lists (default: where train.py finds them)")
    add("--num_classes", type=int, metavar="K", help="classes, the background included (default: the data set's own)")
    add("--jobs", type=int, default=4, metavar="N", help="files that are read at once (default: 4)")
    return parser


def unlisted(dataset: DataSet, splits: Iterable[Sequence[Path]]) -> list[Defect]:
    """Files of Synapse and ACDC that no list names."""
    from datasets.errors import Defect
    from datasets.sets.synapse import ArraySet

    if not isinstance(dataset, ArraySet):
        return []
    named = {path.resolve() for paths in splits for path in paths}
    found = [path for name in dataset.folders for path in sorted(dataset.folder(name).glob("*.[nh][p5]*"))]
    what = f"no list names it; expected it in one in {dataset.lists}, name it there or move it away"
    return [Defect(path, what) for path in found if path.resolve() not in named]


def scaled_otherwise(dataset: DataSet, facts: Mapping[Case, Facts]) -> list[Defect]:
    """Files of Synapse and ACDC whose intensities are not from 0 to 1, or all the same under a label."""
    from datasets.errors import Defect
    from datasets.sets.synapse import ArraySet

    defects = []
    for case, found in facts.items() if isinstance(dataset, ArraySet) else ():
        if found.low < -_ROUNDING or found.high > 1 + _ROUNDING:
            what = f"its intensities are from {found.low:g} to {found.high:g}; expected 0 to 1, so clip and scale them"
            defects.append(Defect(case.images[0], what))
        elif found.low == found.high and set(found.labels) - {0}:
            what = f"its image is {found.low:g} everywhere, and its label marks something; expected an image, copy it"
            defects.append(Defect(case.images[0], what))
    return defects


def summary(split: str, facts: Sequence[Facts], groups: int, class_names: Sequence[str]) -> Iterator[str]:
    """Lines that say what the files of one split hold, each kind with the number of its files."""
    from datasets.verify import total_labels

    totals = total_labels(facts)
    yield f"{split}: {groups} cases, {len(facts)} files of images"
    yield f"  shapes: {_counted('x'.join(map(str, found.shape)) for found in facts)}"
    spacings = (", ".join(f"{value:g}" for value in found.spacing) or "not stored" for found in facts)
    yield f"  spacings (D, H, W) in mm: {_counted(spacings)}"
    yield f"  intensity: {min(found.low for found in facts):g} to {max(found.high for found in facts):g}"
    yield f"  voxels: {', '.join(f'{name} {totals[index]}' for index, name in enumerate(class_names))}"


def _counted(values: Iterable[str]) -> str:
    return "; ".join(f"{value} ({count})" for value, count in Counter(values).most_common())


def run(args: argparse.Namespace) -> int:
    """Inspect as train.py does, read every file of every split, print each defect, and sum up."""
    from configs.config import Config, complete, get_config
    from datasets import open_dataset, train_and_val
    from datasets.errors import Defects
    from datasets.verify import absent_classes, leakage, look
    from engine.logger import progress_bar
    from evaluation.inference import inspect_data, names_of, preprocessing

    if args.jobs < 1:
        raise ValueError(f"--jobs is {args.jobs}; expected 1 or more")
    name = "Synapse" if args.dataset == "Phantom" else args.dataset  # the same files; none are to be made
    keys = {"DATA.DATASET": name, "DATA.ROOT_PATH": str(args.root), "DATA.LIST_DIR": args.list_dir}
    keys |= {"MODEL.NUM_CLASSES": args.num_classes} if args.num_classes is not None else {}
    config: Config = get_config(overrides=keys)
    defects: list[Defect] = []
    try:
        config = inspect_data(config, progress_bar("inspecting"))
    except Defects as error:
        defects += error.defects
        config = complete(config)
        if not config.model.num_classes:
            return _report(defects)
    where = {"root_path": config.data.root_path, "list_dir": config.data.list_dir}
    dataset = open_dataset(name, **where, num_classes=config.model.num_classes, how=preprocessing(config))
    paths: list[list[Path]] = []
    all_there = True
    train, val = train_and_val(dataset)
    for split, names in (("train", lambda: train), ("val", lambda: val), ("test", lambda: dataset.names("test"))):
        try:
            cases = dataset.cases(names(), split)
        except Defects as error:
            defects += error.defects
            all_there = False
            continue
        except FileNotFoundError:  # there may be nothing to test on
            continue
        facts, more = look(cases, dataset.inspect, progress=progress_bar(f"reading {split}"), threads=args.jobs)
        defects += [*more, *scaled_otherwise(dataset, facts)]
        paths.append([path for case in cases for path in case.files])
        if facts:
            groups = len({dataset.group_of(case.name) for case in cases})
            print(*summary(split, list(facts.values()), groups, ["background", *names_of(config)]), sep="\n")
        if facts and split == "train":
            defects += absent_classes(facts.values(), names_of(config), dataset.lists / dataset.lists_of["train"])
    return _report([*defects, *leakage(dataset), *(unlisted(dataset, paths) if all_there else ())])


def _report(defects: Iterable[Defect]) -> int:
    found = list(dict.fromkeys(defects))
    for defect in found:
        print(defect)
    print(f"{len(found)} defects in {len({defect.path for defect in found})} files" if found else "no defects")
    return 1 if found else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Verify the data set; returns 0, 1 where it has defects, or 2 after one line on standard error."""
    root = str(Path(__file__).resolve().parent.parent)
    if root not in sys.path:  # the project is run from a clone, not installed
        sys.path.insert(0, root)
    from configs.arguments import run_guarded

    return run_guarded("verify_data.py", lambda: run(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
