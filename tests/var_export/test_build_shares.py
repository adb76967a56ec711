"""What a build says of how far it is with its graphs."""

from types import SimpleNamespace

from var_export import build


def test_each_graph_is_told_with_its_share(monkeypatch):
    told = []
    for name in ("make_graph", "trace", "tell_not_finite"):
        monkeypatch.setattr(build, name, lambda *args, **more: None)
    manifest = SimpleNamespace(precision="fp32", smooth=False, max_top_k=4, config=None)
    made = list(build.traced_graphs(None, None, manifest, lambda line, done: told.append((line, done, done.slow))))
    names = [name for name, _ in made]
    assert len(names) > 4
    assert told == [(f"graph: {name}", k / len(names), True) for k, name in enumerate(names)]
