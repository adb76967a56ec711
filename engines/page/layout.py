"""How the page is laid out, and how it looks.

Settings (left: what to draw) --> a Wish --> tabs (right): Drawing, Editing, Comparing, Exploring --> Source
"""

from __future__ import annotations

import gradio as gr

from engines.page.comparing import Comparing
from engines.page.drawing import Drawing
from engines.page.editing import Editing
from engines.page.exploring import Exploring
from engines.page.settings import Settings
from engines.page.source import Source

TITLE = "var-export"
CSS = ".dark { --color-accent: var(--primary-400); }"
"""What a theme cannot say."""
_TABS = (("Draw", Drawing), ("Edit", Editing), ("Compare", Comparing), ("Explore", Exploring))
SWEEP, KEPT = 600, 3600
"""Seconds after which, and for which, pictures that a browser was shown are kept."""


def blocks_of(source: Source) -> gr.Blocks:
    """The whole page, for what `source` draws with."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(SWEEP, KEPT), fill_width=True) as blocks:
        gr.Markdown(f"# {TITLE}\n{', '.join(source.names)}")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                settings = Settings(source)
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                for label, tab in _TABS:
                    with gr.Tab(label):
                        tab(source, settings)
    return blocks


def theme() -> gr.Theme:
    """Gradio's own, with text that stands out as much as WCAG asks for."""
    return gr.themes.Default(primary_hue="emerald").set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        color_accent="*primary_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
    )
