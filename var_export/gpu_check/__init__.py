"""`var-export gpu-check`: on a machine with a GPU, build, check and time everything, and write one page about it.

    cases.py      what there is to do: models x precisions x forms x backends, as steps in their order
    steps.py      does them one by one; keeps every outcome on disk, so that a second run continues
    isolation.py  a step in a process of its own: a crash of the driver takes nothing else with it
    worker.py     that process
    building.py   the steps that build: bundles and plans
    work.py       the steps that check and time engines
    race.py       the step that times the PyTorch reference on the GPU in turns with an engine
    hardware.py   the GPU: whether what is needed is here; driver, clocks and power
    store.py      outcomes on disk, under a key over all that decides them
    report.py     the outcomes as a page

The process that a user starts touches neither PyTorch nor the GPU.
"""
