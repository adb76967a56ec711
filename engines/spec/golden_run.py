"""What a golden run holds: G images of the PyTorch reference, which a bundle carries to check its engines against.

`var_export/golden.py` makes it when the bundle is built, `engines/fidelity/checks.py` compares with it on the device.
"""

from __future__ import annotations

from typing import Any

from engines.spec.sampling import RECOMMENDED

GOLDEN_ARRAYS = {
    "classes": "int64 (G,)",
    "seeds": "uint64 (G,)",
    **{option.name: f"{option.dtype} (G,)" for option in RECOMMENDED},
    "tokens": "int64 (G, T), drawn by the reference with the uniforms of its seeds",
    "f_hat": "float32 (G, Z, S, S), after the last scale",
    "image": "uint8 (G, h, w, 3)",
    "top_index": "int32 (G, T, K), the K most likely tokens by the guided logits",
    "top_logit": "float32 (G, T, K), their logits",
    "log_sum_exp": "float64 (G, T), over the whole vocabulary",
    "encoded": "int64 (G, T), the tokens the reference's encoder gives for `image`",
}
# A bundle built with smoothing has these too: what smoothing makes of the same logits, with the noise of the seeds.
SMOOTH_ARRAYS = {
    "heaviest": "int64 (G, T), the entries of the codebook that weigh most",
    "mixed": "float32 (G, T, Z), the entries mixed",
    "smooth_image": "uint8 (G, h, w, 3), mixed at scale 1 alone, with the tokens of the others",
}

# How the golden run smooths. As many entries are kept as the bundle sorts, so that many are mixed, whatever sampling
# the bundle recommends; at MIXED_SCALE alone, so that one coarse map of mixed entries is seen in the image.
SMOOTH_CHECK: dict[str, Any] = {"temperature": 2.0, "top_p": 0.0}
MIXED_SCALE = 1
