"""What an expression of our code is: the vendor's, ours, or neither.

The vendor's modules carry no types, so to mypy their objects are all `Any`. Here they have one: a value is followed
from the module through constructors, the return types in NVIDIA's own docstrings, and our assignments, attributes,
parameters and returns, wherever those are annotated `Any` or not at all. An annotation other than `Any` is believed.
What cannot be followed is UNKNOWN, and using an attribute of it is an error: so nothing of the vendor's escapes.
"""

from __future__ import annotations

import ast
from typing import Any

from tests.bindings.calls import Calls, places_of
from tests.bindings.source import FUNCTIONS
from tests.bindings.types_of import Types
from tests.bindings.values import (
    FOREIGN,
    PLAIN,
    UNKNOWN,
    Box,
    Maker,
    Ours,
    Row,
    Vendor,
    box_attribute,
    elements,
    has_vendor,
    union,
    unpacked,
)

KEEPING = {"list", "tuple", "set", "frozenset", "sorted", "reversed", "iter", "dict", "deque", "WeakSet"}
HARMLESS = {"abs", "all", "any", "bool", "bytes", "callable", "delattr", "dir", "float", "format", "hasattr", "hash"}
HARMLESS |= {"id", "int", "isinstance", "issubclass", "len", "memoryview", "print", "range", "repr", "round", "setattr"}
HARMLESS |= {"str", "sum", "vars"}
EMPTY = {"ABC", "Protocol", "object"}  # base classes without attributes
PROPERTIES = {"property", "cached_property"}
VENDORS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt", "cuda": "cuda"}
ASKING = "importlib.import_module"  # in held modules, this imports TensorRT


