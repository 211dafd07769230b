"""Faces: how many are found, how far off their landmarks are, how fast it is, and what it costs a prediction.

The images are the labelled ones of DIR/train (a sample), each with at least one face. A face counts as found if it is
the main one of the image and its landmarks are off by less than half of the distance of the eyes; the landmarks of the
clean image, shown at twice the size in use, stand for the true ones. Prediction is timed as whole processes, in turn,
with random weights.

    python benchmarks/faces.py data/facecom
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from training import PROJECT

from gender_cls.evaluation.tables import table
from gender_cls.models.network import GenderNet
from gender_cls.transforms import centerface, faces
from gender_cls.transforms.corruptions import CORRUPTIONS, SEVERITIES
from gender_cls.transforms.decode import Decoder
from gender_cls.transforms.listing import list_images
from gender_cls.transforms.preprocessing import Preprocessing
from gender_cls.transforms.views import CONDITIONS, FRAMES, MID_SEVERITY, REPORTED, in_condition

IMAGES, TIMES = 300, 3
SIDES = (64, 96, 128, 160, 192, 256)
FAR = 0.5  # of the distance of the eyes, from which on it is another face
Sample = list[tuple[str, Image.Image, np.ndarray]]


def errors(detector: faces.Detector, sample: Sample, number: int) -> np.ndarray:
    """Return the error of each face in a condition (N, 5): mean distance of a landmark, and that of the placed frame.

    The latter is the logarithm of its size, its shift along each side, as shares of the distance of the eyes, and its
    turn in degrees. Faces that are not found are NaN.
    """
    rows = []
    for name, image, truth in sample:
        changed = in_condition(image, name, number)
        face = faces.main_face(detector.find_faces(changed), changed.size)
        framed = CONDITIONS[number][0] == "framing"
        scale = 1 if framed else image.width / changed.width
        offset = (np.array(changed.size) - image.size) / 2 if framed else 0
        rows.append(np.full(5, np.nan) if face is None else error((face.landmarks - offset) * scale, truth))
    found = np.array(rows)
    found[found[:, 0] > FAR] = np.nan
    return found


def error(landmarks: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return a row of `errors`."""
    eyes = np.hypot(*(truth[1] - truth[0]))
    (turn, shift), (true_turn, true_shift) = (faces.similarity(faces.TEMPLATE - 0.5, p) for p in (landmarks, truth))
    change = np.linalg.inv(true_turn) @ turn
    size, angle = np.log(np.hypot(*change[0])), np.degrees(np.arctan2(change[1, 0], change[0, 0]))
    distance = np.hypot(*(landmarks - truth).T).mean() / eyes
    return np.array([distance, size, *(shift - true_shift) / eyes, angle])


def conditions(detector: faces.Detector, sample: Sample) -> str:
    """Return the tables of what is found in each condition, and of how far off it is."""
    found = {number: errors(detector, sample, number) for number in range(len(CONDITIONS))}
    missed = {CONDITIONS[number]: int(np.isnan(rows[:, 0]).sum()) for number, rows in found.items()}
    lines: list[list[object]] = [["clean", missed["clean", 0]]]
    lines += [[name, *(missed[name, severity] for severity in SEVERITIES)] for name in CORRUPTIONS]
    lines = [[*line, *[""] * (6 - len(line))] for line in lines]
    framed = [[f"frame of {share}", missed["framing", share], *[""] * 4] for share in FRAMES]
    text = table((f"of {len(sample)} faces missed at severity", *map(str, SEVERITIES)), [*lines, *framed])
    rows: list[list[object]] = []
    placed = {name: found[number][~np.isnan(found[number][:, 0])] for name, number in REPORTED.items()}
    placed |= {"all corruptions": np.concatenate([rows for name, rows in placed.items() if name != "clean"])}
    for name, some in placed.items():
        spread = np.sqrt(np.mean(some[:, 1:] ** 2, axis=0)).tolist()
        rows.append([name, *np.quantile(some[:, 0], [0.5, 0.9]).tolist(), *spread])
    header = (f"landmark error, severity {MID_SEVERITY}", "median", "90 %", "size", "shift x", "shift y", "turn")
    return f"{text}\n\n{table(header, rows)}"


def sides(sample: Sample, min_score: float) -> str:
    """Return the table of misses and speed by the size at which an image is shown."""
    rows: list[list[object]] = []
    for side in SIDES:
        centerface.FIRST_SIDE = side
        detector = centerface.CenterFace(min_score)
        detector.find_faces(sample[0][1])  # loads the model
        started = time.perf_counter()
        clean = int(np.isnan(errors(detector, sample, 0)[:, 0]).sum())
        seconds = time.perf_counter() - started
        missed = [int(np.isnan(errors(detector, sample, n)[:, 0]).sum()) for n in list(REPORTED.values())[1:]]
        rows.append([side, f"{len(sample) / seconds:.0f}", clean, *missed, sum(missed)])
    header = ("side", "images/s, one thread", "missed clean", *list(REPORTED)[1:], "together")
    return table(header, rows)


def prediction(images: list[str], times: int) -> str:
    """Return the table of the rates of a prediction that looks for faces and one that does not."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model, listed = Path(folder, "model.pth"), Path(folder, "images.txt")
        torch.save(GenderNet(None).plain_state(), model)
        model.with_suffix(".json").write_text(json.dumps({"preprocessing": asdict(Preprocessing(faces="align"))}))
        listed.write_text("\n".join(images))
        command = [
            sys.executable,
            str(PROJECT / "predict.py"),
            f"model={model}",
            f"img=@{listed}",
            f"out={folder}/o.csv",
        ]
        rates: dict[str, list[float]] = {"faces=none": [], "faces=all": []}
        for _ in range(times):
            for how, found in rates.items():
                started = time.perf_counter()
                subprocess.run([*command, how], capture_output=True, check=True)
                found.append(len(images) / (time.perf_counter() - started))
    whole, cut = rates.values()
    ratios = [b / a for a, b in zip(whole, cut)]
    lines: list[list[object]] = [[name, statistics.median(found)] for name, found in rates.items()]
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return table((f"{len(images)} images", "images/s"), [*lines, ["ratio", ratio]])


def main() -> None:
    """Measure everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with train/")
    parser.add_argument("--images", type=int, default=IMAGES, help="(%(default)s)")
    parser.add_argument("--times", type=int, default=TIMES, help="pairs of predictions (%(default)s)")
    parser.add_argument("--min-score", type=float, default=0.55, help="(%(default)s)")
    given = parser.parse_args()
    paths = list_images(given.root.resolve() / "train").paths
    random.Random(0).shuffle(paths)
    usual = centerface.FIRST_SIDE
    centerface.FIRST_SIDE = 2 * usual
    detector, sample, frames = centerface.CenterFace(given.min_score), [], []
    for path in paths[: given.images]:
        image = Decoder().load(path)
        if face := faces.main_face(detector.find_faces(image), image.size):
            sample.append((Path(path).name, image, face.landmarks))
            frames.append(image.height / face.box[3])
    centerface.FIRST_SIDE = usual
    if not sample:
        sys.exit(f"error: no face is found in {given.root}/train")
    print(f"{len(sample)} of {len(paths[: given.images])} images have a face")
    print(f"median height of the image, as a multiple of that of the face's box: {statistics.median(frames):.2f}\n")
    print(conditions(centerface.CenterFace(given.min_score), sample))
    print(f"\n{sides(sample, given.min_score)}\n\n{prediction(paths[: 4 * given.images], given.times)}")


if __name__ == "__main__":
    main()
