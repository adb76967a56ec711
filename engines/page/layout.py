"""How the page is laid out, and how it looks.

Sidebar (left: what to draw) --> a Wish --> tabs (right): DrawTab, EditTab, CompareTab, ExploreTab --> Artist
"""

from __future__ import annotations

import gradio as gr

from engines.page.artist import Artist, plain
from engines.page.comparing import CompareTab
from engines.page.drawing import DrawTab
from engines.page.editing import EditTab
from engines.page.exploring import ExploreTab
from engines.page.sidebar import Sidebar

TITLE = "var-export"
CSS = ".dark { --color-accent: var(--primary-400); }"
"""What a theme cannot say."""
_TABS = (("Draw", DrawTab), ("Edit", EditTab), ("Compare", CompareTab), ("Explore", ExploreTab))
LOOK_SECONDS = 0.02
"""How often gradio looks for a press of a button."""


def blocks_of(artist: Artist) -> gr.Blocks:
    """The whole page, for what `artist` draws with."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as blocks:
        gr.Markdown(f"# {TITLE}\n{', '.join(map(plain, artist.names))}")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                sidebar = Sidebar(artist)
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                for label, tab in _TABS:
                    with gr.Tab(label):
                        tab(artist, sidebar)
    # It looks for work a thousand times a second otherwise, which takes a twentieth of a core from an idle machine.
    blocks._queue.sleep_when_free = blocks._queue.progress_update_sleep_when_free = LOOK_SECONDS
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
