"""Placement, composite, and the folders of runs and pairs."""

import json
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont
from safetensors import safe_open

from anomaly.crop import Crop, defect_crop
from anomaly.dataset import Defect, Example
from anomaly.embedding import AnomalyEmbedding
from anomaly.files.atomic_files import (
    append_rows,
    read_rows,
    replacing,
    write_image,
    write_rows,
    write_tensors,
)
from anomaly.files.photographs import Photograph
from anomaly.pairs.composite import change, composite
from anomaly.pairs.manifest import COLUMNS
from anomaly.pairs.masks import mask_files, training_masks
from anomaly.pairs.normals import Normal, find_normals
from anomaly.pairs.pair_folder import PairFolder
from anomaly.pairs.placement import fits, learned_patch, mask_patch, placed
from anomaly.pairs.plan import Plan, draw_plan
from anomaly.runs import run_folder as runs
from anomaly.runs import run_state
from anomaly.runs.sheets import in_font


def mask_of(height, width, top, left, h, w):
    mask = np.zeros((height, width), bool)
    mask[top:top + h, left:left + w] = True
    return mask


# placement

def test_a_patch_returns_to_its_own_place_in_a_photograph_of_its_own_size():
    mask = mask_of(50, 80, 12, 33, 7, 20)
    mask[14, 40] = False
    assert np.array_equal(placed(mask_patch(mask, 64, "m"), Normal(Path("n"), 50, 80)), mask)


@pytest.mark.parametrize("top, left, touches", [
    (0, 10, "top"), (43, 10, "bottom"), (5, 0, "left"), (5, 60, "right")])
def test_a_defect_at_an_edge_stays_at_that_edge_of_any_photograph(top, left, touches):
    shape = mask_patch(mask_of(50, 80, top, left, 7, 20), 64, "m")
    for height, width in ((200, 31), (9, 300), (50, 80)):
        mask = placed(shape, Normal(Path("n"), height, width))
        edges = {"top": mask[0], "bottom": mask[-1], "left": mask[:, 0], "right": mask[:, -1]}
        assert edges[touches].any() and mask.sum() == 140


def test_a_patch_larger_than_the_photograph_does_not_fit():
    shape = mask_patch(mask_of(50, 80, 0, 0, 10, 20), 64, "m")
    assert fits(shape, Normal(Path("n"), 10, 20))
    assert not fits(shape, Normal(Path("n"), 9, 20)) and not fits(shape, Normal(Path("n"), 10, 19))


def test_a_learned_mask_takes_size_and_place_of_its_reference():
    reference = mask_patch(mask_of(100, 100, 60, 0, 30, 51), 64, "m")
    picture = mask_of(64, 64, 16, 16, 32, 32)
    shape = learned_patch(picture, reference)
    assert reference.side == 64 and shape.mask.shape == (32, 32) and shape.place == reference.place
    assert learned_patch(mask_of(64, 64, 3, 3, 0, 0), reference) is None


