"""Load checkpoints whose headers and configurations were damaged at random.

    python tests/fuzz_headers.py FOLDER CASES SEED      (a process of its own)

FOLDER is what models_on_disk.write_small wrote. Prints a JSON object: how many cases ended how, and
the faults: an error that is no ValueError or FileNotFoundError, of several lines, or not in time.
"""

import json
import random
import resource
import signal
import sys
import traceback
from collections import Counter
from pathlib import Path

import weights.checkpoint
from models_on_disk import SMALL_FAMILIES, TEXT, UNET, VAE_FILE
from weights import load

SECONDS = 20                # for one load, which takes less than one
MEMORY = 2 ** 30            # address space beyond that of a successful load
CONFIGS = ["unet/config.json", "vae/config.json", "text_encoder/config.json",
           "scheduler/scheduler_config.json", "tokenizer/merges.txt"]
ODD = [0, -1, 1, 3, 2 ** 31, 2 ** 63, 10 ** 30, 1e308, -0.0, "", "4", None, True, [], {}, [[]], [0],
       [2 ** 62, 4]]
DTYPES = ["F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "f32", ""]


def bytes_changed(header: bytes, rng: random.Random) -> bytes:
    """A few bytes overwritten, inserted or cut out."""
    out = bytearray(header)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(out))
        out[at:at + rng.choice([0, 1, 1, 5])] = rng.randbytes(rng.choice([0, 1, 1, 3]))
    return bytes(out)


def value_changed(header: bytes, rng: random.Random) -> bytes:
    """One value in the JSON replaced by an odd one, or one key renamed, dropped or swapped."""
    found = json.loads(header)
    key = rng.choice(sorted(found))
    what = rng.choice(["odd", "inside", "inside", "name", "drop", "swap"])
    if what == "odd" or not isinstance(found[key], dict) and what == "inside":
        found[key] = rng.choice(ODD)
    elif what == "inside":
        inner = rng.choice(["dtype", "shape", "data_offsets"])
        odd = rng.choice(DTYPES if inner == "dtype" else ODD + [[64, 4], [0, 8]])
        found[key] = {**found[key], inner: odd}
    elif what == "name":
        prefix = rng.choice(["", "model.", "lora_", "a" * 10_000, "\n", "\x1b[31m"])
        found[prefix + key] = found.pop(key)
    elif what == "drop":
        del found[key]
    else:
        other = rng.choice(sorted(found))
        found[key], found[other] = found[other], found[key]
    return json.dumps(found).encode()


def nested(header: bytes, rng: random.Random) -> bytes:
    """JSON deeper than any parser's stack."""
    return rng.choice([b'{"a":', b"["]) * 100_000


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header, or another length of it."""
    length = int.from_bytes(whole[:8], "little")
    header, data = whole[8:8 + length], whole[8 + length:]
    how = rng.choice(
        [bytes_changed, value_changed, value_changed, value_changed, nested, "length", "cut"])
    if how == "cut":
        return whole[:rng.randrange(len(whole))]
    if how == "length":
        length = rng.choice([0, 1, length - 1, length + 1, len(whole), 2 ** 40, 2 ** 64 - 1])
    else:
        header = how(header, rng)
        length = len(header)
    return length.to_bytes(8, "little") + header + data


def refused(path: Path) -> str:
    """"loaded" or "refused"; raises AssertionError for any other end."""
    signal.alarm(SECONDS)
    try:
        load(path)
        return "loaded"
    except (ValueError, FileNotFoundError) as err:
        assert type(err) in (ValueError, FileNotFoundError), repr(err)
        message = str(err)
        assert "\n" not in message and "\x1b" not in message, repr(err)[:500]
        assert str(path) in message, repr(err)[:500]
        return "refused"
    finally:
        signal.alarm(0)


def late(*_) -> None:
    """For SIGALRM."""
    raise AssertionError(f"not done after {SECONDS} s")


def main(root: Path, cases: int, seed: int) -> dict:
    """Damage, load, repair; every fault with the number of its case."""
    weights.checkpoint.FAMILIES = SMALL_FAMILIES
    signal.signal(signal.SIGALRM, late)
    places = []     # what is loaded, and the file of it that is damaged
    for name in ("SD 1.5", "SD 2.1-v"):
        single, folder = root / f"{name} single.safetensors", root / name
        places += 3 * [(single, single)]
        places += [(folder, folder / part) for part in (UNET, VAE_FILE, TEXT, *CONFIGS)]
    for path in {path for path, _ in places}:
        refused(path)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    ends, faults = Counter(), []
    for case in range(cases):
        rng = random.Random(f"{seed} {case}")
        path, file = places[case % len(places)]
        whole = file.read_bytes()
        how = rng.choice([bytes_changed] if file.suffix == ".txt" else
                         [bytes_changed, value_changed, value_changed, nested])
        changed = damaged(whole, rng) if file.suffix == ".safetensors" else how(whole, rng)
        file.write_bytes(changed)
        try:
            ends[refused(path)] += 1
        except BaseException:       # a panic of Rust is one, too
            faults.append(f"case {case}, {file}: {traceback.format_exc()[-1500:]}")
        file.write_bytes(whole)
    return {**ends, "faults": faults}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
