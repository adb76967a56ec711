"""Models akin to VAR that are none: what their checkpoints are told by, so that a message can name them.

The names are those of the public code of each: FoundationVision/Infinity, yandex-research/switti,
daixiangzi/VAR-CLIP, jiaosiyu1999/FlexVAR, NVlabs/HMAR.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engines.errors import CheckpointError

_TEXT = "it draws from text, not from classes"
_SCALES = "it draws scale by scale in another way"
# What only this model has, as an expression that the name of a tensor begins with; its name; how it differs.
_TELLTALES = (
    (r"cfg_uncond$|text_proj_for_|block_chunks\.", "Infinity", _TEXT),
    (r"(?:encoder|decoder)\.conv_in\.conv\.", "Infinity's tokenizer", "it has bits where VAR has a codebook"),
    (r"text_pooler\.|blocks\.\d+\.cross_attn\.", "Switti", _TEXT),
    (r"cond_proj\.|noise\.weight$", "VAR-CLIP", _TEXT),
    (r"(?:ns|mask|base)_blocks\.|mask_embed\.|word_embed_bias$", "HMAR", _SCALES),
    (r"(?:encoder|decoder)\.conv_blocks\.", "LlamaGen's tokenizer, as FlexVAR uses it", "it knows no scales"),
)


def refuse_relatives(shown: str, name: str, state: Mapping[str, Any]) -> None:
    """Raise `CheckpointError`, which names the model, where a state dict is of a relative of VAR.

    Args:
        shown: the file, as messages call it.
        name: the keys that lead to the state dict in it, with dots between.
        state: official name -> what is there.
    """
    for start, model, how in _TELLTALES:
        if telltale := next((key for key in state if re.match(start, key)), None):
            raise _refusal(shown, model, telltale, how)
    if getattr(state.get("pos_1LC"), "ndim", 3) == 4:
        raise _refusal(shown, "FlexVAR", "a pos_1LC that is a map", _SCALES)
    mask = state.get("attn_bias_for_masking")
    # Of VAR, the first token of scale 2 sees scale 1.
    blind = (
        isinstance(mask, Tensor)
        and (mask.layout == torch.strided and mask.ndim == 4 and 0 not in mask.shape[:2] and min(mask.shape[2:]) > 1)
        and not mask[0, 0, 1, 0].isfinite()
    )
    if blind or "transformer_wo_ddp" in name.split("."):
        raise _refusal(shown, "HMAR", "a mask that hides other scales" if blind else "transformer_wo_ddp", _SCALES)


def _refusal(shown: str, model: str, telltale: str, how: str) -> CheckpointError:
    return CheckpointError(
        f"{shown} is of {model}, not of VAR (it has {telltale[:60]}): {how}, which var-export does not export; give a "
        "checkpoint of a class-conditional VAR, such as var_d16.pth"
    )
