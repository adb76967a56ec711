"""To look into the bindings of a version.

python -m tests.bindings                             lists the versions
python -m tests.bindings tensorrt-10.3.0 FOLDER      makes one importable and says how
"""

import sys
from pathlib import Path

from tests.bindings.install import PINS, install

if len(sys.argv) == 3 and sys.argv[1] in PINS:
    pin, folder = PINS[sys.argv[1]], Path(sys.argv[2]).resolve()
    install(pin, folder)
    code = f"import {pin.module} as module; print(dir(module))"
    print(f"LD_LIBRARY_PATH={folder} PYTHONPATH={folder} {sys.executable} -c '{code}'")
else:
    sys.exit(f"{__doc__}\n" + "\n".join(pin for pin in PINS if not pin.endswith("installed")))
