"""Read files that were damaged at random, of three subjects: weights, images, runs.

    python tests/fuzz.py SUBJECT FOLDER CASES SEED      (a process of its own; FOLDER is written to)

A case damages one file, and reads it in every way that the tools do. It must be read, or refused by
one printable line with its name, in seconds, within a gigabyte, without a word of any library.
Prints a JSON object: how many cases ended how, the most memory beyond the start, and the faults.
"""

import json
import os
import random
import resource
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch

SECONDS = 60                # of the processor, for one case: a reading takes one at most, a tool 4
MEMORY = 2 ** 30            # address space beyond that at the start
ODD = [0, -1, 1, 3, 2 ** 31, 2 ** 63, 10 ** 30, 1e308, -0.0, "", "4", None, True, [], {}, [[]], [0],
       [2 ** 62, 4], float("nan"), "\n", "../x", "a" * 300]
DTYPES = ["F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "f32", ""]
REFUSALS = (ValueError, FileNotFoundError, FileExistsError, PermissionError)


@dataclass(frozen=True)
class Place:
    """What is damaged: a file; how; and what reads it, which raises where it refuses."""

    file: Path
    damage: Callable[[bytes, random.Random], bytes]
    read: Callable[[], None]
    named: Path             # must stand in a refusal, if no option does


def bytes_changed(content: bytes, rng: random.Random) -> bytes:
    """A few bytes overwritten, inserted or cut out."""
    out = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(out) + 1)
        out[at:at + rng.choice([0, 1, 1, 5])] = rng.randbytes(rng.choice([0, 1, 1, 3]))
    return bytes(out)


def cut(content: bytes, rng: random.Random) -> bytes:
    """The start of it."""
    return content[:rng.randrange(len(content))]


def value_changed(content: bytes, rng: random.Random) -> bytes:
    """One value in the JSON replaced by an odd one, or one key renamed or dropped."""
    found = whole = json.loads(content)
    while (inner := [v for v in (found.values() if isinstance(found, dict) else found)
                     if isinstance(v, (dict, list)) and v]) and rng.random() < 0.6:
        found = rng.choice(inner)
    key = rng.choice(sorted(found) if isinstance(found, dict) else range(len(found)))
    what = rng.choice(["odd", "odd", "name", "drop"])
    if what == "name" and isinstance(found, dict):
        prefix = rng.choice(["", "model.", "lora_", "a" * 10_000, "\n", "\x1b[31m"])
        found[prefix + key] = found.pop(key)
    elif what == "drop":
        del found[key]
    else:
        found[key] = rng.choice(DTYPES if key == "dtype" else [*ODD, [64, 4], [0, 8]])
    return json.dumps(whole).encode()


def nested(content: bytes, rng: random.Random) -> bytes:
    """JSON deeper than any parser's stack."""
    return rng.choice([b'{"a":', b"["]) * 100_000


def json_damaged(content: bytes, rng: random.Random) -> bytes:
    """A JSON file."""
    return rng.choice([bytes_changed, value_changed, value_changed, nested])(content, rng)


def tensors_damaged(whole: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header, another length of it, or other data."""
    length = int.from_bytes(whole[:8], "little")
    header, data = whole[8:8 + length], whole[8 + length:]
    how = rng.choice([bytes_changed, *[value_changed] * 4, nested, "length", "cut", "data", "data"])
    if how == "cut":
        return cut(whole, rng)
    if how == "data":
        at = rng.randrange(len(data)) & ~3
        odd = rng.choice([b"\0\0\x80\x7f", b"\0\0\xc0\xff", b"\xff\xff\x7f\x7f", rng.randbytes(4)])
        data = data[:at] + odd * rng.choice([1, 1, 100]) + data[at + 4:]
    elif how == "length":
        length = rng.choice([0, 1, length - 1, length + 1, len(whole), 2 ** 40, 2 ** 64 - 1])
    else:
        header = how(header, rng)
        length = len(header)
    return length.to_bytes(8, "little") + header + data


def ended(place: Place) -> str:
    """"read" or "refused"; raises AssertionError for any other end."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        place.read()
        return "read"
    except REFUSALS as err:
        assert type(err) in REFUSALS, repr(err)
        message = str(err)
        assert message.isprintable(), repr(err)[:500]
        assert str(place.named) in message or message.startswith("--"), repr(err)[:500]
        return "refused"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def late(*_) -> None:
    """For SIGPROF."""
    raise AssertionError(f"not done after {SECONDS} s")


def peak() -> int:
    """Bytes of memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(subject: str, root: Path, cases: int, seed: int) -> dict:
    """Damage, read, repair; every fault with the number of its case."""
    signal.signal(signal.SIGPROF, late)
    torch.set_num_threads(1)    # waiting threads spin: on a busy machine they use most of SECONDS
    places: list[Place] = import_module(f"fuzz_{subject}").places(root)
    for place in {place.read: place for place in places}.values():
        assert ended(place) == "read", place.file
    warnings.simplefilter("error")
    said = os.open(root / "stderr", os.O_CREAT | os.O_RDWR)
    os.dup2(said, 2)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    ends, faults, start = Counter(), [], peak()
    for case in range(cases):
        rng = random.Random(f"{seed} {case}")
        place = places[case % len(places)]
        whole = place.file.read_bytes()
        place.file.write_bytes(place.damage(whole, rng))
        try:
            ends[ended(place)] += 1
            assert not os.fstat(said).st_size, Path(root / "stderr").read_text()
        except BaseException:       # a panic of Rust is one, too
            faults.append(f"case {case}, {place.file}: {traceback.format_exc()[-1500:]}")
        place.file.write_bytes(whole)
        os.ftruncate(said, 0)
    return {**ends, "megabytes": (peak() - start) // 2 ** 20, "faults": faults}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))))
