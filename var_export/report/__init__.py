"""Pages of figures for people: `--html` of `verify`, `bench` and `sensitivity`. Torch-free.

    words.py     figures in words                  palette.py   colours, in light and dark
    charts.py    drawing by matplotlib             inline.py    its SVG as part of a page
    pictures.py  images as part of a page          page.py      templates, size, the file
    facts.py     bundle, machine and versions      verify.py, bench.py, sensitivity.py: one page each

matplotlib and Jinja2 come with the extra `report`; nothing else imports this package before it is asked for a page.
"""
