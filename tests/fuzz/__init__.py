"""Damaged, odd and hostile input, made from fixed seeds, for whatever reads files, requests and command lines.

    seed -> a case: honest input with something wrong -> run in a child process -> what came of it

What holds for every case: it goes through, or raises an error of ours whose message is one printable line; within
`SECONDS`, and without `MEMORY` more than an honest case takes; and no picture differs from the honest one unless every
digest was made again. `make test` runs some 300 cases; `make fuzz N=3000` the long run (`tests.fuzz.__main__`).
"""

SECONDS = 10
MEMORY = 1 << 30
