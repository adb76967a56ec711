"""Print what a module offers, as JSON. Alone in a fresh process: it imports nothing of ours.

usage: dump.py MODULE [FOLDER]; FOLDER is where to import it from
"""

import importlib
import inspect
import json
import re
import sys

ORDINARY = frozenset(dir(object)) - {"__init__"}
OF_MODULES = ("__version__", "__file__", "__name__", "__path__")


def signatures(name, function):
    """As text, one per overload: pybind11 writes them into the docstring, Cython says them itself."""
    lines = (inspect.getdoc(function) or "").splitlines()
    if len(lines) > 1 and lines[1].startswith("Overloaded"):
        numbered = (re.match(rf"\d+\. ({re.escape(name)}\(.*)", line) for line in lines)
        return [match[1] for match in numbered if match]
    if lines and lines[0].startswith(f"{name}(") and "->" in lines[0]:
        return [lines[0]]
    try:
        return [f"{name}{inspect.signature(function)}"]
    except (TypeError, ValueError):
        return []


def section(owner, title):
    """Lines `name : type` of a section of a numpy docstring; a type alone stands for itself."""
    lines = (inspect.getdoc(owner) or "").splitlines()
    starts = [index for index, line in enumerate(lines) if line.strip() == title]
    if not starts:
        return []
    indent = lines[starts[0]][: -len(title)]
    found = []
    for index in range(starts[0] + 2, len(lines)):
        if index + 1 < len(lines) and lines[index + 1].startswith(f"{indent}---"):
            break
        if lines[index].startswith(indent) and lines[index][len(indent) :][:1].strip():
            found.append(lines[index].strip())
    return found


class Dump:
    def __init__(self, module):
        self.module = module
        self.paths, self.classes = {}, {}
        names = [name for name in dir(module) if not name.startswith("_") or name in OF_MODULES]
        for name in names:
            self._name_classes(getattr(module, name), name)
        for kind, path in list(self.paths.items()):
            self.classes[path] = self._class(kind)
        self.names = {name: self._entry(name, getattr(module, name), None, None) for name in names}
        self.names = {name: entry for name, entry in self.names.items() if entry}

    def _name_classes(self, value, path):
        if isinstance(value, type) and value not in self.paths and value.__module__ != "builtins":
            self.paths[value] = path
            for name in dir(value):
                if not name.startswith("_"):
                    self._name_classes(getattr(value, name, None), f"{path}.{name}")

    def _class(self, kind):
        members = getattr(kind, "__members__", None)
        names = {}
        known = {*dir(kind), *(members or ()), *(name for base in kind.__mro__ for name in vars(base))}
        for name in sorted(known - ORDINARY):
            raw = next((base.__dict__[name] for base in kind.__mro__ if name in base.__dict__), None)
            entry = self._entry(name, getattr(kind, name, None), raw, kind)
            if entry:
                names[name] = entry
        return {
            "bases": [self.paths[base] for base in kind.__mro__ if base in self.paths],
            "enum": {name: self._number(value) for name, value in members.items()} if members is not None else None,
            "names": names,
        }

    def _entry(self, name, value, raw, owner):
        if name.startswith("_") and not name.startswith("__"):
            return None
        if isinstance(raw, property):
            said = inspect.getdoc(raw.fget) or ""
            kind = said.splitlines()[0].rpartition("->")[2].strip() if "->" in said else ""
            return {"kind": "property", "type": kind, "writable": raw.fset is not None}
        if inspect.isgetsetdescriptor(raw) or inspect.ismemberdescriptor(raw):
            fields = dict(line.split(" : ", 1) for line in section(owner, "Attributes") if " : " in line)
            return {"kind": "property", "type": fields.get(name, ""), "writable": True}
        if isinstance(value, type):
            return {"kind": "class", "type": self.paths[value]} if value in self.paths else None
        if inspect.ismodule(value):
            return None
        if callable(value):
            returns = [line.split(" : ", 1)[-1] for line in section(value, "Returns")]
            static = isinstance(raw, staticmethod)
            return {"kind": "method", "signatures": signatures(name, value), "static": static, "returns": returns}
        return {"kind": "value", "type": self.paths.get(type(value), type(value).__name__)}

    @staticmethod
    def _number(value):
        try:
            return int(value)
        except (TypeError, ValueError):
            return None


def main():
    if len(sys.argv) > 2:
        sys.path.insert(0, sys.argv[2])
    module = importlib.import_module(sys.argv[1])
    found = Dump(module)
    package = importlib.import_module("cuda.bindings") if sys.argv[1].startswith("cuda.") else module
    print(json.dumps({"version": package.__version__, "names": found.names, "classes": found.classes}))


if __name__ == "__main__":
    main()