class Inference(Types, Calls):
    """`api`: the version that is held against; values of the other vendor are FOREIGN.

    `names`: for expressions that make a name of the vendor's at run time, all that they can make.
    `forwarders`: our functions that take the name of a function of CUDA and its arguments, and give what it returns
    beside the status. `dead`: scopes that are never entered with this version.
    """

    def __init__(self, project, api, *, names=None, forwarders=(), dead=frozenset()):
        self.project, self.api, self.dead = project, api, dead
        self.names, self.forwarders = names or {}, forwarders
        self._known: dict[ast.AST, frozenset] = {}
        self._asked: list[Any] = []
        self._cut = False

    # expressions

    def infer(self, node, scope):
        """Everything that an expression may be; PLAIN where it has nothing of the vendor's or ours."""
        if node in self._known:
            return self._known[node]
        if node in self._asked:  # depends on itself: that adds nothing
            self._cut = True
            return PLAIN
        self._asked.append(node)
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        result = method(node, scope) if method else PLAIN
        self._asked.pop()
        if not self._cut:
            self._known[node] = result
        elif not self._asked:
            self._cut = False
        return result

    def _name(self, node, scope):
        owner = scope.find(node.id)
        return self.bound(owner.names[node.id]) if owner else PLAIN

    def bound(self, bindings):
        """A name's or attribute's values. Its annotation decides, unless that is `Any`."""
        annotations = [self.annotation(b.node, b.scope) for b in bindings if b.kind == "annotation"]
        if annotations and annotations[0] != {UNKNOWN}:
            return annotations[0]
        values = [self._bound(binding) for binding in bindings if binding.kind != "annotation"]
        return union(values or annotations)

    def _bound(self, binding):
        kind, node, scope = binding.kind, binding.node, binding.scope
        if kind == "definition":
            what = "class" if isinstance(node, ast.ClassDef) else "function"
            return frozenset({Ours(what, scope.module.scopes[node])})
        if kind == "import":
            return self._imported(binding.target)
        if kind == "parameter":
            return self._parameter(node, scope)
        value = self.infer(node, scope)
        if kind == "iterate":
            value = elements(value)
        for place in binding.path:
            value = unpacked(value, place)
        return value

    def _imported(self, dotted):
        vendor = VENDORS.get(dotted.split(".")[0])
        if vendor is not None:
            return self._root(vendor)
        module = self.project.module(dotted)
        if module is not None:
            return frozenset({Ours("module", module.scope)})
        parent, _, name = dotted.rpartition(".")
        module = self.project.module(parent) if parent else None
        return self.bound(module.scope.names[name]) if module is not None and name in module.scope.names else PLAIN

    def _root(self, vendor):
        return frozenset({Vendor("module", "")} if self.api.product.startswith(vendor) else {FOREIGN})

    def _attribute(self, node, scope):
        return self.attribute(self.infer(node.value, scope), node.attr)

    def attribute(self, items, name):
        """What `items` have by that name."""
        return union(self._attribute_of(item, name) for item in items)

    def _attribute_of(self, item, name):
        if isinstance(item, Vendor):
            return self._vendor_attribute(item, name)
        if isinstance(item, Ours):
            return self._our_attribute(item, name)
        if isinstance(item, Box):
            return box_attribute(item, name)
        return PLAIN if isinstance(item, (Row, Maker)) else frozenset({item})

    def _vendor_attribute(self, item, name):
        if item.kind == "method":
            return PLAIN
        entry = self.api.entry(item.name, name)
        if entry is None:
            return frozenset({UNKNOWN})
        if name == "__members__" and self.api.members(item.name) is not None:
            return frozenset({Box(frozenset({Vendor("object", item.name)}), PLAIN)})
        if entry["kind"] == "class":
            return frozenset({Vendor("class", entry["type"])})
        if entry["kind"] == "method":
            bound = item.kind == "object" and not entry["static"]
            return frozenset({Vendor("method", name, item.name, bound)})
        return self.typed(entry["type"])

    def _our_attribute(self, item, name):
        if item.kind == "module":
            if name in item.scope.names:
                return self.bound(item.scope.names[name])
            return self._imported(f"{item.scope.module.name}.{name}")
        if item.kind == "function":
            return PLAIN
        for scope in self.line(item.scope):
            if isinstance(scope, Vendor):
                if self.api.entry(scope.name, name) is not None:
                    return self._vendor_attribute(Vendor(item.kind, scope.name), name)
            elif scope is None:  # a base class from elsewhere, which has nothing of the vendor's
                return PLAIN
            elif name in scope.names or name in scope.attributes:
                return self._member(item, scope, name)
        return PLAIN if name.startswith("__") else frozenset({UNKNOWN})

    def _member(self, item, scope, name):
        result = PLAIN
        for binding in scope.names.get(name, ()):
            if binding.kind == "definition" and isinstance(binding.node, FUNCTIONS):
                function = Ours("function", scope.module.scopes[binding.node], item.kind == "object")
                decorators = {ast.unparse(d).rpartition(".")[2] for d in binding.node.decorator_list}
                result |= self.returned(function, None, None) if decorators & PROPERTIES else frozenset({function})
        rest = [b for b in (*scope.names.get(name, ()), *scope.attributes.get(name, ())) if b.kind != "definition"]
        return result | self.bound(rest) if rest else result

    def line(self, scope):
        """A class of ours and its bases: scopes, the vendor's classes, None for others."""
        yield scope
        for base in scope.node.bases:
            items = self.infer(base, scope.parent)
            for item in items:
                if isinstance(item, Ours) and item.kind == "class":
                    yield from self.line(item.scope)
                else:
                    yield item if isinstance(item, Vendor) else None
            if not items and ast.unparse(base).rpartition(".")[2] not in EMPTY:
                yield None

    def _call(self, node, scope):
        function = node.func
        name = function.id if isinstance(function, ast.Name) else ""
        items = self.infer(function, scope)
        if ast.unparse(function) == ASKING:
            return self._root("tensorrt")
        if items:
            return union(self._result(item, node, scope) for item in items)
        values = [self.infer(argument, scope) for argument in node.args]
        if name in ("getattr", "type") and values:
            if name == "type":
                return frozenset(Vendor("class", i.name) if isinstance(i, Vendor) else i for i in values[0])
            names = self.strings(node.args[1], scope)
            if names is None:
                return frozenset({UNKNOWN}) if values[0] else PLAIN
            return union(self.attribute(values[0], name) for name in names) | union(values[2:])
        name = name or getattr(function, "attr", "")
        if name in KEEPING:
            return frozenset({Box(union(map(elements, values)))})
        if name in ("next", "min", "max"):
            return union(map(elements, values[:1])) | union(values[1:])
        if name in ("enumerate", "zip"):
            row = tuple(map(elements, values))
            return frozenset({Box(frozenset({Row((PLAIN, *row) if name == "enumerate" else row)}))})
        if name == "super":
            return self._super(scope)
        if name in HARMLESS and isinstance(function, ast.Name):
            return PLAIN
        passed = (*values, *(self.infer(keyword.value, scope) for keyword in node.keywords))
        return frozenset({UNKNOWN}) if any(map(has_vendor, passed)) else PLAIN

    def _super(self, scope):
        function = scope.function
        holder = function.parent if function else None
        if holder is None or not isinstance(holder.node, ast.ClassDef):
            return frozenset({UNKNOWN})
        bases = [item for item in self.line(holder) if item is not holder]
        return frozenset(
            Vendor("object", b.name) if isinstance(b, Vendor) else Ours("object", b) for b in bases if b is not None
        )

    def _result(self, item, call, scope):
        if isinstance(item, Vendor):
            if item.kind == "class":
                return frozenset({Vendor("object", item.name)})
            return self._vendor_result(item) if item.kind == "method" else frozenset({UNKNOWN})
        if isinstance(item, Ours):
            if item.kind == "class":
                return self._object(item.scope)
            return self.returned(item, call, scope) if item.kind == "function" else PLAIN
        return item.result if isinstance(item, Maker) else frozenset({item})

    def _vendor_result(self, method):
        entry = self.api.entry(method.owner, method.name)
        if self.api.product == "cuda" and not method.owner:
            returns = tuple(self.typed(kind) for kind in entry["returns"]) or (frozenset({UNKNOWN}),)
            return frozenset({Row(returns)})
        return union(self.typed(s.returns) for s in self.api.signatures(method.owner, method.name))

    def forwards(self, function):
        """Whether a function of ours is one of the forwarders."""
        return f"{function.scope.module.name}.{function.scope.qualname}" in self.forwarders

    def returned(self, function, call, scope):
        """What a function of ours returns: its annotation; where that says nothing, what its returns say."""
        node, inner = function.scope.node, function.scope
        if isinstance(node, ast.Lambda):
            return self.infer(node.body, inner)
        if call is not None and self.forwards(function):
            return self._forwarded(call, scope)
        if node.returns is not None:
            declared = self.annotation(node.returns, inner.parent)
            if declared != {UNKNOWN}:
                return declared
        result = PLAIN
        for value in inner.returns:
            if call is not None and isinstance(value, ast.Name) and value.id in {p.arg for p in places_of(node)}:
                result |= self.argument(function, call, scope, value.id)  # it gives back what it was given
            else:
                result |= self.infer(value, inner)
        return result

    def _forwarded(self, call, scope):
        if self.api.product != "cuda":
            return frozenset({FOREIGN})
        names = self.strings(call.args[0], scope) if call.args else None
        rows = [
            row
            for name in names or ()
            if self.api.entry("", name) is not None
            for row in self._vendor_result(Vendor("method", name))
        ]
        if not rows:
            return frozenset({UNKNOWN})
        values = [row.items[1:] for row in rows]  # without the status
        return union(v[0] if len(v) == 1 else frozenset({Row(v)} if v else ()) for v in values)

    def _lambda(self, node, scope):
        return frozenset({Ours("function", scope.module.scopes[node])})

    def _subscript(self, node, scope):
        return union(self._item(item, node.slice) for item in self.infer(node.value, scope))

    def _item(self, item, index):
        if isinstance(item, (Box, Row)) and isinstance(index, ast.Slice):
            return frozenset({item if isinstance(item, Box) else Box(union(item.items))})
        if isinstance(item, Row) and isinstance(index, ast.Constant) and isinstance(index.value, int):
            return unpacked(frozenset({item}), index.value)
        if isinstance(item, Box):
            return item.elements
        if isinstance(item, Row):
            return union(item.items)
        if isinstance(item, Vendor) and item.kind == "object" and self.api.entry(item.name, "__getitem__"):
            return union(self.typed(s.returns) for s in self.api.signatures(item.name, "__getitem__"))
        return frozenset({FOREIGN if item == FOREIGN else UNKNOWN})

    def _boolop(self, node, scope):
        return union(self.infer(value, scope) for value in node.values)

    def _ifexp(self, node, scope):
        return self.infer(node.body, scope) | self.infer(node.orelse, scope)

    def _namedexpr(self, node, scope):
        return self.infer(node.value, scope)

    _await = _starred = _namedexpr

    def _tuple(self, node, scope):
        if any(isinstance(part, ast.Starred) for part in node.elts):
            return self._list(node, scope)
        return frozenset({Row(tuple(self.infer(part, scope) for part in node.elts))})

    def _list(self, node, scope):
        parts = [
            elements(self.infer(p.value, scope)) if isinstance(p, ast.Starred) else self.infer(p, scope)
            for p in node.elts
        ]
        return frozenset({Box(union(parts) if parts else frozenset({UNKNOWN}))})

    _set = _list

    def _dict(self, node, scope):
        values, keys = PLAIN, PLAIN
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                values |= union(b.elements for b in self.infer(value, scope) if isinstance(b, Box))
            else:
                values, keys = values | self.infer(value, scope), keys | self.infer(key, scope)
        return frozenset({Box(values if node.keys else frozenset({UNKNOWN}), keys)})

    def _listcomp(self, node, scope):
        return frozenset({Box(self.infer(node.elt, scope.module.scopes[node]))})

    _setcomp = _generatorexp = _listcomp

    def _dictcomp(self, node, scope):
        inner = scope.module.scopes[node]
        return frozenset({Box(self.infer(node.value, inner), self.infer(node.key, inner))})
