"""The spatial encoder: place and area reach e_s, and a mask's vectors are its own."""

import numpy as np
import torch
from sklearn.linear_model import RidgeCV

from anomaly.spatial_encoder import Head, SpatialEncoder


def random_masks(n, size=64, seed=0):
    """Ellipses; returns masks (n, s, s) and their x, y, log-area."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    masks, facts = [], []
    for _ in range(n):
        radius = np.exp(rng.uniform(np.log(3), np.log(14), 2))
        centre = rng.uniform(14, size - 14, 2)
        mask = ((x - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2 < 1
        masks.append(mask)
        facts.append([centre[0], centre[1], np.log(mask.mean())])
    return torch.from_numpy(np.stack(masks)), np.array(facts)


@torch.no_grad()
def test_place_and_area_can_be_read_from_the_vectors_by_a_linear_probe():
    torch.manual_seed(0)
    encoder = SpatialEncoder(32, 4, 1.0).eval()
    masks, facts = random_masks(1200)
    features = torch.cat([encoder(batch) for batch in masks.split(100)]).flatten(1).numpy()
    for column, name in enumerate(("x", "y", "log area")):
        probe = RidgeCV(np.logspace(-6, 2, 9)).fit(features[:800], facts[:800, column])
        score = probe.score(features[800:], facts[800:, column])
        # Without its plane the log-area reaches 0.5 to 0.7 (four seeds), untrained as E is here.
        assert score > 0.8, f"{name}: R2 {score:.2f}"


@torch.no_grad()
def test_a_head_keeps_the_place_that_global_pooling_would_lose():
    torch.manual_seed(0)
    head = Head(4, 32, 1.0)
    spots = torch.zeros(2, 4, 16, 16)
    spots[0, :, 5, 5] = spots[1, :, 10, 10] = 20.0
    empty = head(torch.zeros(1, 4, 16, 16))
    there, elsewhere = head(spots) - empty
    assert torch.cosine_similarity(there, elsewhere, dim=0) < 0.5


@torch.no_grad()
def test_vectors_do_not_depend_on_the_batch_neighbours():
    torch.manual_seed(0)
    encoder = SpatialEncoder(32, 4, 0.02)
    masks, _ = random_masks(3)
    torch.testing.assert_close(encoder(masks)[:1], encoder(masks[:1]), rtol=1e-4, atol=1e-6)


def test_every_head_and_the_first_convolution_get_a_gradient():
    torch.manual_seed(0)
    encoder = SpatialEncoder(32, 4, 0.02)
    masks, _ = random_masks(2)
    encoder(masks).square().mul(torch.randn(32)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_the_width_follows_the_text_width_and_the_blocks_are_resnet_50s():
    small, large = SpatialEncoder(32, 4, 1.0), SpatialEncoder(768, 4, 1.0)
    assert small.stem[0].out_channels == 16 and large.stem[0].out_channels == 64
    assert [len(level) for level in large.levels] == [3, 4, 6, 3]
    backbone = sum(p.numel() for part in (large.stem, large.levels) for p in part.parameters())
    # torchvision's resnet50 has 25,557,032 parameters, 2,049,000 of them in its classifier; here
    # the stem has one input plane more.
    assert backbone == 25_557_032 - 2_049_000 + 64 * 49
