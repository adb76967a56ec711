"""`make fuzz N=3000`: N bundles, a third as many checkpoints, requests and command lines; a run that stopped goes on.

What came of each case is kept in `build/fuzz.jsonl`, or the file that is named; remove it to begin anew. Prints counts
per class and kind, and each fault; ends with 1 where there is one.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from tests.fuzz.running import ROOT, results
from tests.fuzz.worker import CLASSES, FAULT


def main(count: int, file: Path) -> int:
    """Run what `file` lacks."""
    file.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    with file.open("a") as stream:
        for name in CLASSES:
            wanted = count if name == "bundles" else count // 3
            first = max((each["case"] + 1 for each in done if each["class"] == name), default=0)
            for result in results(name, first, max(0, wanted - first)):
                stream.write(json.dumps(result) + "\n")
                stream.flush()
                done.append(result)
    for name in CLASSES:
        mine = [each for each in done if each["class"] == name]
        print(f"{name}: {len(mine)} cases, the longest {max((each.get('seconds', 0) for each in mine), default=0)} s")
        for outcome, number in sorted(Counter(each["outcome"] for each in mine).items()):
            print(f"  {number:5d} {outcome}")
    faults = [each for each in done if each["outcome"] == FAULT]
    for each in faults:
        print(f"FAULT {each['class']} {each['case']}: {each['why']}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "build" / "fuzz.jsonl"))
