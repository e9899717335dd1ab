"""Numbers of sets: LPIPS as its authors define it, clusters, and what is not available."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from anomaly.dataset import Defect, Example
from anomaly.scores import lpips
from evaluation.sets import fidelity_rows, read_vgg, spread_of

# torchvision's VGG-16, "D" of Simonyan and Zisserman, by its channels; M is a pooling.
VGG = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]
TAPPED = 3, 8, 15, 22, 29       # the last activation before each pooling


@pytest.fixture(scope="module")
def network():
    """The network as its published configuration builds it, random; heads that are not negative."""
    torch.manual_seed(0)
    layers, below = [], 3
    for channels in VGG:
        if channels == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(below, channels, 3, padding=1), nn.ReLU()]
        below = channels
    heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1)
             for i, c in enumerate((64, 128, 256, 512, 512))}
    return nn.Sequential(*layers).eval(), heads


@pytest.fixture(scope="module")
def weights(network):
    features, heads = network
    return {f"features.{key}": value for key, value in features.state_dict().items()} | heads


@torch.no_grad()
def by_definition(network, a, b):
    """The sum over layers of the weighted squared differences of unit features, averaged."""
    features, heads = network
    shift, scale = torch.tensor([-.030, -.088, -.188]), torch.tensor([.458, .448, .450])
    x = (torch.stack([a, b]) - shift.view(1, 3, 1, 1)) / scale.view(1, 3, 1, 1)
    total = 0.0
    for i, layer in enumerate(features):
        x = layer(x)
        if i in TAPPED:
            unit = nn.functional.normalize(x, dim=1)
            head = nn.functional.conv2d((unit[:1] - unit[1:]) ** 2,
                                        heads[f"lin{TAPPED.index(i)}.model.1.weight"])
            total += float(head.mean())
    return total


@pytest.mark.parametrize("flat", [False, True])
def test_lpips_is_what_its_authors_define(network, weights, flat):
    a, b = (torch.full((3, 48, 32), x) if flat else torch.rand(3, 48, 32) * 2 - 1
            for x in (0.3, -0.5))
    found = lpips.distances(*(lpips.looks(weights, x[None]) for x in (a, b)))
    assert float(found) == pytest.approx(by_definition(network, a, b), rel=1e-3)
    assert float(lpips.distances(*[lpips.looks(weights, a[None])] * 2)) < 1e-5


def test_clusters_are_of_the_nearest_centre_and_need_two(monkeypatch):
    points = torch.tensor([[0.0, 0], [0, 1], [0, 2], [10, 0], [10, 4], [90, 0]])
    centres = torch.tensor([[0.0, 0], [10, 0], [99, 0]])

    def value(seed=0):
        return lpips.ic_lpips(lambda i: points[i:i + 1], len(points), centres, seed)
    assert value() == pytest.approx(((1 + 4 + 1) / 3 + 16) / 2)      # the third has one, and is out
    monkeypatch.setattr(lpips, "MOST", 2)       # two of the first cluster's three, by the seed
    assert {round(value(seed) * 2 - 16) for seed in range(20)} == {1, 4}
    assert value(3) == value(3)
    assert lpips.ic_lpips(lambda i: points[i:i + 1], 1, centres, 0) is None


def test_weights_come_from_one_file_or_two_and_are_checked(tmp_path, weights):
    heads = {key: value for key, value in weights.items() if key.startswith("lin")}
    backbone = {key: value for key, value in weights.items() if key not in heads}
    for name, some in (("vgg", backbone), ("heads", heads), ("all", weights)):
        save_file({**some, "classifier.0.bias": torch.zeros(1)}, tmp_path / name)
    both = read_vgg([tmp_path / "vgg", tmp_path / "heads"])
    assert both.keys() == read_vgg([tmp_path / "all"]).keys() == weights.keys()
    with pytest.raises(ValueError, match="lin0.model.1.weight is missing"):
        read_vgg([tmp_path / "vgg"])
    save_file({**weights, "features.0.weight": torch.zeros(2, 2)}, tmp_path / "odd")
    with pytest.raises(ValueError, match=r"features.0.weight is of the shape \(2, 2\)"):
        read_vgg([tmp_path / "odd"])
    (tmp_path / "pickle").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ValueError, match="pickle: no safetensors file"):
        read_vgg([tmp_path / "pickle"])


def test_diversity_is_zero_of_copies_and_one_of_unrelated():
    assert spread_of(torch.ones(4, 8)) == "0.00" and spread_of(torch.eye(8)) == "1.00"
    assert spread_of(torch.ones(1, 8)).startswith("n/a")


def test_what_torch_fidelity_would_say_is_not_available_without_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    (name, value), = fidelity_rows(None, None, tmp_path)
    assert name == "IS, KID" and value.startswith("n/a: torch-fidelity cannot be imported")


def test_torch_fidelity_is_given_the_crops_and_its_faults_are_said(monkeypatch, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "0.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (20, 20, 30, 30))
    mask.save(tmp_path / "mask.png")
    some = Defect("nut", "hole", (Example(tmp_path / "0.png", (tmp_path / "mask.png",)),) * 11)
    asked = []

    def measured(**options):
        asked.append({**options, "files": len(list(Path(options["input1"]).iterdir()))})
        if options["feature_extractor_weights_path"].endswith("bad"):
            raise RuntimeError("bad\nweights")
        return {"inception_score_mean": 1.5, "kernel_inception_distance_mean": 0.01}
    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace(calculate_metrics=measured))
    assert list(fidelity_rows(some, some, tmp_path / "good")) == [
        ("IS, crops", "1.50"), ("KID x 1000, crops", "10.0")]
    assert asked[0]["files"] == 11 == asked[0]["kid_subset_size"] and asked[0]["isc"]
    assert list(fidelity_rows(some, some, tmp_path / "bad")) == [
        ("IS, KID", "n/a: torch-fidelity: bad weights")]
    few = replace(some, examples=some.examples[:3])
    assert list(fidelity_rows(few, some, tmp_path)) == [
        ("IS, KID", "n/a: fewer than 10 pairs, or photographs learned from")]
