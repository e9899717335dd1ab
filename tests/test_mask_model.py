"""Pictures of masks, and which generated masks count as masks."""

import numpy as np
import torch
from diffusers import DDIMScheduler
from scipy import ndimage

from anomaly.crop import defect_crop, touched
from anomaly.mask_model import MaskShape, components, mask_picture, refusal, sample_masks, shape_of
from anomaly.prompt import learned_context


def test_a_mask_picture_is_the_crop_mask_white_on_black_with_every_cell_in_the_loss():
    mask = np.zeros((90, 70), bool)
    mask[20:40, 30:35] = True
    picture = mask_picture(mask, 64, 4)
    expected = touched(mask, defect_crop(mask, 64), 64)
    assert torch.equal(picture.image > 0, torch.from_numpy(expected).expand(3, -1, -1))
    assert set(picture.image.unique().tolist()) == {-1.0, 1.0}
    assert picture.cells.all() and picture.cells.shape == (16, 16)


def test_components_equal_scipys_labelling_with_eight_neighbours():
    rng = np.random.default_rng(0)
    for density in (0.0, 0.1, 0.3, 0.5, 1.0):
        grid = rng.random((17, 23)) < density
        assert components(grid) == ndimage.label(grid, np.ones((3, 3)))[1]


def test_the_shape_measures_area_components_and_border():
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[0:8, 0:8] = True
    mask[40:44, 40:44] = True
    border = float(torch.tensor(3 / 60))
    assert shape_of(mask, 4) == MaskShape(area=80 / 4096, components=2, border=border)


def test_a_mask_is_kept_only_within_the_range_of_the_real_ones():
    def square(side, at=20):
        mask = torch.zeros(64, 64, dtype=torch.bool)
        mask[at:at + side, at:at + side] = True
        return mask
    real = [shape_of(square(side), 4) for side in (10, 20)]
    assert refusal(square(15), real, 4) is None and refusal(square(10), real, 4) is None
    assert refusal(square(8), real, 4) == refusal(square(24), real, 4) == "area"
    assert refusal(torch.zeros(64, 64, dtype=torch.bool), real, 4) == "area"
    two = square(10) | square(6, 50)
    assert refusal(two, real, 4) == "components"
    assert refusal(square(15, 0), real, 4) == "border"      # touches it, the real ones do not


def test_sampled_masks_are_the_decoded_plain_ddim_run_cut_at_mid_grey(sd):
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    e_m = 0.02 * torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                              clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    scheduler.set_timesteps(4)
    x = noise
    with torch.no_grad():
        context = learned_context(sd, e_m.expand(2, -1, -1))
        for t in scheduler.timesteps:
            x = scheduler.step(sd.unet(x, t.expand(2), context), t, x).prev_sample
        expected = sd.vae.decode(x).mean(dim=1)
    masks = sample_masks(sd, e_m, noise, 4)
    clear = expected.abs() > 1e-3
    assert masks.dtype == torch.bool and torch.equal(masks[clear], expected[clear] > 0)
    assert clear.float().mean() > 0.9
