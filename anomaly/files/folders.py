"""The image files of a folder: what can be read; what cannot is named, all else is passed over."""

from pathlib import Path

from PIL import Image

from anomaly.files.names import hidden, normal_form
from anomaly.files.remarks import remark

FORMATS = ("PNG", "JPEG", "MPO", "BMP", "DIB", "TIFF", "GIF", "WEBP", "PPM", "JPEG2000", "TGA",
           "AVIF", "PCX", "SGI")
READ = {ending for ending, name in Image.registered_extensions().items() if name in FORMATS}
# Pictures of cameras and paint programs that cannot be read here.
UNREAD = {".heic", ".heif", ".hif", ".avif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf",
          ".raf", ".rw2", ".pef", ".srw", ".raw", ".exr", ".hdr", ".dcm", ".psd", ".xcf"} - READ


def readable(path: Path) -> bool:
    """True if the name is that of an image file that can be read."""
    return path.suffix.lower() in READ and not hidden(path)


def _listed(folder: Path) -> list[Path]:
    """What people see in a folder, by name."""
    return sorted((path for path in folder.iterdir() if not hidden(path)),
                  key=lambda path: normal_form(path.name))


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder that hold image files, by name."""
    return [path for path in _listed(folder)
            if path.is_dir() and any(readable(inner) for inner in path.iterdir())]


def image_files(folder: Path, flat: bool = True) -> list[Path]:
    """The image files of a folder, by name. flat: its subfolders hold nothing that counts.

    Raises FileNotFoundError if it is none, or for a link to nothing; ValueError if it has no image
    files, or has a picture of a kind that cannot be read, without one of its name beside it.
    """
    if folder.is_file():
        raise NotADirectoryError(f"{folder}: is a file; expected the folder that it lies in")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected one with image files")
    there = _listed(folder)
    images = [path for path in there if readable(path) and not path.is_dir()]
    for path in images:
        if not path.exists():
            raise FileNotFoundError(f"{path}: a link to {path.readlink()}, which is not there; "
                                    f"bring that back or remove the link")
    stems = {path.stem for path in images}
    for path in there:
        if path.suffix.lower() in UNREAD and path.stem not in stems and path.is_file():
            raise ValueError(f"{path}: {path.suffix[1:].upper()} cannot be read; convert it to "
                             f"PNG or JPEG")
    images = [path for path in images if path.is_file()]
    inner = [path.name for path in subfolders(folder)]
    if not flat and inner:
        return images
    if images:
        if inner:
            remark(folder, "its subfolders are passed over: %s", ", ".join(inner))
        return images
    if inner:
        raise ValueError(f"{folder}: no image files, but in its subfolders {', '.join(inner[:5])}; "
                         f"give one of them, or put all files into one folder")
    found = f"{len(there)} other files such as {there[0].name}" if there else "nothing"
    raise ValueError(f"{folder}: no image files (found {found}); expected PNG, JPEG, BMP or TIFF")
