"""A model's predictions on clean and corrupted images, and their metrics."""

import csv
import io
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gender_cls.data.identities import sample_identities
from gender_cls.data.sources import Face
from gender_cls.errors import UserError
from gender_cls.evaluation.metrics import Evaluation
from gender_cls.features.extractor import Extractor
from gender_cls.features.landmarks import landmarks_of
from gender_cls.features.store import Store
from gender_cls.files import relative_paths
from gender_cls.inference.journal import safe_cell
from gender_cls.labels import CLASSES
from gender_cls.models.network import GenderNet
from gender_cls.transforms.corruptions import CORRUPTIONS, SEVERITIES
from gender_cls.transforms.decode import Decoder
from gender_cls.transforms.preprocessing import Preprocessing
from gender_cls.transforms.views import CLEAN, CONDITIONS, IN_FRAME, MID_SEVERITY, REPORTED

MAX_IMAGES = 5000  # images of val predicted in every condition: 200,000 passes, half an hour on two cores
MIN_GROUP_IDENTITIES = 10
MISTAKES = 12  # mistakes that are listed and shown, clean and corrupted
BATCH = 4096  # features whose logits are computed at once


@dataclass
class Predictions:
    """A model's predictions for the same images in all conditions.

    Attributes:
        faces: Faces (N).
        logits: Logits (len(CONDITIONS), N).
        source: Folder or table of the data, whose folder paths are given relative to.
        decoder: How images are decoded.
        found: Whether a face was found (len(CONDITIONS), N); None if none was looked for. Where none was, the middle of
            the image was predicted.
    """

    faces: list[Face]
    logits: torch.Tensor
    source: Path = Path()
    decoder: Decoder = field(default_factory=Decoder)
    found: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.paths = relative_paths([face.path for face in self.faces], self.source)
        self.probabilities = self.logits.sigmoid()
        self.labels = np.array([face.label for face in self.faces])
        self.identities = [face.identity for face in self.faces]

    def to_csv(self) -> str:
        """Return a CSV with a row for each face and a column for each condition."""
        text = io.StringIO()
        rows = csv.writer(text)
        conditions = [f"{name}_{severity}" if severity else name for name, severity in CONDITIONS]
        rows.writerow(("path", "label", "identity", "group", *conditions))
        for path, face, p_male in zip(self.paths, self.faces, self.probabilities.T.tolist()):
            known = (path, CLASSES[face.label], face.identity, face.group)
            rows.writerow((*map(safe_cell, known), *(f"{p:.6f}" for p in p_male)))
        return text.getvalue()


def predict_conditions(
    network: GenderNet,
    preprocessing: Preprocessing,
    faces: Sequence[Face],
    extractor: Extractor,
    num_workers: int,
    source: Path = Path(),
) -> Predictions:
    """Predict faces in every condition; more than `MAX_IMAGES` are sampled down to about that many, by identity.

    `source` is the folder or table of the data, whose folder the paths in a report are relative to.

    Raises:
        UserError: If none of the images can be read any more.
    """
    faces = sample_identities(faces, MAX_IMAGES, "report")
    kept, logits = predict_faces(network, preprocessing, faces, extractor, num_workers, range(len(CONDITIONS)))
    find = landmarks_of(preprocessing, extractor.folder, extractor.decoder)
    digests = np.array([face.digest.encode() for face in kept])
    counts = [find.counts(digests, number) for number in range(len(CONDITIONS))] if find else []
    return Predictions(kept, logits, source, extractor.decoder, np.stack(counts) > 0 if find else None)


def predict_faces(
    network: GenderNet,
    preprocessing: Preprocessing,
    faces: Sequence[Face],
    extractor: Extractor,
    num_workers: int,
    conditions: Sequence[int],
) -> tuple[list[Face], torch.Tensor]:
    """Return the faces (N) that can still be read, and their logits (C, N) in C conditions, given by number.

    Raises:
        UserError: If none of the images can be read any more.
    """
    images = {face.digest.encode(): face.path for face in faces}
    wanted = dict.fromkeys(images, tuple(conditions))
    store = extractor.evaluate(preprocessing, images, wanted, num_workers)
    digests = np.array([face.digest.encode() for face in faces])
    places = np.stack([store.find(digests, column) for column in conditions])
    stored = np.all(places >= 0, axis=0)
    if not stored.any():
        raise UserError("no-images", "none of the images can be read any more; are the files still there?")
    head = deepcopy(network.head).cpu()
    logits = torch.stack([logits_of(head, store, row) for row in places[:, stored]])
    return [face for face, keep in zip(faces, stored) if keep], logits


