"""What a command of this package is given: a model and labelled faces, read as the run that trained the model did."""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from gender_cls.data.faceset import FaceSet
from gender_cls.data.identities import IDENTITY
from gender_cls.data.sources import Listed, class_names, folder, manifest
from gender_cls.data.validation import check
from gender_cls.errors import UserError, check_extra, printable
from gender_cls.evaluation.tables import describe_data
from gender_cls.features.extractor import Extractor, FeatureOptions
from gender_cls.features.landmarks import Landmarks, landmarks_of
from gender_cls.files import user_path
from gender_cls.inference.arguments import parse_arguments
from gender_cls.inference.predictor import Predictor, newest_model
from gender_cls.transforms.centerface import NEEDED
from gender_cls.transforms.decode import MAX_PIXELS, Decoder

PATHS = ("model", "data.root", "data.csv", "out", "features.dir")
USUAL = {"identity": IDENTITY, "val_share": 0.2, "split_seed": 0, "group": "group", "report_exclude": None}  # of data
USUAL |= {"classes": None, "truncated": "refuse", "max_pixels": MAX_PIXELS}


def read_arguments(arguments: Sequence[str], keys: Sequence[str], command: str) -> dict[str, str]:
    """Return what is given by key; data.root or data.csv must be, and paths are as the disk has them."""
    given = {key: values[0] for key, values in parse_arguments(arguments, keys, (), command).items() if values}
    if ("data.root" in given) == ("data.csv" in given):
        raise UserError("conflict", f"give either data.root=DIR or data.csv=FILE; see {command} --help")
    return given | {key: user_path(given[key]) for key in PATHS if key in given}


class Inputs:
    """A model and labelled faces.

    Args:
        given: As `read_arguments` returns it.

    Attributes:
        model: Path of the model: `model`, or else the newest one below runs/.
        predictor: The model.
        source: Folder or table of the faces.
        options: How the run that trained the model found faces, by key of `data`; the usual values where it is unknown.
        decoder: How images are decoded.
        landmarks: Landmarks of the faces in clean images, after `check`; None for a model that does not align them.
    """

    landmarks: Landmarks | None

    def __init__(self, given: Mapping[str, str]) -> None:
        self.given = given
        self.source = Path(given.get("data.root") or given["data.csv"])
        self.model = Path(given.get("model") or newest_model())
        self.predictor = Predictor(self.model)
        if self.predictor.preprocessing.faces == "align":
            check_extra(f"model={self.model}, which aligns faces,", "faces", *NEEDED)
        print(f"model: {printable(str(self.model))}{self.predictor.note}")
        known = self.predictor.facts.get("report", {})
        self.options = {**USUAL, "report_exclude": known.get("without"), **known}  # the older name of report_exclude
        self.decoder = Decoder(self.options["truncated"], self.options["max_pixels"])

    def list_faces(self, needed: Sequence[str], group: str = "group") -> Listed:
        """List the faces; `needed` splits must be there if there is any, and `group` names a column of a table."""
        given = self.given.get("data.classes")
        classes = class_names(self.options["classes"] if given is None else _parse_classes(given))
        if "data.csv" in self.given:
            return manifest(self.source, group, needed, classes)
        return folder(self.source, needed, classes)

    def check(self, listed: Listed) -> FaceSet:
        """Check the faces and print what they are."""
        options = {key: self.options[key] for key in ("identity", "val_share", "split_seed")}
        faces = check(listed, **options, decoder=self.decoder, training=False)
        self.landmarks = landmarks_of(self.predictor.preprocessing, self.given.get("features.dir"), self.decoder)
        if self.landmarks:
            self.landmarks.find(faces.by_digest(), os.cpu_count() or 1)
        print(describe_data(faces, self.landmarks))
        return faces

    @cached_property
    def extractor(self) -> Extractor:
        """What computes and stores the features of the model, with the options of the run that trained it."""
        known = self.predictor.facts.get("features", {})
        options = {key: known[key] for key in ("precision", "dtype", "engine") if key in known}
        device = "cuda" if torch.cuda.is_available() else "cpu"
        features = FeatureOptions(self.given.get("features.dir"), **options)
        return Extractor(self.predictor.network, features, device, self.decoder)


def _parse_classes(given: str) -> dict[str, Any]:
    try:
        return dict(OmegaConf.to_container(OmegaConf.create(given)))  # type: ignore[arg-type]
    except Exception as error:  # of a YAML parser
        example = "{female: [f, woman], male: [m, man]}"
        raise UserError("bad-value", f"data.classes={given}: give names by class, such as {example}") from error
