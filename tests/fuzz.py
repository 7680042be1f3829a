"""Changed files put before every reader: each is read, or refused in one sentence.

    python -m tests.fuzz --inputs 1000000           # what docs/reliability.md tells of
    python -m tests.fuzz --seed 7 --only statistics

Every input that ends in another way is a failure and is kept, and so is one that takes more memory or time than it may.
The same seed makes the same inputs. Files are written to memory where the system has /dev/shm.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

from tests.fuzzing.mutations import of_arrays, of_bytes, of_json
from tests.fuzzing.readers import Reader, make_readers

LONGEST_SENTENCE = 1500
SLOWEST_S = 20.0
# Inputs of a thousand that each reader gets: statistics are the slowest to read, JSON the fastest.
SHARES = {
    "statistics": 100,
    "probabilities": 150,
    "predictions": 20,
    "fold": 150,
    "splits": 80,
    "report": 100,
    "lesions": 20,
    "temperature": 130,
    "calibrators": 80,
    "dice": 70,
    "dataset": 20,
    "plans": 10,
    "spacing": 70,
}


def changed(rng: random.Random, reader: Reader, others: list[bytes]) -> bytes:
    """A valid file after some damage; half of it keeps to the format."""
    if reader.arrays is not None and rng.random() < 0.7:
        content = of_arrays(rng, reader.arrays)
        return of_bytes(rng, content, others) if rng.random() < 0.1 else content
    if reader.is_json and rng.random() < 0.8:
        content = of_json(rng, reader.valid)
        return of_bytes(rng, content, others) if rng.random() < 0.05 else content
    return of_bytes(rng, reader.valid, others)


def outcome(reader: Reader) -> str:
    """Read fine, refused in a sentence, or what went wrong."""
    try:
        reader.read()
    except (ValueError, OSError) as error:
        text = str(error)
        if "expected " in text and "\n" not in text and len(text) < LONGEST_SENTENCE:
            return "refused"
        return f"no sentence: {type(error).__name__}: {text[:200]!r}\n{traceback.format_exc()}"
    except Exception:
        return f"crash: {traceback.format_exc()}"
    return "read"


def fuzz(inputs: int, seed: int, keep: Path, only: str | None = None, progress: bool = False) -> dict[str, Counter]:
    """Put so many inputs before the readers, and say how each reader has met them; failures are written to `keep`."""
    counts: dict[str, Counter] = {}
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as root, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's and zipfile's of odd files
        readers = make_readers(Path(root))
        others = [reader.valid for reader in readers.values()]
        for name, reader in readers.items():
            if only not in (None, name):
                continue
            counts[name] = Counter()
            number = inputs if only else round(inputs * SHARES[name] / 1000)
            for i in range(number):
                content = changed(random.Random(f"{seed} {name} {i}"), reader, others)
                reader.file.write_bytes(content)
                start = time.process_time()
                found = outcome(reader)
                if time.process_time() - start > SLOWEST_S:
                    found = f"slow: {time.process_time() - start:.0f} s"
                kind = found.partition(":")[0]
                counts[name][kind] += 1
                if kind not in ("read", "refused") and sum(counts[name].values()) and counts[name][kind] <= 20:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{name}_{i}").write_bytes(content)
                    (keep / f"{name}_{i}.txt").write_text(found, encoding="utf-8", errors="replace")
                if progress and i % 10_000 == 0:
                    print(f"{name}: {i} of {number}, {dict(counts[name])}", file=sys.stderr, flush=True)
            reader.file.write_bytes(reader.valid)
            reader.read()  # the valid file is still read
    return counts


def main() -> int:
    """Run, and print a table of the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[*SHARES], help="one reader")
    parser.add_argument("--keep", type=Path, default=Path("fuzz_failures"), help="folder for inputs that failed")
    args = parser.parse_args()
    start = time.perf_counter()
    counts = fuzz(args.inputs, args.seed, args.keep, args.only, progress=True)
    print("| reader | inputs | read | refused | failed |\n|---|---|---|---|---|")
    total: Counter = sum(counts.values(), Counter())
    for name, found in [*counts.items(), ("all", total)]:
        failed = sum(found.values()) - found["read"] - found["refused"]
        print(f"| {name} | {sum(found.values())} | {found['read']} | {found['refused']} | {failed} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"seed {args.seed}, {time.perf_counter() - start:.0f} s, peak memory {peak:.0f} MiB")
    return int(sum(total.values()) != total["read"] + total["refused"])


if __name__ == "__main__":
    sys.exit(main())
