"""Zero-shot editing: parts of a picture are redrawn, the rest keeps its own tokens. No training, no graph of its own.

The reference is `demo_zero_shot_edit.ipynb` of FoundationVision/VAR; arXiv 2404.02905 has a section on zero-shot tasks.

    canvas.py       any picture <-> the square that the model sees; the result laid over the original
    boxes.py        boxes that a user typed
    detections.py   files of detections: Ultralytics, COCO, YOLO
    detectors.py    detectors in ONNX files, run here
    found.py        what was found, of which class; with boxes and masks -> cells of the latent grid

`engines/editing/mask.py` goes on from there: cells -> tokens of all scales that are kept.
"""