def logits_of(head: nn.Linear, store: Store, places: np.ndarray) -> torch.Tensor:
    """Return the logits (N) of a head on the CPU for the features stored at `places` (N)."""
    batches = [places[at : at + BATCH] for at in range(0, len(places), BATCH)]
    with torch.inference_mode():
        return torch.cat([head(store.read(some)).squeeze(1) for some in batches] or [torch.empty(0)])


def measure(predictions: Predictions, exclude: str | None = None) -> dict[str, Any]:
    """Compute the metrics of a report; a slice leaves out files whose name, less its suffix, matches `exclude`."""
    evaluation = Evaluation(predictions.probabilities, predictions.labels, predictions.identities)
    places = {s: [CONDITIONS.index((name, s)) for name in CORRUPTIONS] for s in SEVERITIES}
    names = [face.group or "no value" for face in predictions.faces]
    groups = sorted(set(names))
    slices = [measure_slice(predictions, group, [name == group for name in names]) for group in groups]
    metrics: dict[str, Any] = {
        "clean": evaluation.metrics(CLEAN),
        "corrupted": {
            name: {s: evaluation.metrics(places[s][at]) for s in SEVERITIES} for at, name in enumerate(CORRUPTIONS)
        },
        "mean_over_corruptions": {s: evaluation.metrics(*places[s]) for s in SEVERITIES},
        "framing": {share: evaluation.metrics(number) for share, number in IN_FRAME.items()},
        "mean_over_frames": evaluation.metrics(*IN_FRAME.values()),
        "faces_found": count_found(predictions),
        "mistakes": mistakes(predictions, [CLEAN]),
        "mistakes_corrupted": mistakes(predictions, places[MID_SEVERITY]),
        "slices": slices if len(groups) > 1 else [],
        "gap": gap(slices),
    }
    if exclude is not None:
        kept = [not re.search(exclude, Path(face.path).stem) for face in predictions.faces]
        if any(kept) and not all(kept):
            metrics["slices"].append(measure_slice(predictions, f"without {exclude}", kept))
    return metrics


def count_found(predictions: Predictions) -> dict[str, Any] | None:
    """Count the images in which a face was found, clean, by corruption and severity, and by frame; None as `found`."""
    if predictions.found is None:
        return None
    counts = dict(zip(CONDITIONS, predictions.found.sum(1).tolist()))
    corrupted = {name: {s: counts[name, s] for s in SEVERITIES} for name in CORRUPTIONS}
    frames = {share: counts[CONDITIONS[number]] for share, number in IN_FRAME.items()}
    return {"clean": counts["clean", 0], "corrupted": corrupted, "framing": frames}


def measure_slice(predictions: Predictions, name: str, chosen: list[bool]) -> dict[str, Any]:
    """Compute the metrics of some of the images (N), clean and as the mean over corruptions."""
    identities = [identity for identity, keep in zip(predictions.identities, chosen) if keep]
    probabilities = predictions.probabilities[list(REPORTED.values())][:, chosen]
    sets = Evaluation(probabilities, predictions.labels[chosen], identities)
    return {"slice": name, "clean": sets.metrics(0), "mean_over_corruptions": sets.metrics(*range(1, len(REPORTED)))}


def mistakes(predictions: Predictions, conditions: list[int]) -> list[dict[str, Any]]:
    """List at most `MISTAKES` wrong predictions, most confident first, each image in its worst condition."""
    worst, which = (predictions.probabilities[conditions] - torch.from_numpy(predictions.labels)).abs().max(0)
    rows = []
    for index in worst.argsort(descending=True)[:MISTAKES].tolist():
        condition, face = conditions[int(which[index])], predictions.faces[index]
        p_male = float(predictions.probabilities[condition, index])
        if (p_male > 0.5) != face.label:
            found: dict[str, Any] = {"path": predictions.paths[index], "row": index, "label": CLASSES[face.label]}
            found |= {"prediction": CLASSES[p_male > 0.5], "p_male": round(p_male, 6)}
            rows.append({**found, "condition": CONDITIONS[condition][0]})
    return rows


def gap(slices: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Compare the best and the worst group by macro-F1 on clean images; None if fewer than two count.

    A group counts if it has both labels and at least `MIN_GROUP_IDENTITIES` identities: a smaller one would be best or
    worst by chance.
    """
    large = [row for row in slices if row["clean"]["identities"] >= MIN_GROUP_IDENTITIES]
    both = [row for row in large if all(map(sum, row["clean"]["confusion"]))]
    if len(both) < 2:
        return None
    worst, *_, best = sorted(both, key=lambda row: row["clean"]["f1_macro"])
    fall = round(best["clean"]["f1_macro"] - worst["clean"]["f1_macro"], 6)
    return {"best": best["slice"], "worst": worst["slice"], "f1_macro": fall}
