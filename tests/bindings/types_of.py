"""Types that are written down: annotations of ours, and the words of the vendor's docstrings."""

from __future__ import annotations

import ast

from tests.bindings.values import PLAIN, UNKNOWN, Box, Maker, Ours, Row, Vendor, union

SEQUENCES = {"list", "set", "frozenset", "deque", "Iterable", "Iterator", "Sequence", "Collection", "Generator"}
SEQUENCES |= {"WeakSet", "MutableSequence", "Set"}
MAPPINGS = {"dict", "Mapping", "MutableMapping", "defaultdict", "OrderedDict", "WeakValueDictionary"}
INERT = {"Literal", "NDArray", "ndarray", "dtype"}
"""Generics that hold nothing of the vendor's, whatever stands in the brackets."""
ORDINARY = {"int", "str", "float", "bool", "None", "bytes", "void", "SupportsInt", "SupportsFloat", "Buffer", "buffer"}
"""What the vendor's docstrings call values that are not the vendor's."""
BINDINGS = ("tensorrt_bindings.tensorrt.", "tensorrt_rtx_bindings.tensorrt_rtx.")
ALIASES = (ast.Subscript, ast.BinOp, ast.Name, ast.Attribute)


class Types:
    """Part of `Inference`."""

    def annotation(self, node, scope):
        """An annotation of ours as what it allows."""
        if isinstance(node, ast.Constant):
            text = node.value if isinstance(node.value, str) else "None"
            return self.annotation(ast.parse(text, mode="eval").body, scope) if text != "None" else PLAIN
        if isinstance(node, ast.BinOp):
            return self.annotation(node.left, scope) | self.annotation(node.right, scope)
        if isinstance(node, (ast.Tuple, ast.List)):
            return union(self.annotation(part, scope) for part in node.elts)
        if isinstance(node, ast.Subscript):
            return self._generic(node, scope)
        name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
        if name == "Any":
            return frozenset({UNKNOWN})
        items = self.infer(node, scope)
        if not items and isinstance(node, ast.Name):
            return self._alias(node.id, scope)
        classes = (item.scope for item in items if isinstance(item, Ours) and item.kind == "class")
        return union(map(self._object, classes)) | {i for i in items if isinstance(i, (Box, Row, Maker))}

    def _object(self, scope):
        return PLAIN if scope in self.dead else frozenset({Ours("object", scope)})

    def _alias(self, name, scope):
        owner = scope.find(name)
        for binding in owner.names[name] if owner else ():
            if binding.kind == "value" and isinstance(binding.node, ALIASES):
                return self.annotation(binding.node, binding.scope)
            if binding.kind == "import":
                parent, _, original = binding.target.rpartition(".")
                module = self.project.module(parent) if parent else None
                if module is not None:
                    return self._alias(original, module.scope)
        return PLAIN

    def _generic(self, node, scope):
        name = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
        given = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if name == "Callable":
            return frozenset({Maker(self.annotation(given[-1], scope))})
        if name in INERT:
            return PLAIN
        values = [self.annotation(part, scope) for part in given]
        if name == "tuple" and not (isinstance(given[-1], ast.Constant) and given[-1].value is Ellipsis):
            return frozenset({Row(tuple(values))})
        if name in SEQUENCES or name == "tuple":
            return frozenset({Box(values[0])})
        if name in MAPPINGS:
            return frozenset({Box(values[-1], values[0])})
        if name in ("Optional", "Union", "Final", "ClassVar", "Annotated"):
            return union(values)
        if name in ("type", "Type"):
            return frozenset(Ours("class", i.scope) if isinstance(i, Ours) else i for i in values[0])
        return frozenset({UNKNOWN}) if union(values) else PLAIN

    def typed(self, text):
        """A type in the words of the vendor's docstrings."""
        text = text.replace(":py:obj:", "").replace("`", "").replace("~.", "")
        if "::" in text:  # a class that pybind11 knew by its C++ name only, such as nvonnxparser::IParserError
            text = text.rpartition("::")[2]
            text = text if text in self.api.classes else text.removeprefix("I")
        try:
            node = ast.parse(text.replace(" or ", " | "), mode="eval").body
        except SyntaxError:
            return PLAIN if text.startswith(("unsigned", "size_t", "long")) else frozenset({UNKNOWN})
        return self._typed(node)

    def _typed(self, node):
        text = ast.unparse(node)
        path = next((text.removeprefix(prefix) for prefix in BINDINGS if text.startswith(prefix)), text)
        if path in self.api.classes:
            return frozenset({Vendor("object", path)})
        if isinstance(node, ast.BinOp):
            return self._typed(node.left) | self._typed(node.right)
        if isinstance(node, ast.Subscript):
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            values = [self._typed(part) for part in parts]
            kind = ast.unparse(node.value).rpartition(".")[2].lower()
            if kind in ("optional", "union"):
                return union(values)
            return frozenset({Box(values[-1], values[0] if kind == "dict" else None)})
        address = self.api.product == "cuda" and text == "Any"
        return PLAIN if address or text.rpartition(".")[2] in ORDINARY else frozenset({UNKNOWN})
