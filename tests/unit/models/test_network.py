import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from gender_cls.errors import UserError
from gender_cls.models.network import GenderNet


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
    with pytest.raises(UserError, match=r"test holds no .* it is a backbone, not a trained model") as failure:
        other.load_plain_state(state, "test")
    assert failure.value.code == "wrong-network"


def test_frozen_parts_stay_in_evaluation_mode_and_trained_ones_do_not() -> None:
    net = GenderNet(None, trainable="layer3")
    modes = {
        name: module.training for name, module in net.backbone.named_modules() if isinstance(module, nn.BatchNorm2d)
    }
    assert {name for name, training in modes.items() if training} == {
        n for n in modes if n.startswith(("layer3", "layer4"))
    }
    trained = {name for name, parameter in net.backbone.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"layer3", "layer4"}
    assert not any(module.training for module in net.eval().modules())
    assert all(parameter.requires_grad for parameter in GenderNet(None, trainable="all").parameters())


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("densenet121", "convnext_tiny", "vit_b_16")]


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v3_small", *SLOW])
def test_any_network_of_torchvision(name: str) -> None:
    net = GenderNet(None, name).eval()
    images = torch.rand(2, 3, 224, 224)
    state = net.plain_state()
    plain = get_model(name, num_classes=1)
    plain.load_state_dict(state)
    with torch.inference_mode():
        assert torch.allclose(net(images), plain.eval()(images).squeeze(1), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ({"backbone": "resnet19"}, "bad-value", r"model\.backbone=resnet19: torchvision has no classification network"),
        ({"backbone": "squeezenet1_1"}, "bad-value", r"model\.backbone=squeezenet1_1 has no linear layer"),
        ({"backbone": "googlenet"}, "bad-value", r"model\.backbone=googlenet has auxiliary heads"),
        (
            {"trainable": "layer5"},
            "bad-value",
            r"model\.trainable=layer5: give head, all, or a part of resnet18.*layer4\)",
        ),
        ({"trainable": "avgpool"}, "bad-value", r"model\.trainable=avgpool: give head, all, or a part"),
        ({"weights": "no.pth"}, "not-found", r"model\.weights=no\.pth: no such file.*IMAGENET1K_V1"),
        (
            {"backbone": "efficientnet_lite0", "weights": "IMAGENET1K_V1"},
            "not-found",
            r"no name of weights for efficientnet_lite0 \(PACKAGE\)",
        ),
    ],
)
def test_what_does_not_exist_is_refused(arguments: dict[str, str], code: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as failure:
        GenderNet(**{"weights": None, **arguments})  # type: ignore[arg-type]
    assert failure.value.code == code
