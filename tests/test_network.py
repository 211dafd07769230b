import ast
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from gender_cls.errors import UserError
from gender_cls.network import GenderNet


def test_the_backbone_stays_frozen_whoever_calls_train(backbone_file: Path) -> None:
    net = GenderNet(str(backbone_file))
    before = {name: tensor.clone() for name, tensor in net.backbone.state_dict().items()}
    net.train()
    assert net.head.training
    assert not any(module.training for module in net.backbone.modules())
    loss = net(torch.rand(4, 3, 32, 32)).sum()
    loss.backward()
    assert all(parameter.grad is None for parameter in net.backbone.parameters())
    assert net.head.weight.grad is not None
    assert all(torch.equal(before[name], tensor) for name, tensor in net.backbone.state_dict().items())


def test_weights_load_with_or_without_fc_and_in_any_float(backbone_file: Path, tmp_path: Path) -> None:
    whole = GenderNet(str(backbone_file)).backbone_hash()
    state = {k: v.float() for k, v in torch.load(backbone_file, weights_only=True).items() if not k.startswith("fc.")}
    torch.save(state, tmp_path / "bare.pth")
    assert GenderNet(str(tmp_path / "bare.pth")).backbone_hash() == whole
    assert GenderNet(None).backbone_hash() != whole


def test_weights_from_before_batchnorm_counted(backbone_file: Path, tmp_path: Path) -> None:
    """As torchvision's IMAGENET1K_V1 is: 102 tensors, no num_batches_tracked."""
    state = torch.load(backbone_file, weights_only=True)
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert len(old) == 102
    torch.save(old, tmp_path / "old.pth")
    assert GenderNet(str(tmp_path / "old.pth")).backbone_hash() == GenderNet(str(backbone_file)).backbone_hash()


def test_a_name_is_read_from_torchs_cache_directory(
    backbone_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    shutil.copy(backbone_file, tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    assert GenderNet("IMAGENET1K_V1").backbone_hash() == GenderNet(str(backbone_file)).backbone_hash()


def test_a_logit_for_each_image_also_of_one() -> None:
    net = GenderNet(None)
    assert net(torch.rand(1, 3, 32, 32)).shape == (1,)
    assert net(torch.rand(3, 3, 32, 32)).shape == (3,)
    assert net.features(torch.rand(2, 3, 32, 32)).shape == (2, 512)


def test_the_state_goes_out_and_in(backbone_file: Path) -> None:
    one, other = GenderNet(str(backbone_file)), GenderNet(None)
    state = one.plain_state()
    other.load_plain_state(state, "test")
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(one.eval()(image), other.eval()(image))
    assert all(tensor.is_contiguous() for tensor in state.values())
    del state["fc.bias"]
    with pytest.raises(UserError, match="a backbone, not a trained model"):
        other.load_plain_state(state, "test")


ALLOWED = {  # who may import whom: a face travels one way
    "errors": set(), "images": {"errors"}, "transforms": set(), "metrics": set(), "network": {"errors", "weights"},
    "degrade": set(), "calibration": set(), "views": {"degrade", "transforms", "errors"}, "words": {"errors"},
    "demo": {"errors"}, "sources": {"demo", "errors", "images"}, "people": {"sources", "errors"},
    "checks": {"people", "sources", "errors", "images"},
    "weights": {"errors"}, "store": {"errors"}, "backbones": {"network", "transforms"},
    "features": {"backbones", "errors", "images", "network", "store", "views"},
    "datasets": {"images", "sources", "store", "views"},
    "datamodule": {"checks", "datasets", "features", "transforms", "views"},
    "module": {"network", "metrics", "errors", "weights"},
    "card": {"calibration", "weights"}, "inputs": {"errors", "images"}, "journal": {"errors"},
    "runtimes": {"backbones", "errors", "network", "transforms", "weights"},
    "export": {"backbones", "card", "errors", "network", "predictor", "runtimes", "transforms", "words"},
    "predictor": {"errors", "images", "network", "runtimes", "transforms"},
    "answers": {"degrade", "errors", "features", "journal", "metrics", "network", "people", "sources", "store",
                "transforms", "views"},
    "folds": {"answers", "calibration", "datamodule", "degrade", "errors", "features", "module", "people",
              "sources", "transforms", "views"},
    "averaging": set(), "reliability": {"answers", "calibration", "views"},
    "gallery": {"answers", "calibration", "degrade", "figures", "images", "views"},
    "figures": set(), "tables": {"calibration", "checks", "metrics", "views"}, "page": {"tables", "views"},
    "report": {"answers", "checks", "errors", "features", "gallery", "page", "people", "predictor", "reliability",
               "sources", "tables", "weights", "words"},
    "dashboard": {"datamodule", "figures", "report"}, "sweep": {"tables", "predictor"}, "__init__": {"predictor"},
}  # fmt: skip


def test_imports_go_one_way() -> None:
    files = list((ROOT / "gender_cls").glob("*.py"))
    assert {file.stem for file in files} == set(ALLOWED)
    for file in files:
        found = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "gender_cls":
                found |= {alias.name for alias in node.names} - {"CLASSES", "cache_folder"}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gender_cls."):
                found.add(str(node.module).split(".")[1])
            elif isinstance(node, ast.Import):
                found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("gender_cls.")}
        assert found <= ALLOWED[file.stem], f"{file.stem} imports {found - ALLOWED[file.stem]}"