def test_normals_are_measured_after_their_exif_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("L", (30, 10)).save(tmp_path / "a.jpg", exif=exif)
    normal, = find_normals(tmp_path)
    assert (normal.height, normal.width) == (30, 10)
    (tmp_path / "b.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="b.jpg: cannot be read as a photograph"):
        find_normals(tmp_path)


def test_given_masks_must_have_a_photographs_size(tmp_path):
    write_image(tmp_path / "m.png", mask_of(10, 12, 2, 2, 3, 3).astype(np.uint8) * 255)
    normals = [Normal(Path("a.png"), 10, 12), Normal(Path("b.png"), 9, 12)]
    source = mask_files(tmp_path / "m.png")
    plan = Plan(0, None, 0, np.array([1, 0]), None)
    target, = source(None, None, None, normals, 20).choose([plan], print)
    assert target.normal.path == Path("a.png")
    assert np.array_equal(target.mask, mask_of(10, 12, 2, 2, 3, 3))
    with pytest.raises(ValueError, match="m.png: 12x10 pixels, but no photograph has that size"):
        source(None, None, None, normals[1:], 20)


def test_a_pair_depends_on_seed_defect_and_number_alone():
    a, b = Defect("tile", "crack", ()), Defect("tile", "hole", ())
    first = draw_plan(a, 3, 7, (4, 8, 8), 5, 20)
    rng = np.random.default_rng([7, crc32(b"tile/crack"), 3, 0])
    assert np.array_equal(first.noise, rng.standard_normal((4, 8, 8), dtype=np.float32))
    for defect, k, seed in ((b, 3, 7), (a, 4, 7), (a, 3, 8)):
        other = draw_plan(defect, k, seed, (4, 8, 8), 5, 20)
        assert not np.array_equal(first.noise, other.noise)


def test_a_mask_that_fits_no_first_choice_goes_to_the_next_photograph(tmp_path):
    write_image(tmp_path / "i.png", np.zeros((50, 80), np.uint8))
    write_image(tmp_path / "m.png", mask_of(50, 80, 0, 0, 40, 20) * np.uint8(255))
    defect = Defect("o", "d", (Example(tmp_path / "i.png", (tmp_path / "m.png",)),))
    run = runs.Run(tmp_path, {"size": 64, "options": {"no_flip": False}})
    runs.save_masks(run, [defect])
    normals = [Normal(Path("small"), 30, 30), Normal(Path("large"), 60, 60)]
    masks = training_masks(None, run, defect, normals, 20)
    target, = masks.choose([Plan(0, None, 0, np.array([0, 1]), np.random.default_rng(0))], print)
    assert target.normal.path == Path("large") and masks.references == 1


# composite

@pytest.mark.parametrize("channels, white", [
    ((), 255), ((2,), 255), ((3,), 255), ((4,), 255), ((), 4095), ((), 65535)])
def test_every_value_outside_the_mask_and_in_alpha_is_the_photographs_own(channels, white):
    rng = np.random.default_rng(0)
    kind = np.uint8 if white == 255 else np.uint16
    before = Photograph(rng.integers(0, white + 1, (37, 53, *channels), dtype=kind), white)
    mask = mask_of(37, 53, 0, 30, 20, 23)
    crop = defect_crop(mask, 64)
    after = composite(before, mask, crop, torch.rand(3, 64, 64) * 2 - 1)
    assert after.values.dtype == kind and after.values.shape == before.values.shape
    assert np.array_equal(after.values[~mask], before.values[~mask])
    assert (after.colours[mask] != before.colours[mask]).mean() > 0.9
    assert 0.6 * white < after.colours[mask].max() <= white
    if channels in ((2,), (4,)):
        assert np.array_equal(after.values[..., -1], before.values[..., -1])


def test_a_flat_colour_is_pasted_as_it_is_at_the_right_place():
    photograph = Photograph(np.zeros((40, 60), np.uint16), 1000)
    mask = mask_of(40, 60, 5, 50, 10, 10)
    painted = torch.full((3, 64, 64), -1.0)
    painted[:, :, 32:] = 1.0        # the crop's right half is white
    after = composite(photograph, mask, Crop(45, 0, 20), painted)
    out = after.values
    assert (out[5:15, 57:60] == 1000).all() and (out[5:15, 50:53] == 0).all()
    assert out[~mask].max() == 0
    assert change(photograph, after, mask) == pytest.approx(out[mask].mean() / 1000)


def test_a_picture_that_is_not_finite_is_never_pasted():
    painted = torch.zeros(3, 64, 64)
    painted[0, 3, 3] = torch.nan
    photograph, mask = np.zeros((40, 60), np.uint8), mask_of(40, 60, 5, 5, 3, 3)
    with pytest.raises(RuntimeError, match="not finite"):
        composite(Photograph(photograph, 255), mask, Crop(0, 0, 40), painted)


# files

def test_a_write_that_fails_leaves_neither_file_nor_remains(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError):
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_the_same_tensors_give_the_same_bytes_and_open_again(tmp_path):
    tensors = {"<a-b>": torch.randn(8, 32), "z": torch.arange(5)}
    names = ("format", "object", "defect", "steps", "prompt", "sha")
    metadata = {name: f"é{name}\"" for name in names}
    for i in range(6):
        ordered = dict(reversed(metadata.items())) if i % 2 else metadata
        write_tensors(tmp_path / str(i), tensors, ordered)
    assert len({(tmp_path / str(i)).read_bytes() for i in range(6)}) == 1
    with safe_open(tmp_path / "0", framework="pt") as file:
        assert file.metadata() == metadata
        assert all(torch.equal(file.get_tensor(k), v) for k, v in tensors.items())


def test_a_torn_last_line_is_dropped(tmp_path):
    path = tmp_path / "x.csv"
    write_rows(path, ["a", "b"], [{"a": 1, "b": 2}])
    append_rows(path, ["a", "b"], [{"a": 3, "b": 4}])
    with open(path, "a") as file:
        file.write("5,")
    assert read_rows(path, ["a", "b"]) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


def test_names_with_line_ends_stay_one_row(tmp_path):
    rows = [{"a": f"x{end}y", "b": "1"} for end in ("\n", "\r\n", "\x0b", "\x85", "\u2028")]
    write_rows(tmp_path / "x.csv", ["a", "b"], rows)
    assert read_rows(tmp_path / "x.csv", ["a", "b"]) == rows


def write(folder, defect, k, normal):
    image = Photograph(np.full((20, 30), k, np.uint8), 255)
    said = {"normal": normal, "mask_source": "m.png", "change": 0.1}
    return folder.write(defect, k, said, image, mask_of(20, 30, 4, 5, 6, 7))


def test_pairs_are_written_mask_first_and_what_a_kill_cut_short_is_made_again(tmp_path):
    normal, defect = tmp_path / "n.png", Defect("my tile", "crack", ())
    write_image(normal, np.zeros((20, 30), np.uint8))
    options = {"seed": 0, "steps": 20}
    folder = PairFolder(tmp_path / "out", options)
    assert not (tmp_path / "out").exists()
    with pytest.raises(KeyError), folder.held(64):
        for k in (1, 0):
            write(folder, defect, k, normal)
        (tmp_path / "out/my-tile/test/crack/00000.png").rename(tmp_path / "lost.png")
        raise KeyError
    again = PairFolder(tmp_path / "out", options)
    with again.held(64):
        assert again.done(defect, 1) and not again.done(defect, 0)
        write(again, defect, 0, normal)
    rows = read_rows(tmp_path / "out/_meta/manifest.csv", COLUMNS)
    assert [row["k"] for row in rows] == ["0", "1"] and rows[0]["object"] == "my tile"
    mask = Image.open(tmp_path / "out" / rows[0]["mask"])
    assert mask.mode == "L" and set(np.unique(mask)) == {0, 255}
    assert not list(tmp_path.rglob("*.part"))


def test_a_second_command_with_other_options_is_refused_naming_the_option(tmp_path):
    normal = tmp_path / "n.png"
    write_image(normal, np.zeros((20, 30), np.uint8))
    folder = PairFolder(tmp_path / "out", {"seed": 0, "reweight_gain": 1.5})
    with folder.held(64):
        write(folder, Defect("o", "d", ()), 0, normal)
    message = "--reweight-gain: 2.0, but the pairs in .* were made with 1.5"
    with pytest.raises(ValueError, match=message):
        PairFolder(tmp_path / "out", {"seed": 0, "reweight_gain": 2.0})
    with pytest.raises(ValueError, match="--run: another run than that of the pairs in"):
        PairFolder(tmp_path / "out", {"seed": 0, "run": "ab" * 32})
    (tmp_path / "out/_meta/config.json").write_text("[]")
    with pytest.raises(ValueError, match="it is .., expected an object"):
        PairFolder(tmp_path / "out", {"seed": 0})


def test_a_folder_of_version_0_1_goes_on_under_the_new_words_for_its_formulas(tmp_path):
    """They were called paper and literal, and are adaptive and paper."""
    (tmp_path / "_meta").mkdir()
    for old, new in (("paper", "adaptive"), ("literal", "paper"), ("off", "off")):
        (tmp_path / "_meta/config.json").write_text(json.dumps({"reweight": old}))
        PairFolder(tmp_path, {"reweight": new})
        with pytest.raises(ValueError, match="--reweight: 'released', but"):
            PairFolder(tmp_path, {"reweight": "released"})
    path = tmp_path / "_meta/config.json"
    path.write_text(json.dumps({"reweight": "paper", "guidance": "auto"}))
    with pytest.raises(ValueError, match="made by version 0.1, .* choose another --out"):
        PairFolder(tmp_path, {"reweight": "adaptive", "guidance": 1.0})
    config = {"reweight": "paper", "version": "0.2.0"}
    (tmp_path / "_meta/config.json").write_text(json.dumps(config))
    PairFolder(tmp_path, {"reweight": "paper"})


def test_a_sheet_shows_names_that_its_font_lacks_as_escapes():
    assert in_font("瓷砖 größe") == "\\u74f7\\u7816 gro\\xdfe"
    font = ImageFont.load_default()
    missing = bytes(font.getmask("\uffff"))
    assert all(bytes(font.getmask(letter)) != missing for letter in map(chr, range(33, 127)))


# runs

@pytest.fixture
def run(tmp_path):
    config = {"options": {"steps": 5, "weights": "w", "seed": 0, "batch_size": 4, "no_flip": False,
                          "no_masks": False}, "size": 64,
              "weights_sha256": "ab" * 32, "prediction_type": "eps",
              "defects": [{"object": "Tile A", "defect": "crack", "normals": None,
                           "train": [{"image": "/i.png", "mask": "/m.png"}]}]}
    return runs.start_run(tmp_path / "run", config, resume=False)


def test_embedding_files_open_in_diffusers(run, sd, checkpoint):
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel, CLIPTokenizer
    learner = AnomalyEmbedding(sd, run.defects, 0)
    runs.save_vectors(run, "embeddings", "", learner.e_a)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(checkpoint / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(checkpoint / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(checkpoint / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(checkpoint / "unet"),
        scheduler=DDIMScheduler.from_pretrained(checkpoint / "scheduler"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipeline.load_textual_inversion(run.folder / "embeddings/Tile-A-crack.safetensors")
    token = "<tile-a-crack>"
    ids = pipeline.tokenizer.convert_tokens_to_ids([token] + [f"{token}_{i}" for i in range(1, 8)])
    rows = pipeline.text_encoder.get_input_embeddings().weight[ids]
    assert torch.equal(rows, learner.e_a["Tile-A-crack"])


def test_a_saved_state_restores_parameters_and_moments(run, sd):
    learner = AnomalyEmbedding(sd, run.defects, 0)
    optimizer = torch.optim.Adam(learner.rates(sd))
    learner.e_a["Tile-A-crack"].sum().backward()
    optimizer.step()
    run_state.open_losses(run, "image", 0)
    run_state.save_state(run, "image", learner, optimizer, 17, [])
    other = AnomalyEmbedding(sd, run.defects, 1)
    fresh = torch.optim.Adam(other.rates(sd))
    assert run_state.load_state(run, "image", other, fresh) == 17
    for (name, a), (_, b) in zip(learner.named_parameters(), other.named_parameters()):
        assert torch.equal(a, b), name
        assert optimizer.state[a].keys() == fresh.state[b].keys()
        for key, value in optimizer.state[a].items():
            assert torch.equal(value, fresh.state[b][key])


@pytest.mark.parametrize("tensors, metadata, words", [
    (lambda own: {"a": torch.zeros(1)}, {"step": "5"}, "expected .8, 32"),
    (lambda own: {**own, "e_a.Tile-A-crack": torch.zeros(1, 32)}, {"step": "5"}, "expected .8, 32"),
    (lambda own: {**own, "x": torch.tensor(torch.nan)}, {"step": "5"}, "'x' has values that are"),
    (lambda own: own, {"step": "-1"}, "no step in its metadata"),
    (lambda own: own, {}, "no step in its metadata")])
def test_a_state_that_is_not_the_runs_is_refused(run, sd, tensors, metadata, words):
    learner = AnomalyEmbedding(sd, run.defects, 0)
    own = dict(learner.named_parameters())
    write_tensors(run.folder / "state/image.safetensors", tensors(own), metadata)
    with pytest.raises(ValueError, match=f"image.safetensors: .*{words}"):
        run_state.load_state(run, "image", learner, torch.optim.Adam(learner.rates(sd)))


def test_vectors_masks_and_sizes_of_another_kind_are_refused(run, sd):
    defect, = run.defects
    name = "embeddings/Tile-A-crack"
    for metadata in ({"line": "[[1, 2]]"}, {"line": "[[2, 1], [1, 2]]"}, {"guidance": "0"}):
        line = {"guidance": "1", "goal": "1", "line": "[[1, 1], [2, 2]]", **metadata}
        runs.save_module(run, name, {"a": torch.zeros(1, 32)}, **line)
        with pytest.raises(ValueError, match="no guidance in its metadata"):
            runs.load_strength(run, defect)
    with pytest.raises(ValueError, match="shape .1, 32., expected .8, 32"):     # nor repeated
        runs.load_learner(run, sd, [defect])
    write_image(run.folder / "masks/Tile-A-crack/00000.png", np.zeros((9, 9), np.uint8))
    with pytest.raises(ValueError, match="00000.png: no defect in it"):
        runs.load_masks(run, defect)
    run.config["size"] = 65
    with pytest.raises(ValueError, match="config.json: size is 65, but the model takes multiples"):
        runs.load_learner(run, sd, [defect])


@pytest.mark.parametrize("column, value, words", [
    ("image", "../x", "names '../x'"), ("mask", "", "names 'o/test"), ("k", "x", "damaged .*'x'"),
    ("scale", "x", "damaged")])
def test_a_row_of_no_pair_is_refused_and_nothing_is_removed(tmp_path, column, value, words):
    write_image(tmp_path / "x", np.zeros((2, 2), np.uint8))
    folder = PairFolder(tmp_path / "out")
    with folder.held(64):
        write(folder, Defect("o", "d", ()), 0, tmp_path / "x")
    path = tmp_path / "out/_meta/manifest.csv"
    row, = read_rows(path, COLUMNS)
    write_rows(path, COLUMNS, [{**row, column: value}])
    with pytest.raises(ValueError, match=f"manifest.csv: {words}"):
        with PairFolder(tmp_path / "out").held(64):
            pass
    assert (tmp_path / "x").exists()


def test_losses_end_where_the_state_does(run):
    columns = run_state.LOSS_COLUMNS
    rows = [{**dict.fromkeys(columns, ""), "stage": stage, "step": step}
            for stage in ("image", "mask") for step in (1, 2, 3)]
    write_rows(run.folder / "loss.csv", columns, rows)
    run_state.open_losses(run, "image", 1)
    kept = [(r["stage"], r["step"]) for r in read_rows(run.folder / "loss.csv", columns)]
    assert kept == [("image", "1"), ("mask", "1"), ("mask", "2"), ("mask", "3")]


@pytest.mark.parametrize("change_, words", [
    ({"seed": 1}, "--seed: 1, but the run in .* was made with 0"),
    ({"seed": None}, "--seed: none, but the run"),
    ({"steps": 4}, "--steps: 4, but the run in .* has learned 5"),
])
def test_resuming_with_other_options_is_refused(run, change_, words):
    write_tensors(run.folder / "state/image.safetensors", {"a": torch.zeros(1)}, {"step": "5"})
    config = json.loads((run.folder / "config.json").read_text())
    config["options"].update(change_)
    with pytest.raises(ValueError, match=words):
        runs.start_run(run.folder, config, resume=True)


def test_steps_that_were_asked_for_in_error_can_be_taken_back(run):
    """Asked for 5, learned 2 (of one defect): 3 is as good a number, 1 is not."""
    write_tensors(run.folder / "state/image.safetensors", {"a": torch.zeros(1)}, {"step": "2"})
    config = json.loads((run.folder / "config.json").read_text())
    config["options"]["steps"] = 3
    assert runs.start_run(run.folder, config, resume=True).config["options"]["steps"] == 3
    config["options"]["steps"] = 1
    with pytest.raises(ValueError, match="--steps: 1, but the run in .* has learned 2"):
        runs.start_run(run.folder, config, resume=True)


def test_a_run_that_stopped_before_it_learned_anything_does_not_block_its_folder(run):
    runs.check_out(run.folder, resume=False)
    (run.folder / "state").mkdir()
    with pytest.raises(FileExistsError, match="holds a training run already; continue it with"):
        runs.check_out(run.folder, resume=False)


def test_resuming_a_model_that_is_found_to_predict_something_else_is_refused(run):
    """Its files may have moved away from the yaml that said so."""
    config = json.loads((run.folder / "config.json").read_text())
    other = {"eps": "v", "v": "eps"}[config["prediction_type"]]
    with pytest.raises(ValueError, match=f"--prediction-type: found to be {other}"):
        runs.start_run(run.folder, {**config, "prediction_type": other}, resume=True)


def test_vectors_older_than_the_config_are_refused(run, sd):
    runs.save_vectors(run, "embeddings", "", AnomalyEmbedding(sd, run.defects, 0).e_a)
    config = json.loads((run.folder / "config.json").read_text())
    config["options"]["steps"] = 9
    longer = runs.start_run(run.folder, config, resume=True)
    with pytest.raises(ValueError, match="after 5 steps of 9; training did not finish"):
        runs.load_vectors(longer, "embeddings", longer.defects[0], torch.zeros(8, 32))
    assert longer.defects[0].examples == (Example(Path("/i.png"), (Path("/m.png"),)),)

