"""Seeded abdominal phantoms in the Synapse layout: eight organs to train and test on where there is no patient data."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from datasets.case import Geometry, slice_name
from datasets.sets.synapse import ORGANS, slice_path, volume_path, write

FORMAT_VERSION = 1
EXTENT = (200.0, 300.0, 300.0)  # mm along (D, H, W): towards the head, the patient's left, the back
WINDOW = (-125.0, 275.0)  # HU, as the Synapse preprocessing clips

_AORTA, _GALLBLADDER, _LEFT_KIDNEY, _RIGHT_KIDNEY, _LIVER, _PANCREAS, _SPLEEN, _STOMACH = range(1, len(ORGANS) + 1)
_FAT, _MUSCLE, _BONE, _AIR = -95.0, 50.0, 330.0, -900.0
_SPLITS = {"train": (0, 1), "test": (1, 9001)}  # number in the seed, number of the first case
_log = logging.getLogger(__name__)
_MANIFEST = "phantom.json"

_Point = tuple[float, float, float]


class _Space:
    """The patient's coordinates in mm at every voxel, bent and moved differently in every case.

    Fields are functions on the grid, negative inside a shape and about the distance in mm to its surface.
    Points and radii are (z, x, y): towards the head, the patient's left, the back.
    """

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int, int]) -> None:
        self.rng = rng
        unit = [(np.arange(n, dtype=np.float32) + 0.5) / n for n in shape]
        self._waves = [np.cos(np.pi * np.arange(6, dtype=np.float32)[:, None] * u) for u in unit]
        z, x, y = np.meshgrid(*[(u - 0.5) * e for u, e in zip(unit, EXTENT, strict=True)], indexing="ij", sparse=True)
        shift, angle = rng.normal(0.0, (5.0, 4.0, 4.0)), np.deg2rad(rng.normal(0.0, 3.0))
        scale = rng.uniform(0.92, 1.06)
        z, x, y = z - shift[0], x - shift[1], y - shift[2]
        x, y = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        self.z = (z / scale + self.smooth(3.0)).astype(np.float32)
        self.x = (x / scale + self.smooth(3.0)).astype(np.float32)
        self.y = (y / scale + self.smooth(3.0)).astype(np.float32)

    def vary(self, value: float, by: float) -> float:
        """A number near `value`, at most a share `by` away."""
        return float(value * self.rng.uniform(1.0 - by, 1.0 + by))

    def near(self, point: _Point, by: float) -> _Point:
        """A point near `point`, `by` mm away along each axis (one standard deviation)."""
        z, x, y = (np.asarray(point) + np.clip(self.rng.normal(size=3), -2.0, 2.0) * by).tolist()
        return z, x, y

    def smooth(self, amplitude: float, modes: int = 4) -> np.ndarray:
        """A random smooth field with standard deviation `amplitude`, made of the first `modes` waves of each axis."""
        index = np.indices((modes,) * 3)
        weight = self.rng.normal(size=(modes,) * 3) / (1.0 + (index**2).sum(0))
        weight[0, 0, 0] = 0.0
        weight *= amplitude / np.sqrt((weight**2 * 0.5 ** (index > 0).sum(0)).sum())
        a, b, c = (w[:modes] for w in self._waves)
        return np.einsum("ijk,id,jh,kw->dhw", weight.astype(np.float32), a, b, c, optimize=True)

    def ellipsoid(self, center: _Point, radii: _Point, tilt: float = 0.0) -> np.ndarray:
        """The field of an ellipsoid turned by `tilt` degrees about the head-foot axis."""
        cos, sin = np.float32(np.cos(np.deg2rad(tilt))), np.float32(np.sin(np.deg2rad(tilt)))
        z, x, y = (self.z - center[0]) / radii[0], self.x - center[1], self.y - center[2]
        x, y = (cos * x + sin * y) / radii[1], (cos * y - sin * x) / radii[2]
        distance = np.sqrt(z * z + x * x + y * y) + np.float32(1e-6)
        slope = np.sqrt((z / radii[0]) ** 2 + (x / radii[1]) ** 2 + (y / radii[2]) ** 2) + np.float32(1e-6)
        return distance * (distance - 1.0) / slope

    def tube(self, points: Sequence[_Point], radii: Sequence[float]) -> np.ndarray:
        """The field of a tube along a polyline whose radius changes from point to point."""
        nearest = np.full(self.z.shape, np.inf, dtype=np.float32)
        for start, end, first, last in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True):
            way = np.subtract(end, start).astype(np.float32)
            z, x, y = self.z - start[0], self.x - start[1], self.y - start[2]
            along = np.clip((z * way[0] + x * way[1] + y * way[2]) / (way @ way), 0.0, 1.0)
            distance = np.sqrt((z - along * way[0]) ** 2 + (x - along * way[1]) ** 2 + (y - along * way[2]) ** 2)
            np.minimum(nearest, distance - (first + along * (last - first)), out=nearest)
        return nearest


def _blend(a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """The union of two fields with the seam rounded off."""
    h = np.clip(0.5 + 0.5 * (b - a) / radius, 0.0, 1.0)
    return b + (a - b) * h - radius * h * (1.0 - h)


class _Torso:
    """Everything that is no organ of ours: fat, wall, ribs, spine, lungs, heart, vein, bowel; and where organs fit."""

    def __init__(self, space: _Space) -> None:
        rng = space.rng
        width, height = space.vary(132.0, 0.05), space.vary(98.0, 0.08)
        rim, wall = rng.uniform(8.0, 20.0), rng.uniform(8.0, 12.0)
        radius = (np.abs(space.x / width) ** 2.4 + np.abs(space.y / height) ** 2.4) ** np.float32(1 / 2.4)
        skin = (radius - 1.0) * 0.5 * (width + height)
        self.cavity = skin + rim + wall
        self.hu = np.where(skin < 0, np.float32(_FAT), np.float32(_AIR))
        self.hu[(skin + rim < 0) & (self.cavity > 0)] = rng.normal(_MUSCLE, 6.0)
        angle = np.abs(np.arctan2(space.x, space.y))
        ribs = np.cos((space.z + 28.0 * angle) * np.float32(2 * np.pi / 34.0)) > 0.55
        self.hu[ribs & (np.abs(self.cavity - 0.5 * wall) < 3.0) & (space.z > -40.0)] = 0.8 * _BONE
        self._spine(space)
        self.dome = self._lungs(space)
        self._distractors(space)

    def _spine(self, space: _Space) -> None:
        for side in (-1.0, 1.0):
            psoas = space.ellipsoid((-50.0, 36.0 * side, 55.0), (70.0, 15.0, 17.0))
            back = space.ellipsoid((0.0, 30.0 * side, 88.0), (300.0, 26.0, 14.0))
            self.hu[(np.minimum(psoas, back) < 0) & (self.cavity < 8.0)] = _MUSCLE
        bone = space.ellipsoid((0.0, 0.0, 54.0), (2000.0, 22.0, 18.0))
        disc = np.cos((space.z + space.rng.uniform(0.0, 36.0)) * np.float32(2 * np.pi / 36.0)) > 0.85
        self.hu[bone < 0] = np.where(disc, 90.0, np.where(bone > -3.5, _BONE, 190.0))[bone < 0]
        self.hu[np.abs(space.ellipsoid((0.0, 0.0, 80.0), (2000.0, 11.0, 10.0))) < 3.0] = _BONE
        self.hu[space.ellipsoid((0.0, 0.0, 80.0), (2000.0, 8.0, 7.0)) < 0] = 20.0

    def _lungs(self, space: _Space) -> np.ndarray:
        top = space.rng.normal(84.0, 4.0)
        bulge = ((np.abs(space.x) - 60.0) / 75.0) ** 2 + ((space.y + 5.0) / 85.0) ** 2
        dome = space.z - (top - 60.0 * bulge)
        middle = np.abs(space.x) < 26.0 + 6.0 * np.cos(space.y / 15.0)
        self.hu[(dome > 4.0) & (self.cavity < 0) & ~middle] = _AIR
        heart = space.ellipsoid((112.0, 18.0, -35.0), (34.0, 48.0, 36.0), 25.0)
        self.hu[(heart < 0) & (self.cavity < -3.0)] = space.rng.normal(140.0, 12.0)
        return dome

    def _distractors(self, space: _Space) -> None:
        rng = space.rng
        vein = space.tube([(-130.0, -18.0, 34.0), (20.0, -22.0, 26.0), (130.0, -20.0, 6.0)], [10.0, 11.0, 12.0])
        self.hu[vein < 0] = rng.normal(125.0, 10.0)
        colon = [(-110.0, 0.0, 5.0), (-25.0, 0.0, -5.0)]
        loops = [[(z, side * space.vary(88.0, 0.05), y) for z, _, y in colon] for side in (-1.0, 1.0)]
        for _ in range(rng.integers(5, 9)):
            start = (rng.uniform(-105.0, -40.0), rng.uniform(-70.0, 70.0), rng.uniform(-65.0, -5.0))
            loops.append([start, space.near(start, 18.0), space.near(start, 22.0)])
        for loop in loops:
            field = space.tube(loop, [rng.uniform(9.0, 15.0)] * len(loop)) + space.smooth(1.5)
            field = np.maximum(field, self.cavity + 2.0)
            self.hu[field < 0] = rng.normal(65.0, 8.0)
            self.hu[field < -3.0] = rng.choice([-300.0, 15.0, 40.0, 180.0], p=[0.25, 0.3, 0.35, 0.1])


def _kidney(space: _Space, side: float) -> np.ndarray:
    center = space.near((-32.0 + 6.0 * side, 62.0 * side, 40.0), 4.0)
    radii = (space.vary(50.0, 0.12), space.vary(25.0, 0.12), space.vary(23.0, 0.12))
    bean = space.ellipsoid(center, radii, -25.0 * side)
    hilum = space.ellipsoid((center[0], center[1] - 20.0 * side, center[2] - 10.0), (18.0, 14.0, 8.0), -25.0 * side)
    return np.maximum(bean, -hilum)


def _liver(space: _Space) -> np.ndarray:
    size = space.vary(1.0, 0.1)
    right = space.ellipsoid(space.near((30.0, -60.0, -4.0), 5.0), (70.0 * size, 58.0 * size, 68.0 * size), 10.0)
    left = space.ellipsoid(space.near((45.0, 5.0, -42.0), 6.0), (34.0 * size, space.vary(58.0, 0.2), 24.0 * size), 8.0)
    return _blend(right, left, 18.0) + space.smooth(3.5, modes=6)


def _spleen(space: _Space) -> np.ndarray:
    center = space.near((42.0, 88.0, 30.0), 5.0)
    size = space.vary(1.0, 0.18)
    outer = space.ellipsoid(center, (44.0 * size, 25.0 * size, 46.0 * size), -20.0)
    hollow = space.ellipsoid((center[0], center[1] - 34.0, center[2] - 8.0), (60.0, 24.0, 34.0), -20.0)
    return np.maximum(outer, -hollow) + space.smooth(2.0)


def _stomach(space: _Space) -> np.ndarray:
    size = space.vary(1.0, 0.18)
    way = [(62.0, 52.0, 8.0), (38.0, 56.0, -26.0), (10.0, 34.0, -48.0), (0.0, 2.0, -46.0), (4.0, -18.0, -34.0)]
    radii = [r * size for r in (29.0, 28.0, 20.0, 15.0, 9.0)]
    return space.tube([space.near(p, 4.0) for p in way], radii) + space.smooth(2.0)


def _pancreas(space: _Space) -> np.ndarray:
    way = [(-28.0, -32.0, 4.0), (-8.0, -30.0, 0.0), (4.0, -4.0, -10.0), (10.0, 28.0, -2.0), (22.0, 62.0, 20.0)]
    lift = space.near((0.0, 0.0, 0.0), 4.0)
    points = [space.near(tuple(np.add(p, lift)), 3.0) for p in way]
    size = space.vary(1.0, 0.12)
    return space.tube(points, [r * size for r in (12.0, 14.0, 10.0, 10.5, 9.0)]) + space.smooth(1.5, modes=6)


def _gallbladder(space: _Space) -> np.ndarray:
    size, way = space.vary(1.0, 0.2), ((-14.0, -52.0, -44.0), (14.0, -42.0, -26.0))
    return space.tube([space.near(p, 3.0) for p in way], [15.0 * size, 9.0 * size])


def _aorta(space: _Space) -> np.ndarray:
    way = [(-130.0, 6.0, 26.0), (-40.0, 8.0, 25.0), (40.0, 7.0, 26.0), (130.0, 12.0, 28.0)]
    radius = space.vary(10.5, 0.12)
    return space.tube([space.near(p, 2.0) for p in way], [radius * r for r in (0.9, 1.0, 1.08, 1.15)])


# From the organ that gives way to the one drawn over it: how it is made, HU, its spread, and mm of fat around it.
_PAINT: dict[int, tuple[Callable[[_Space], np.ndarray], float, float, float]] = {
    _LIVER: (_liver, 105.0, 8.0, 2.0),
    _STOMACH: (_stomach, 25.0, 10.0, 3.0),
    _SPLEEN: (_spleen, 130.0, 8.0, 3.0),
    _LEFT_KIDNEY: (lambda space: _kidney(space, 1.0), 200.0, 12.0, 4.0),
    _RIGHT_KIDNEY: (lambda space: _kidney(space, -1.0), 200.0, 12.0, 4.0),
    _PANCREAS: (_pancreas, 85.0, 8.0, 4.0),
    _GALLBLADDER: (_gallbladder, 8.0, 8.0, 0.0),
    _AORTA: (_aorta, 170.0, 12.0, 3.0),
}


def _absent(rng: np.random.Generator) -> set[int]:
    """Organs that this patient lacks: now and then the gallbladder, more seldom a kidney or the spleen."""
    gone = {_GALLBLADDER} if rng.random() < 0.08 else set()
    if rng.random() < 0.06:
        gone.add(int(rng.choice([_LEFT_KIDNEY, _RIGHT_KIDNEY, _SPLEEN])))
    return gone


def _fill(space: _Space, organ: int, field: np.ndarray, mean: float) -> np.ndarray:
    """HU at every voxel where an organ's field is negative, about `mean`: cortex, contents and texture."""
    rng, depth = space.rng, field[field < 0]
    hu = np.full(depth.shape, mean, dtype=np.float32)
    if organ in (_LEFT_KIDNEY, _RIGHT_KIDNEY):
        hu[depth < -rng.uniform(6.0, 9.0)] -= 45.0
    elif organ == _STOMACH:
        level = space.y[field < 0]
        hu[level > np.quantile(level, rng.uniform(0.35, 0.7))] += 35.0
        hu[level < np.quantile(level, rng.uniform(0.02, 0.22))] = -300.0
        hu[depth > -3.5] = 75.0
    elif organ in (_LIVER, _SPLEEN, _PANCREAS):
        hu += space.smooth(6.0, modes=6)[field < 0]
    return hu


