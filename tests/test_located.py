"""Which path is given: the hub's cache, a part or a text file of a model, a link to nothing."""

import shutil

import pytest

from models_on_disk import TEXT, UNET, VAE_FILE, refusal
from weights import fingerprint, load


@pytest.mark.parametrize("names, main, opened", [
    ("a", None, "a"), ("a", "gone", "a"), ("ab", "b", "b"), ("abc", "a\n", "a")])
def test_a_model_of_the_hubs_cache_opens_from_above(folder, tmp_path, names, main, opened):
    top = tmp_path / "models--sd--small"
    for name in names:
        shutil.copytree(folder, top / "snapshots" / name)
    if main is not None:
        (top / "refs").mkdir()
        (top / "refs/main").write_text(main)
    for path in (top, top / "snapshots", top / "snapshots" / opened / "model_index.json"):
        assert load(path).source == str(top / "snapshots" / opened)
        assert fingerprint(path) == fingerprint(folder)


@pytest.mark.parametrize("names, main", [("ab", None), ("ab", "gone"), ("", None)])
def test_of_several_snapshots_one_is_asked_for(folder, tmp_path, names, main):
    top = tmp_path / "models--sd--small"
    (top / "refs").mkdir(parents=True)
    (top / "snapshots").mkdir()
    for name in names:
        shutil.copytree(folder, top / "snapshots" / name)
    if main is not None:
        (top / "refs/main").write_text(main)
    give = " or ".join(str(top / "snapshots" / name) for name in names)
    assert refusal(top) == (f"{top}: holds {len(names)} snapshots, expected one; "
                            f"{'give ' + give if names else 'download the model again'}")


def test_a_folder_of_models_names_them(folder, tmp_path):
    (tmp_path / "models--sd--small/snapshots").mkdir(parents=True)
    assert refusal(tmp_path) == (f"{tmp_path}: holds no unet folder but models; give one: {folder} "
                                 f"or {tmp_path / 'models--sd--small'}")


@pytest.mark.parametrize(
    "part, what", [(UNET, "a U-Net"), (VAE_FILE, "a VAE"), (TEXT, "a text encoder")])
def test_a_part_of_a_folder_is_refused_as_such(folder, part, what):
    assert f"{folder / part}: is {what} alone; give the folder" in refusal(folder / part)
    inside = (folder / part).parent
    expected = f"{inside}: is one part of a model; give the folder that holds it, {folder}"
    assert expected in refusal(inside)


def test_a_folder_of_something_else_says_what_it_holds(single_files, tmp_path):
    assert f"{tmp_path}: holds no unet folder; expected" in refusal(tmp_path, FileNotFoundError)
    shutil.copy(single_files["SD 1.5"], tmp_path / "v1-5.safetensors")
    expected = f"{tmp_path}: holds no unet folder but v1-5.safetensors; give that file"
    assert expected in refusal(tmp_path)


@pytest.mark.parametrize("name", [UNET, "unet/config.json", "tokenizer/vocab.json",
                                  "tokenizer/merges.txt", "."])
def test_a_link_to_nothing_is_refused_as_one(folder, name):
    """As the hub's cache has them after a download that broke off."""
    (folder / name).rename(folder.parent / "elsewhere")
    (folder / name).symlink_to("gone")
    assert refusal(folder, FileNotFoundError).startswith(f"{folder / name}: is a link to gone, whi")


@pytest.mark.parametrize("name", ["unet/config.json", "tokenizer/merges.txt", "READ.md", "v1.yaml"])
def test_a_text_file_of_a_model_is_refused_with_the_models_folder(folder, tmp_path, name):
    (folder / name).touch()
    said = "is a text file and holds no weights; give"
    assert refusal(folder / name) == f"{folder / name}: {said} {folder}"
    path = (folder / name).rename(tmp_path / f"alone{(folder / name).suffix}")
    assert f"{said} the folder with unet, vae and text_encoder, or the single" in refusal(path)
    path.with_suffix(".safetensors").touch()
    assert refusal(path).endswith(f"{said} {path.with_suffix('.safetensors')}")
