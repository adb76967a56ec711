"""ComfyUI's nodes for var-export.

    nodes.py      the nodes: what each takes and gives        tensors.py  ComfyUI's tensors <-> arrays
    widgets.py    the inputs that several nodes share         host.py     what is asked of ComfyUI itself
    pipelines.py  bundles on disk, pipelines that stay loaded

ComfyUI imports this folder from its `custom_nodes` and reads the two tables below.
"""

from __future__ import annotations

try:
    from engines import VarExportError as _VarExportError
except ImportError as error:
    raise ImportError(
        "the var-export nodes need the package itself: install it into the Python that runs ComfyUI, "
        'from its clone, with: python -m pip install ".[cpu]" (README.md beside these nodes)'
    ) from error

from .nodes import DecodeTokensNode, DrawNode, EditNode, EncodeImageNode, LoadBundleNode, PreviewScalesNode

NODE_CLASS_MAPPINGS: dict[str, type] = {
    "VarExportLoadBundle": LoadBundleNode,
    "VarExportDraw": DrawNode,
    "VarExportPreviewScales": PreviewScalesNode,
    "VarExportEdit": EditNode,
    "VarExportEncode": EncodeImageNode,
    "VarExportDecode": DecodeTokensNode,
}
"""Classes by the names that workflows hold, which no other extension has."""

NODE_DISPLAY_NAME_MAPPINGS = {
    "VarExportLoadBundle": "VAR: Load Bundle",
    "VarExportDraw": "VAR: Draw",
    "VarExportPreviewScales": "VAR: Preview per Scale",
    "VarExportEdit": "VAR: Edit (Redraw Mask)",
    "VarExportEncode": "VAR: Encode Image to Tokens",
    "VarExportDecode": "VAR: Decode Tokens to Image",
}
"""What ComfyUI's menu calls the nodes."""

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