def make_phantom(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw one patient: `image` (D, H, W) float32 in [0, 1] and `label` (D, H, W) uint8, 0..8.

    The axes are (z, x, y), growing towards the head, the patient's left and the back; the volume measures `EXTENT`
    mm whatever its shape. The image is CT in HU, clipped to `WINDOW` and scaled.

    Raises:
        ValueError: the shape is not three positive numbers.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape {tuple(shape)} is not that of a volume; expected three positive numbers (D, H, W)")
    gone = _absent(rng)
    space = _Space(rng, shape)
    torso = _Torso(space)
    hu, label = torso.hu, np.zeros(shape, dtype=np.uint8)
    room = np.maximum(torso.cavity, torso.dome) + 2.0
    for organ, (make, mean, spread, gap) in _PAINT.items():
        field, mean = make(space), rng.normal(mean, spread)
        if organ in gone:
            continue
        field = field if organ == _AORTA else np.maximum(field, room)
        around = field < gap
        hu[around & (label > 0)] = _FAT
        label[around] = 0
        label[field < 0] = organ
        hu[field < 0] = _fill(space, organ, field, mean)
    blur = [1.6 * n / e for n, e in zip(shape, EXTENT, strict=True)]
    hu = ndimage.gaussian_filter(np.clip(hu, -300.0, 400.0), blur, mode="nearest")
    hu += space.smooth(4.0) + rng.uniform(9.0, 18.0) * rng.standard_normal(shape, dtype=np.float32)
    return np.clip((hu - WINDOW[0]) / (WINDOW[1] - WINDOW[0]), 0.0, 1.0).astype(np.float32), label


def _save_case(root: Path, split: str, number: int, shape: tuple[int, int, int], seed: int) -> list[str]:
    """Draw one case and write it; returns the names that its list is to hold."""
    code, first = _SPLITS[split]
    image, label = make_phantom(np.random.default_rng([seed, code, number]), shape)
    depth, width, height = (float(e / n) for e, n in zip(EXTENT, shape, strict=True))
    geometry = Geometry(spacing=(width, height, depth), axis_order="zxy")
    case = f"phantom{first + number:04d}"
    if split == "test":
        write(volume_path(root / "test_vol_h5", case), image, label, geometry)
        return [case]
    names = [slice_name(case, index) for index in range(len(image))]
    for index, name in enumerate(names):
        write(slice_path(root / "train_npz", name), image[index], label[index], geometry)
    return names


def _write_all(root: Path, parameters: dict[str, int]) -> None:
    for folder in ("train_npz", "test_vol_h5", "lists"):
        (root / folder).mkdir(parents=True)
    shape = (parameters["depth"], parameters["size"], parameters["size"])
    for split, file in (("train", "train.txt"), ("test", "test_vol.txt")):
        cases = range(parameters[f"{split}_cases"])
        names = [name for case in cases for name in _save_case(root, split, case, shape, parameters["seed"])]
        (root / "lists" / file).write_text("\n".join(names) + "\n", encoding="utf-8")
    (root / _MANIFEST).write_text(json.dumps(parameters, indent=2) + "\n", encoding="utf-8")


def _is_there(root: Path, wanted: dict[str, int]) -> bool:
    """Whether `root` already holds these phantoms; a ValueError if it holds anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / _MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            f"{root}: is there but holds no phantoms ({_MANIFEST} is missing or damaged); "
            "expected an empty or new folder, so name another one or move this one away"
        )
    pairs = [(key, found.get(key), wanted.get(key)) for key in {**wanted, **found}]
    differs = [f"{key} is {old}, not {new}" for key, old, new in pairs if old != new]
    if differs:
        raise ValueError(
            f"{root}: holds phantoms made otherwise ({', '.join(differs)}); "
            "name another folder, or delete this one to have it made anew"
        )
    return True


def prepare_phantom(
    root: Path, *, size: int = 96, depth: int = 32, train_cases: int = 24, test_cases: int = 8, seed: int = 2021
) -> None:
    """Write phantoms in the Synapse layout: `train_npz`, `test_vol_h5`, `lists` and the parameters in `phantom.json`.

    Every case has a seed of its own, so more cases leave the others as they were, and no test case is a training
    case. `root` appears complete or not at all; where it holds these very phantoms already, nothing is done.

    Raises:
        ValueError: a parameter is out of range, or `root` holds something else or phantoms made otherwise.
        OSError: `root` cannot be written.
    """
    cases = {"train_cases": train_cases, "test_cases": test_cases}
    parameters = {"format": FORMAT_VERSION, "size": size, "depth": depth, **cases, "seed": seed}
    for key, value in parameters.items():
        least = {"seed": 0, "size": 16}.get(key, 1)
        most = 999 if key.endswith("cases") else 2**31
        if not least <= value <= most:
            raise ValueError(f"{key} {value} is out of range; expected a whole number from {least} to {most}")
    root = Path(root).resolve()
    if _is_there(root, parameters):
        return
    _log.info("making %d phantoms in %s", train_cases + test_cases, root)
    root.parent.mkdir(parents=True, exist_ok=True)
    making = root.with_name(f".{root.name}.{secrets.token_hex(8)}.tmp")
    try:
        _write_all(making, parameters)
        try:
            making.replace(root)
        except OSError:
            # Another process may have been faster; then its phantoms are as good as ours.
            if not _is_there(root, parameters):
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
