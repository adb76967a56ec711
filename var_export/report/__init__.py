"""Pages of figures for people: `--html` of `verify`, `bench` and `sensitivity`. Torch-free.

    words.py     figures in words                  palette.py   colours, in light and dark
    charts.py    drawing by matplotlib             inline.py    its SVG as part of a page
    layers.py    the chart of sensitivities        pictures.py  images as part of a page
    parts.py     what pages are made of            showcase.py  reference and engine side by side
    facts.py     bundle, machine and versions      page.py      templates, size, the file
    verify.py, bench.py, sensitivity.py            one page each: figures in, parts out

matplotlib and Jinja2 come with the extra `report`; nothing else imports this package before it is asked for a page.
"""
